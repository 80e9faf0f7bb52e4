//! Whether decisions change the host, and how strongly.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Whether decisions change the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Do everything up to the last step, which is recorded but not done.
    #[default]
    Observe,
    Enforce,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Observe => "observe",
            Self::Enforce => "enforce",
        })
    }
}

/// The strongest response to a single server, mildest first. Responses to the container are bounded by `highest`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum ServerResponse {
    #[default]
    Record,
    /// Freeze a surplus server alone until its client asks it.
    Suspend,
    /// End a server that nobody can reach.
    Reap,
}

impl fmt::Display for ServerResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Record => "record",
            Self::Suspend => "suspend",
            Self::Reap => "reap",
        })
    }
}

/// Responses to a detection, mildest first. The order is that of escalation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Response {
    Record,
    Clamp,
    Freeze,
    Kill,
}

impl fmt::Display for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Record => "record",
            Self::Clamp => "clamp",
            Self::Freeze => "freeze",
            Self::Kill => "kill",
        })
    }
}
