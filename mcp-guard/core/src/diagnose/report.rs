//! What a diagnosis says. JSON is these types' own; `null` for a limit means that there is none.

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
    /// What the compose file says, else what the engine was told.
    pub declared: Option<u64>,
    /// The least limit from the target's cgroup up to the root.
    pub effective_limit: Option<u64>,
    /// What is wrong, in the order in which it must be fixed.
    pub findings: Vec<Finding>,
    /// What needs no action of its own: look-alikes, and signs of a finding.
    pub ok: Vec<Fine>,
    pub unreadable: Vec<Unreadable>,
    /// The places a limit can be in, from the compose file to the kernel.
    pub places: Vec<Place>,
    pub charged: Charged,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sizing: Option<Sizing>,
    /// What one should know beside pids.
    pub notes: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    Enforced,
    NotEnforced,
    /// In force, and more tasks than it allows.
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
    /// The verdict in one sentence.
    pub title: String,
    pub evidence: Vec<Evidence>,
    /// Look-alikes, and what speaks against each.
    pub ruled_out: Vec<String>,
    pub repair: RepairAdvice,
}

/// One thing that was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    pub what: String,
    /// A file, or a field of an API.
    pub r#where: String,
    pub value: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairAdvice {
    /// Whether the command mends it at once, without making the container anew.
    pub possible: bool,
    /// Who keeps the value that must change.
    pub owner: Keeper,
    pub command: String,
    /// What the repair outlives: "container restart", "daemon-reload", "reboot", "recreate".
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
    /// The number does not come through from the place before to this one.
    pub breaks: bool,
}

words! {
    /// The layers that a limit passes on its way into the kernel, in that order.
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
    /// Who keeps the value that a repair must change.
    Keeper {
        /// Nothing is to be changed.
        Nobody "",
        Host "host",
        Systemd "systemd",
        Lxc "LXC",
        Kubelet "kubelet",
        CgroupMaker "whoever made that cgroup",
        Engine "engine",
        Runtime "runtime",
        Swarm "swarm",
        /// The engine that a client talks to.
        Context "context",
        Compose "compose",
        ComposeFile "compose file",
        ComposeTool "compose tool",
        ImageOrComposeFile "image or compose file",
        ContainerConfig "container's configuration",
        OtherContainer "that container",
        Operator "operator",
        ContainerMaker "whoever made it",
        ContainerStarter "whoever starts them",
        ProcessStarter "whoever started them",
        ProcessMover "whoever moved them",
        ExecCaller "whoever runs docker exec",
        LimitLowerer "whoever lowered it",
    }
}

/// What counts against the limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Charged {
    /// `pids.current`.
    pub tasks: Option<u64>,
    pub processes: u64,
    pub zombies: u64,
    /// Processes that came in from outside, the first process left out.
    pub moved_in: u64,
    /// Seen in the pid namespace, and not charged here.
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

    /// What one command mends at once.
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

    /// What only its owner can do.
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
