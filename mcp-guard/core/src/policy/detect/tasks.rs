//! The thresholds of the detectors that count processes or tasks of any kind.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::{DurationText, Response};

/// E: growth in the number of live processes of any kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Emergency {
    /// The detector warns if the number of processes has grown by this much during the time
    /// `within`.
    pub warn: usize,
    /// The detector acts if the number of processes has grown by this much during the time
    /// `within`.
    pub act: usize,
    /// The time over which growth is measured; 1s to 1h.
    #[serde(with = "DurationText")]
    pub within: Duration,
    /// How old a process must be to count.
    #[serde(with = "DurationText")]
    pub age: Duration,
    /// The response when the detector acts.
    pub response: Response,
}

impl Default for Emergency {
    fn default() -> Self {
        Self {
            warn: 100,
            act: 300,
            within: Duration::from_secs(60),
            age: Duration::from_secs(10),
            response: Response::Freeze,
        }
    }
}

/// R: the rate of process forks. It only warns, because harmless work can fork faster than any
/// leak.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Raw {
    /// The number of process forks per second at which the detector warns.
    pub warn: u64,
    /// How long the number of process forks per second must stay at or above `warn`.
    #[serde(rename = "for", with = "DurationText")]
    pub sustained: Duration,
}

impl Default for Raw {
    fn default() -> Self {
        Self { warn: 2000, sustained: Duration::from_secs(10) }
    }
}

/// T: growth in the number of tasks, threads included. It measures the floor: the lowest number of
/// tasks during the last 10 s. It warns when one of the numbers in this table is reached, and acts
/// at twice that number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Tasks {
    /// The growth of the floor within one minute at which the detector warns, in tasks.
    pub grown_1m: u64,
    /// The growth of the floor within ten minutes at which the detector warns, in tasks.
    pub grown_10m: u64,
    /// The growth of the floor within one hour at which the detector warns, in tasks.
    pub grown_1h: u64,
    /// The floor at which the detector warns, as a percentage of the tasks that the host can have
    /// (the lower of `kernel.pid_max` and `kernel.threads-max`).
    pub host_percent: u64,
    /// The response when the detector acts.
    pub response: Response,
}

impl Default for Tasks {
    fn default() -> Self {
        Self {
            grown_1m: 500,
            grown_10m: 1000,
            grown_1h: 2000,
            host_percent: 25,
            response: Response::Clamp,
        }
    }
}

/// H: the tasks of a container come close to its limit. It judges the floor, as `[detect.tasks]` does, and only
/// warns. It judges nothing while mcp-guard clamps or freezes the container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Headroom {
    /// The floor at which the detector warns, as a percentage of the limit in force.
    pub warn_percent: u64,
}

impl Default for Headroom {
    fn default() -> Self {
        Self { warn_percent: 80 }
    }
}

/// Z: processes that have ended and that their parent does not reap. It only warns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Zombies {
    /// The number of zombies, in each of two counts in a row, at which the detector warns. The time between two
    /// counts is `[evidence] every`.
    pub warn: u64,
    /// The detector also warns at fewer zombies than `warn`, if they are at least 5 and fill this percentage of the
    /// limit.
    pub warn_percent: u64,
}

impl Default for Zombies {
    fn default() -> Self {
        Self { warn: 20, warn_percent: 5 }
    }
}
