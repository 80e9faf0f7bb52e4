//! The result of a diagnosis. These types define its JSON. `null` for a limit means that there is none
//! or, with the verdict "unknown", that it is not known.

use serde::{Deserialize, Serialize};

use super::{
    code::{Code, Severity},
    facts::{TargetFacts, Unreadable},
    sizing::Sizing,
};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub target: TargetFacts,
    pub verdict: Verdict,
    /// The limit in the compose file, otherwise the one that the engine stores.
    pub declared: Option<u64>,
    /// The lowest limit from the target's cgroup up to the root.
    pub effective_limit: Option<u64>,
    /// The problems, in the order in which to fix them.
    pub findings: Vec<Finding>,
    /// States that need no action: look-alikes of problems, and signs that accompany a finding.
    pub ok: Vec<Fine>,
    pub unreadable: Vec<Unreadable>,
    /// The places a limit can be in, from the compose file to the kernel.
    pub places: Vec<Place>,
    pub charged: Charged,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sizing: Option<Sizing>,
    /// Further remarks, for example on a clamp, a repair in progress or memory.
    pub notes: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    Enforced,
    NotEnforced,
    /// The limit is in force, but there are more tasks than it allows.
    Exceeded,
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Certainty {
    Proved,
    Possible,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub code: Code,
    pub severity: Severity,
    pub certainty: Certainty,
    /// The finding in one sentence.
    pub title: String,
    pub evidence: Vec<Evidence>,
    /// Causes that look alike, each with the reason why it is ruled out.
    pub ruled_out: Vec<String>,
    pub repair: RepairAdvice,
}

/// One value that supports a finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    pub what: String,
    /// The file or API field that it was read from.
    pub r#where: String,
    pub value: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairAdvice {
    /// Whether `command` fixes the problem at once, without re-creating the container.
    pub possible: bool,
    /// The owner of the value that must change.
    pub owner: Keeper,
    pub command: String,
    /// The events that the repair survives: "container restart", "daemon-reload", "reboot", "recreate".
    pub survives: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fine {
    pub code: Code,
    pub title: String,
}

/// One place a limit can be in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub place: Layer,
    pub r#where: String,
    pub value: String,
    /// The limit of the places before is lost here.
    pub breaks: bool,
}

words! {
    /// The layers that a limit passes through on its way to the kernel, in order.
    Layer {
        ComposeFile "compose file",
        Engine "engine",
        OciConfig "OCI config",
        RuntimeState "runtime state",
        Systemd "systemd",
        Kernel "kernel",
    }
}

words! {
    /// The owner of the value that a repair must change.
    Keeper {
        /// No value has to change.
        Nobody "",
        Host "host",
        Systemd "systemd",
        Lxc "LXC",
        Kubelet "kubelet",
        #[serde(alias = "whoever made that cgroup")]
        CgroupMaker "the creator of the cgroup",
        Engine "engine",
        Runtime "runtime",
        Swarm "swarm",
        /// The choice of the engine that a client talks to.
        Context "context",
        Compose "compose",
        ComposeFile "compose file",
        ComposeTool "compose tool",
        ImageOrComposeFile "image or compose file",
        ContainerConfig "container's configuration",
        #[serde(alias = "that container")]
        OtherContainer "the other container",
        Operator "operator",
        #[serde(alias = "whoever made it")]
        ContainerMaker "the creator of the container",
        #[serde(alias = "whoever starts them")]
        ContainerStarter "the creator of the other containers",
        #[serde(alias = "whoever started them")]
        ProcessStarter "the program that started the processes",
        #[serde(alias = "whoever moved them")]
        ProcessMover "the program that moved the processes",
        #[serde(alias = "whoever runs docker exec")]
        ExecCaller "the caller of docker exec",
        #[serde(alias = "whoever lowered it")]
        LimitLowerer "the operator or tool that lowered the limit",
    }
}

/// The tasks and processes that count against the limit, or seem to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Charged {
    /// `pids.current`.
    pub tasks: Option<u64>,
    pub processes: u64,
    pub zombies: u64,
    /// Processes that were moved in from outside, except the container's first.
    pub moved_in: u64,
    /// Processes in the same pid namespace that are not charged here.
    pub aliens: u64,
}

impl Finding {
    #[must_use]
    pub fn new(code: Code, certainty: Certainty, title: impl Into<String>) -> Self {
        Self {
            code,
            severity: code.severity(),
            certainty,
            title: title.into(),
            evidence: Vec::new(),
            ruled_out: Vec::new(),
            repair: RepairAdvice {
                possible: false,
                owner: Keeper::Nobody,
                command: String::new(),
                survives: Vec::new(),
            },
        }
    }

    #[must_use]
    pub fn seen(
        mut self,
        what: impl Into<String>,
        r#where: impl Into<String>,
        value: impl ToString,
    ) -> Self {
        let (what, r#where, value) = (what.into(), r#where.into(), value.to_string());
        self.evidence.push(Evidence { what, r#where, value });
        self
    }

    #[must_use]
    pub fn not(mut self, look_alike: impl Into<String>) -> Self {
        self.ruled_out.push(look_alike.into());
        self
    }

    /// Adds a command that fixes the problem at once.
    #[must_use]
    pub fn repaired(
        mut self,
        owner: Keeper,
        command: impl Into<String>,
        survives: &[&str],
    ) -> Self {
        self.repair = repair(true, owner, command, survives);
        self
    }

    /// Adds advice that only the owner can carry out.
    #[must_use]
    pub fn by_hand(mut self, owner: Keeper, command: impl Into<String>) -> Self {
        self.repair = repair(false, owner, command, &[]);
        self
    }
}

fn repair(
    possible: bool,
    owner: Keeper,
    command: impl Into<String>,
    survives: &[&str],
) -> RepairAdvice {
    let survives = survives.iter().map(|what| (*what).to_owned()).collect();
    RepairAdvice { possible, owner, command: command.into(), survives }
}
