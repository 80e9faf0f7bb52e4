//! A snapshot of everything a diagnosis needs. It is only data: it can be saved, sent and judged elsewhere.
//!
//! Text in it comes from engines and containers, and was escaped when it was read.

mod compose;
mod kinds;
mod unreadable;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

pub use self::{
    compose::{
        Compose, ComposeFile, Content, Keys, LimitKeys, OtherLimit, Reached, Says, ServiceKeys,
        Variables, Written,
    },
    kinds::{
        CgroupDriver, Cgroups, ComposeTool, ContainerCgroups, EngineKind, NamespaceMode,
        SubjectKind,
    },
    unreadable::{Source, Unreadable},
};
use crate::{
    id::{Incident, Pid, Ticks},
    limit::Limit,
    redact,
};

/// Version of the saved format. It changes when older programs could not judge newer facts.
///
/// Version 2 stores the content of compose files ([`Content`]), which is judged with the rest. Version 1
/// stored only the result of judging them.
pub const SCHEMA: u32 = 2;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    pub schema: u32,
    /// When the facts were read, in seconds since 1970 by this host's clock.
    pub taken: u64,
    pub took_ms: u64,
    pub target: TargetFacts,
    pub host: HostFacts,
    pub engine: Option<EngineFacts>,
    pub container: Option<ContainerFacts>,
    pub compose: Option<Compose>,
    /// The limit that `repair` was asked for, if no owner stores it yet.
    pub wanted: Option<u64>,
    /// Tasks that the policy's clamps leave free (`respond.clamp_headroom`); None without a policy.
    pub headroom: Option<u64>,
    pub unit: Option<Unit>,
    /// Our clamp for an incident, according to the mark of the target's cgroup.
    pub clamp: Option<Clamp>,
    /// The cgroups from the target's own to the root, in the hierarchy that has the pids controller.
    pub chain: Vec<Level>,
    /// Processes in the cgroup and below it, except zombies.
    pub members: Vec<Process>,
    /// Processes that are dead but not reaped, and so still charged.
    pub zombies: Vec<Process>,
    /// Processes in the container's pid namespace but not in its cgroup.
    pub aliens: Vec<Process>,
    /// Other running containers of the same image or project.
    pub others: Vec<Other>,
    /// Sources that could not be read.
    pub unreadable: Vec<Unreadable>,
}

/// The target of the diagnosis.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TargetFacts {
    pub kind: SubjectKind,
    pub name: String,
    /// The id, if the target is a container.
    pub id: Option<String>,
    /// Path in the hierarchy that has the pids controller.
    pub cgroup: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostFacts {
    /// `uname -r`.
    pub kernel: String,
    pub cgroups: Cgroups,
    /// Whether `/proc/cgroups` shows the pids controller as enabled; None if it has no row for it.
    pub pids_enabled: Option<bool>,
    /// Options on the kernel's command line that concern cgroups.
    pub boot_words: Vec<String>,
    /// Whether the unified tree is mounted with `nsdelegate`.
    pub nsdelegate: Option<bool>,
    pub threads_max: Option<u64>,
    /// `pid_max` of the host's pid namespace.
    pub pid_max: Option<u64>,
    /// Tasks on the whole host.
    pub tasks: Option<u64>,
    /// `pid_max` and tasks of the target's pid namespace, if that is not the host's.
    pub pid_namespace: Option<PidNamespace>,
    /// `DOCKER_API_VERSION` in the operator's environment.
    pub docker_api_version: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PidNamespace {
    /// Per namespace since Linux 6.14, the host's on older kernels.
    pub pid_max: u64,
    pub tasks: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EngineFacts {
    pub kind: EngineKind,
    pub version: String,
    pub api_version: String,
    pub cgroup_driver: CgroupDriver,
    /// Whether the engine reports that it can limit pids.
    pub pids_limit: Option<bool>,
    pub rootless: bool,
    /// The kernel that the engine reports to run on.
    pub kernel: String,
    pub operating_system: String,
    /// The socket that the engine listens on.
    pub socket: String,
    /// `TasksMax` of the engine's own unit, if its unit files set one.
    pub own_tasks_max: Option<Limit>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerFacts {
    pub id: String,
    pub name: String,
    pub image: String,
    /// When the container was created, in seconds since 1970.
    pub created: Option<u64>,
    /// Host pid of the container's first process.
    pub init: Pid,
    /// `HostConfig.PidsLimit`, unchanged: null, 0, -1 and a number are four different things.
    pub pids_limit: Option<i64>,
    /// `linux.resources.pids.limit` of the OCI config.
    pub oci_limit: Option<OciLimit>,
    /// The limit in the runtime's state file. It proves nothing: runc sets it to 0 at any unrelated update.
    pub state_limit: Option<i64>,
    pub cgroup_parent: String,
    pub cgroupns_mode: NamespaceMode,
    pub cgroups: ContainerCgroups,
    pub pid_mode: NamespaceMode,
    pub privileged: bool,
    pub cap_add: Vec<String>,
    pub runtime: String,
    /// `--init`, or `init: true`.
    pub init_process: bool,
    pub binds_docker_socket: bool,
    pub binds_cgroupfs: bool,
    pub nproc_ulimit: Option<i64>,
    /// "healthy", "unhealthy", "starting"; None without a health check.
    pub health: Option<String>,
    /// Host pids of the `docker exec` calls that the engine lists as running.
    pub execs: Vec<Pid>,
    pub swarm_service: Option<String>,
    pub memory: Memory,
}

/// The limit in the OCI config.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OciLimit {
    /// The file has no `pids` at all.
    Absent,
    Limit(i64),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// In bytes; None if there is no limit, or it is not known.
    pub max: Option<u64>,
    pub current: Option<u64>,
    /// From `memory.events`: how often the limit was reached, and how many processes were killed for it.
    pub hits: Option<u64>,
    pub kills: Option<u64>,
}

/// The systemd unit that owns the cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Unit {
    pub name: String,
    pub tasks_max: Option<Limit>,
    /// `DefaultTasksMax` of the manager.
    pub default_tasks_max: Option<Limit>,
    /// Version of systemd; 0 if unknown.
    pub systemd: u32,
    pub transient: bool,
    pub slice: String,
}

/// A limit that mcp-guard has set for the duration of an incident.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clamp {
    pub incident: Incident,
    /// `pids.max` before the clamp, and the value that we wrote.
    pub found: Limit,
    pub wrote: Limit,
    /// Whether it is no clamp, but the limit beside a freeze that is slow.
    #[serde(default)]
    pub beside_freeze: bool,
}

