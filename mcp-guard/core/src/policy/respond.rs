//! How responses are carried out.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{DurationText, Fault, ServerResponse};
use crate::limit::HEADROOM;

/// How responses are carried out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Respond {
    /// The number of tasks that a clamp leaves free, in addition to four for each live server. The
    /// smallest value is 8.
    pub clamp_headroom: u64,
    /// How long a clamp lasts. It is renewed while a detector still asks for it.
    #[serde(with = "DurationText")]
    pub clamp_lease: Duration,
    /// How long a freeze lasts.
    #[serde(with = "DurationText")]
    pub freeze_lease: Duration,
    /// How long detectors wait. After an operator's `thaw`, or after another program has thawed the
    /// container, no detector acts on it for this time. Within one episode, a detector waits this
    /// long before it acts again: after its hold has ended, after its response has failed or was
    /// refused, and after another program has overwritten its clamp.
    #[serde(with = "DurationText")]
    pub cool_down: Duration,
    /// The strongest response to a single server: `record`, `suspend` or `reap`. With `suspend`, detector D suspends
    /// surplus servers that are quiescent, and clamps only if these are less than half of the surplus. With `reap`,
    /// detector O also ends servers that nobody can reach. `highest` does not apply to this.
    pub servers: ServerResponse,
    /// How many of the newest servers of an identity are never suspended.
    pub keep: usize,
    /// Most suspended servers of one identity. If more are too many, detector D clamps the container.
    pub suspended_max: usize,
}

impl Default for Respond {
    fn default() -> Self {
        Self {
            clamp_headroom: HEADROOM,
            clamp_lease: Duration::from_secs(600),
            freeze_lease: Duration::from_secs(300),
            cool_down: Duration::from_secs(60),
            servers: ServerResponse::default(),
            keep: 1,
            suspended_max: 50,
        }
    }
}

impl Respond {
    pub(super) fn validate(&self) -> Result<(), Fault> {
        if self.clamp_headroom < 8 {
            return Err(Fault::at(
                "respond.clamp_headroom",
                "is below 8: an exec'd health check could not run and node would abort",
            ));
        }
        let bounds = Duration::from_secs(1)..=Duration::from_secs(86_400);
        for (key, lease) in
            [("respond.clamp_lease", self.clamp_lease), ("respond.freeze_lease", self.freeze_lease)]
        {
            if !bounds.contains(&lease) {
                return Err(Fault::at(key, "must lie between 1s and 1day"));
            }
        }
        Ok(())
    }
}
