//! What an incident is made of: why something is done, how it ends, and why a hold is given back.

use std::collections::BTreeMap;

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
    /// Emergency growth, whatever the processes are.
    #[serde(rename = "E")]
    Emergency,
    /// Raw fork rate.
    #[serde(rename = "R")]
    Raw,
}

/// Why something is done, with the numbers that decided.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// None for an operator's request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detector: Option<Detector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub numbers: BTreeMap<String, u64>,
}

impl Cause {
    /// An operator asked for it.
    #[must_use]
    pub fn operator() -> Self {
        Self::default()
    }
}

/// How an action ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Done and read back.
    Done,
    /// Observe mode or a dry run: all checks passed, the last step was left out.
    WouldDo,
    /// A bystander rule forbids it.
    Refused,
    /// The state is somebody else's: frozen or paused by another.
    NotOurs,
    /// It did not work and was undone.
    Failed,
}

/// A state of a cgroup that lasts until it is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hold {
    Clamp,
    Freeze,
}

impl Hold {
    pub const ALL: [Self; 2] = [Self::Freeze, Self::Clamp];

    /// What a response leaves in force until it is given back.
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
    /// The agent stops in order.
    Shutdown,
    /// Left by an agent that did not stop in order.
    Reconcile,
    /// Somebody else undid it.
    ThawedByOther,
    UnclampedByOther,
    /// A new policy no longer names the guard.
    Unguarded,
}
