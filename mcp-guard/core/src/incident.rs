//! The parts of an incident: its cause, its outcome, and why a hold ended.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::policy::Response;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Detector {
    /// Live duplicates of one identity.
    #[serde(rename = "D")]
    Duplicates,
    /// Start burst of one identity.
    #[serde(rename = "B")]
    Burst,
    /// Emergency growth of processes of any kind.
    #[serde(rename = "E")]
    Emergency,
    /// Raw fork rate.
    #[serde(rename = "R")]
    Raw,
    /// Growth of the number of tasks, including threads.
    #[serde(rename = "T")]
    Tasks,
    /// Growth of one identity.
    #[serde(rename = "G")]
    Growth,
    /// Crash loop of one identity.
    #[serde(rename = "C")]
    Crash,
    /// Servers of one identity that nobody can reach.
    #[serde(rename = "O")]
    Disconnected,
    /// Such servers that use much of a CPU.
    #[serde(rename = "K")]
    Burning,
    /// Little is left of the limit.
    #[serde(rename = "H")]
    Headroom,
    /// Zombies pile up.
    #[serde(rename = "Z")]
    Zombies,
    /// Containers of one image whose clients are gone.
    #[serde(rename = "N")]
    Herd,
}

impl fmt::Display for Detector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Duplicates => "Duplicates",
            Self::Burst => "Burst",
            Self::Emergency => "Emergency",
            Self::Raw => "Raw",
            Self::Tasks => "Tasks",
            Self::Growth => "Growth",
            Self::Crash => "Crash",
            Self::Disconnected => "Disconnected",
            Self::Burning => "Burning",
            Self::Headroom => "Headroom",
            Self::Zombies => "Zombies",
            Self::Herd => "Herd",
        })
    }
}

/// Why something is done, with the numbers that led to the decision.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// `None` for an operator's request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detector: Option<Detector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub numbers: BTreeMap<String, u64>,
    /// When it reaches a limit, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forecast: Option<String>,
    /// The cause of the problem and what helps, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Cause {
    /// Returns the cause of an operator's request.
    #[must_use]
    pub fn operator() -> Self {
        Self::default()
    }
}

/// How an action ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Done, and verified by reading it back.
    Done,
    /// Written and in force, but tasks have not stopped or ended yet. `Done` follows when they have.
    Requested,
    /// The hold ended before the kernel confirmed it, or the order before its cgroup was checked.
    NotNeeded,
    /// Observe mode or a dry run: all checks passed, and the last step was skipped.
    WouldDo,
    /// A bystander rule forbids it.
    Refused,
    /// The state is not ours to change: for example, another process froze or paused the cgroup.
    NotOurs,
    /// It failed and was undone.
    Failed,
}

/// A state of a cgroup that lasts until it is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hold {
    Clamp,
    Freeze,
}

impl Hold {
    pub const ALL: [Self; 2] = [Self::Freeze, Self::Clamp];

    /// Returns the hold that a response leaves in force.
    #[must_use]
    pub fn of(response: Response) -> Option<Self> {
        match response {
            Response::Record | Response::Kill => None,
            Response::Clamp => Some(Self::Clamp),
            Response::Freeze => Some(Self::Freeze),
        }
    }
}

impl From<Hold> for Response {
    fn from(hold: Hold) -> Self {
        match hold {
            Hold::Clamp => Self::Clamp,
            Hold::Freeze => Self::Freeze,
        }
    }
}

/// Why a hold ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    LeaseOver,
    Operator,
    /// The agent shut down cleanly.
    Shutdown,
    /// Left behind by an agent that did not shut down cleanly.
    Reconcile,
    /// Another process thawed it.
    ThawedByOther,
    /// Another process overwrote the limit.
    UnclampedByOther,
    /// The owner of a limit made a write of ours that was not waited for any more. The clamp is repeated.
    LateWrite,
    /// A new policy no longer names the guard.
    Unguarded,
}