/// One cgroup on the path to the root.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Level {
    pub path: String,
    /// `pids.max`; None if the file does not exist.
    pub max: Option<Limit>,
    pub current: Option<u64>,
    pub peak: Option<u64>,
    /// The counter `max` of `pids.events`.
    pub denials: Option<u64>,
    /// The counter `max` of `pids.events.local` (Linux 6.11).
    pub own_denials: Option<u64>,
    /// In version 2, whether pids is in `cgroup.controllers`, and in `cgroup.subtree_control`.
    pub has_pids: Option<bool>,
    pub hands_pids_down: Option<bool>,
    pub threaded: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Process {
    pub pid: Pid,
    pub parent: Pid,
    pub start: Ticks,
    pub threads: u64,
    pub comm: String,
    /// Arguments, escaped and truncated.
    pub argv: Vec<String>,
    /// Path in the hierarchy that has the pids controller.
    pub cgroup: String,
}

impl Process {
    /// Returns the command line as one line of text, with secrets masked.
    #[must_use]
    pub fn command_line(&self) -> String {
        redact::words(self.argv.iter().map(String::as_str)).join(" ")
    }
}

/// Another container, which may have the processes that an operator expects in the target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Other {
    pub id: String,
    pub name: String,
    pub same_image: bool,
    pub same_project: bool,
    pub limit: Option<Limit>,
    pub tasks: Option<u64>,
}

impl Facts {
    /// Returns these facts with the secrets in command lines masked.
    #[must_use]
    pub fn without_secrets(mut self) -> Self {
        for processes in [&mut self.members, &mut self.zombies, &mut self.aliens] {
            for process in processes {
                process.argv = redact::words(process.argv.iter().map(String::as_str));
            }
        }
        self
    }

    /// Returns the target's own cgroup.
    #[must_use]
    pub fn own(&self) -> Option<&Level> {
        self.chain.first()
    }

    /// Returns the lowest limit up to the root, and the cgroup that has it.
    #[must_use]
    pub fn effective(&self) -> Option<(&Level, Limit)> {
        let limits = self.chain.iter().filter_map(|level| Some((level, level.max?)));
        // If two are equal, `min_by_key` returns the nearer one, which is the one to change.
        limits.min_by_key(|(_, limit)| *limit)
    }

    /// Returns the number of threads of all members.
    #[must_use]
    pub fn threads(&self) -> u64 {
        self.members.iter().map(|process| process.threads).sum()
    }

    /// Returns members whose parent is not a member: the container's first process, and processes that were
    /// moved in.
    #[must_use]
    pub fn roots(&self) -> Vec<&Process> {
        let inside: BTreeSet<Pid> = self.members.iter().map(|process| process.pid).collect();
        self.members.iter().filter(|process| !inside.contains(&process.parent)).collect()
    }

    /// Counts the members in each cgroup below the target's own.
    #[must_use]
    pub fn nested(&self) -> BTreeMap<&str, usize> {
        let mut found = BTreeMap::new();
        let own = self.own().map_or("", |level| level.path.as_str());
        for process in self.members.iter().filter(|process| process.cgroup != own) {
            *found.entry(process.cgroup.as_str()).or_default() += 1;
        }
        found
    }
}
