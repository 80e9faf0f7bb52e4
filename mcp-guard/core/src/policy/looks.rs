//! How the agent looks at servers.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{DurationText, Fault};

/// How the agent looks at servers: whether they are used, and whether their clients can reach them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Looks {
    /// The time between two looks at a server; 1s to 1h. A look reads a few files of each of its processes. If a connected server is idle, the look also reads files about its descriptors and threads.
    #[serde(with = "DurationText")]
    pub every: Duration,
}

impl Default for Looks {
    fn default() -> Self {
        Self { every: Duration::from_secs(30) }
    }
}

impl Looks {
    pub(super) fn validate(&self) -> Result<(), Fault> {
        let second = Duration::from_secs(1);
        if self.every < second || self.every > Duration::from_secs(3600) {
            return Err(Fault::at("evidence.every", "must lie between 1s and 1h"));
        }
        Ok(())
    }
}
