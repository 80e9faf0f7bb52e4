//! One look at everything a diagnosis needs. Data only: it can be saved, sent and judged elsewhere.
//!
//! Text in it comes from engines and containers and is escaped where it was read.

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
};

/// Changes whenever older programs could not judge the facts of newer ones.
///
/// 2: compose files are kept as [`Content`], and judged where the rest is. 1 kept what they come to.
pub const SCHEMA: u32 = 2;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    pub schema: u32,
    /// Seconds since 1970, by this host's clock.
    pub taken: u64,
    pub took_ms: u64,
    pub target: TargetFacts,
    pub host: HostFacts,
    pub engine: Option<EngineFacts>,
    pub container: Option<ContainerFacts>,
    pub compose: Option<Compose>,
    /// What `repair` was asked for, and what no owner keeps yet.
    pub wanted: Option<u64>,
    /// Tasks that the policy's clamps leave free (`respond.clamp_headroom`); None where no policy is at hand.
    pub headroom: Option<u64>,
    pub unit: Option<Unit>,
    /// What an incident holds here, by the mark of the target's own cgroup.
    pub clamp: Option<Clamp>,
    /// The target's own cgroup first, the root last; in the hierarchy that has the pids controller.
    pub chain: Vec<Level>,
    /// Processes in the cgroup and below it, zombies left out.
    pub members: Vec<Process>,
    /// Dead and not reaped, so still charged.
    pub zombies: Vec<Process>,
    /// In the pid namespace of the container, and not in its cgroup.
    pub aliens: Vec<Process>,
    /// Other running containers of the same image or project.
    pub others: Vec<Other>,
    /// What could not be known.
    pub unreadable: Vec<Unreadable>,
}

/// What was asked about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TargetFacts {
    pub kind: SubjectKind,
    pub name: String,
    /// Of a container.
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
    /// The row of `/proc/cgroups`; None where there is no row.
    pub pids_enabled: Option<bool>,
    /// Words of the kernel's command line that are about cgroups.
    pub boot_words: Vec<String>,
    /// Mount option of the unified tree.
    pub nsdelegate: Option<bool>,
    pub threads_max: Option<u64>,
    /// Of the host's pid namespace.
    pub pid_max: Option<u64>,
    /// Tasks on the whole host.
    pub tasks: Option<u64>,
    /// `pid_max` and tasks of the target's pid namespace, where that is another than the host's.
    pub pid_namespace: Option<PidNamespace>,
    /// `DOCKER_API_VERSION` as the operator has it set.
    pub docker_api_version: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PidNamespace {
    /// Per namespace since Linux 6.14; the host's before.
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
    /// Whether it says that it can limit pids.
    pub pids_limit: Option<bool>,
    pub rootless: bool,
    /// The kernel it says it runs on.
    pub kernel: String,
    pub operating_system: String,
    /// Where it listens.
    pub socket: String,
    /// `TasksMax` of the engine's own unit, where its unit files set one.
    pub own_tasks_max: Option<Limit>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerFacts {
    pub id: String,
    pub name: String,
    pub image: String,
    /// Seconds since 1970.
    pub created: Option<u64>,
    /// Its first process, as the host numbers it.
    pub init: Pid,
    /// `HostConfig.PidsLimit` as it stands: null, 0, -1 and a number are four things.
    pub pids_limit: Option<i64>,
    /// `linux.resources.pids.limit` of the OCI config.
    pub oci_limit: Option<OciLimit>,
    /// Of the runtime's state file. No witness: runc sets it to 0 at any unrelated update.
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
    /// Host pids of the `docker exec` calls that the engine says are running.
    pub execs: Vec<Pid>,
    pub swarm_service: Option<String>,
    pub memory: Memory,
}

/// What the OCI config says.
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
    /// Bytes; None is no limit, or unknown.
    pub max: Option<u64>,
    pub current: Option<u64>,
    /// `memory.events`: times the limit was hit, and processes killed for it.
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
    /// Of systemd; 0 where unknown.
    pub systemd: u32,
    pub transient: bool,
    pub slice: String,
}

/// A limit of ours that lasts as long as its incident.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clamp {
    pub incident: Incident,
    /// `pids.max` as it was, and as we wrote it.
    pub found: Limit,
    pub wrote: Limit,
}

/// One cgroup on the way to the root.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Level {
    pub path: String,
    /// None where there is no such file.
    pub max: Option<Limit>,
    pub current: Option<u64>,
    pub peak: Option<u64>,
    /// `max` of `pids.events`.
    pub denials: Option<u64>,
    /// The same of `pids.events.local` (Linux 6.11).
    pub own_denials: Option<u64>,
    /// Version 2: pids in `cgroup.controllers`, and in `cgroup.subtree_control`.
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
    /// Words, escaped and cut.
    pub argv: Vec<String>,
    /// Path in the hierarchy that has the pids controller.
    pub cgroup: String,
}

/// Another container that holds processes one may look for here.
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
    /// The cgroup itself.
    #[must_use]
    pub fn own(&self) -> Option<&Level> {
        self.chain.first()
    }

    /// The least limit on the way to the root, and where it stands.
    #[must_use]
    pub fn effective(&self) -> Option<(&Level, Limit)> {
        let limits = self.chain.iter().filter_map(|level| Some((level, level.max?)));
        // Of two equal ones the nearer: it is the one to change.
        limits.min_by_key(|(_, limit)| *limit)
    }

    /// Threads of all members.
    #[must_use]
    pub fn threads(&self) -> u64 {
        self.members.iter().map(|process| process.threads).sum()
    }

    /// Members whose parent is not a member: the container's first process and whatever came in.
    #[must_use]
    pub fn roots(&self) -> Vec<&Process> {
        let inside: BTreeSet<Pid> = self.members.iter().map(|process| process.pid).collect();
        self.members.iter().filter(|process| !inside.contains(&process.parent)).collect()
    }

    /// Members that are in a cgroup below the target's own, by that cgroup.
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
