//! The thresholds of the detectors.

mod servers;
mod tasks;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::{
    servers::{Burning, Burst, CrashLoop, Disconnected, Duplicates, Growth, Herd},
    tasks::{Emergency, Headroom, Raw, Tasks, Zombies},
};
use super::Fault;

/// Thresholds of the detectors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Detect {
    pub duplicates: Duplicates,
    pub burst: Burst,
    pub emergency: Emergency,
    pub raw: Raw,
    pub tasks: Tasks,
    pub growth: Growth,
    pub crash: CrashLoop,
    pub headroom: Headroom,
    pub disconnected: Disconnected,
    pub burning: Burning,
    pub zombies: Zombies,
    pub herd: Herd,
}

impl Detect {
    pub(super) fn validate(&self) -> Result<(), Fault> {
        let Detect {
            duplicates,
            burst,
            emergency,
            raw,
            tasks,
            growth,
            crash,
            headroom,
            zombies,
            herd,
            ..
        } = self;
        let number = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        let at_least_one = [
            ("detect.duplicates.warn", duplicates.warn),
            ("detect.duplicates.warn_in_use", duplicates.warn_in_use),
            ("detect.duplicates.act", duplicates.act),
            ("detect.burst.warn_10s", burst.warn_10s),
            ("detect.burst.warn_60s", burst.warn_60s),
            ("detect.burst.survivors", burst.survivors),
            ("detect.burst.act_rate", burst.act_rate),
            ("detect.growth.warn", growth.warn),
            ("detect.growth.act", growth.act),
            ("detect.crash.warn", crash.warn),
            ("detect.emergency.warn", emergency.warn),
            ("detect.emergency.act", emergency.act),
            ("detect.raw.warn", number(raw.warn)),
            ("detect.tasks.grown_1m", number(tasks.grown_1m)),
            ("detect.tasks.grown_10m", number(tasks.grown_10m)),
            ("detect.tasks.grown_1h", number(tasks.grown_1h)),
            ("detect.headroom.warn_percent", number(headroom.warn_percent)),
            ("detect.zombies.warn", number(zombies.warn)),
            ("detect.zombies.warn_percent", number(zombies.warn_percent)),
            ("detect.herd.warn", herd.warn),
            ("detect.tasks.host_percent", number(tasks.host_percent)),
        ];
        if let Some((key, _)) = at_least_one.iter().find(|(_, value)| *value == 0) {
            return Err(Fault::at(key, "= 0 would fire without a cause; use at least 1"));
        }
        let thresholds = [
            ("detect.duplicates", duplicates.warn, duplicates.act),
            ("detect.emergency", emergency.warn, emergency.act),
            ("detect.growth", growth.warn, growth.act),
        ];
        if let Some((table, warn, act)) = thresholds.iter().find(|(_, warn, act)| act < warn) {
            let why = format!(
                "{table}: act is below warn, {act} below {warn}: a detector warns before it acts"
            );
            return Err(Fault::between([format!("{table}.act"), format!("{table}.warn")], why));
        }
        let second = Duration::from_secs(1);
        if burst.act_for < second || burst.act_for > Duration::from_secs(60) {
            return Err(Fault::at("detect.burst.act_for", "must lie between 1s and 60s"));
        }
        if emergency.within < second || emergency.within > Duration::from_secs(3600) {
            return Err(Fault::at("detect.emergency.within", "must lie between 1s and 1h"));
        }
        self.disconnected.validate()
    }
}
