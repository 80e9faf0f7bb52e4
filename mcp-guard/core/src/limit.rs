//! A task limit as `pids.max` states it: a number, or "max".

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Tasks that runc needs for a `docker exec`, and so for a health check.
pub const EXEC: u64 = 5;
/// Smallest usable limit. A `docker exec` does not fit below it: it needs runc's own tasks and
/// those of a health check.
pub const LEAST: u64 = 8;
/// Largest limit that the kernel accepts (`PID_MAX_LIMIT`).
pub const MOST: u64 = 4_194_304;
/// Tasks left free above those that run, unless the policy sets `clamp_headroom`.
pub const HEADROOM: u64 = 20;
/// Threads in libuv's pool. Node creates all of them on first use, and aborts if it cannot.
pub const POOL: u64 = 4;

/// Returns the limit that fits `tasks`, the thread pools that `servers` may still create, and
/// `headroom`. Clamps and proposed limits both use this formula.
#[must_use]
pub fn room_for(tasks: u64, servers: u64, headroom: u64) -> u64 {
    tasks.saturating_add(servers.saturating_mul(POOL)).saturating_add(headroom)
}

/// Returns the limit that a clamp writes over `found`, or `None` if that limit already leaves no more than
/// the headroom. A clamp never raises a limit.
#[must_use]
pub fn clamped(found: Limit, tasks: u64, headroom: u64) -> Option<Limit> {
    let room = Limit::Tasks(tasks.saturating_add(headroom));
    (room < found).then_some(room)
}

/// Returns the limit of a clamp that is loosened by this number of tasks: at most the limit `found` before
/// the clamp.
#[must_use]
pub fn loosened(clamp: u64, by: u64, found: Limit) -> Limit {
    Limit::Tasks(clamp.saturating_add(by)).min(found)
}

/// A limit as the kernel writes it: a number or "max". It serializes the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Limit {
    Tasks(u64),
    Max,
}

impl Limit {
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "max" => Some(Self::Max),
            number => number.parse().ok().map(Self::Tasks),
        }
    }

    /// Returns the number of tasks, or `None` for "max".
    #[must_use]
    pub fn tasks(self) -> Option<u64> {
        match self {
            Self::Tasks(tasks) => Some(tasks),
            Self::Max => None,
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tasks(tasks) => write!(f, "{tasks}"),
            Self::Max => f.write_str("max"),
        }
    }
}

impl Serialize for Limit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Tasks(tasks) => serializer.serialize_u64(*tasks),
            Self::Max => serializer.serialize_str("max"),
        }
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Number(u64),
            Word(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Number(tasks) => Ok(Self::Tasks(tasks)),
            Form::Word(word) => Self::parse(&word)
                .ok_or_else(|| D::Error::custom(format!("{word:?} is neither a number nor max"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_below_max() {
        assert!(Limit::Tasks(u64::MAX) < Limit::Max);
        assert_eq!(Limit::Tasks(25).min(Limit::Max).tasks(), Some(25));
    }

    #[test]
    fn a_clamp_only_lowers() {
        for (found, tasks, headroom, expected) in [
            (Limit::Max, 30, 20, Some(50)),
            (Limit::Tasks(51), 30, 20, Some(50)),
            (Limit::Tasks(50), 30, 20, None),
            (Limit::Tasks(25), 30, 20, None),
            (Limit::Tasks(31), 30, 0, Some(30)),
            (Limit::Max, u64::MAX, 20, Some(u64::MAX)),
        ] {
            let expected = expected.map(Limit::Tasks);
            assert_eq!(clamped(found, tasks, headroom), expected, "{found} {tasks} {headroom}");
        }
    }

    #[test]
    fn a_clamp_is_loosened_to_the_limit_before_it_at_most() {
        assert_eq!(loosened(50, 20, Limit::Max), Limit::Tasks(70));
        assert_eq!(loosened(50, 20, Limit::Tasks(60)), Limit::Tasks(60));
        assert_eq!(loosened(u64::MAX, 20, Limit::Max), Limit::Tasks(u64::MAX));
    }

    #[test]
    fn a_limit_survives_a_round_trip() {
        for limit in [Limit::Tasks(25), Limit::Max] {
            let text = serde_json::to_string(&limit).unwrap();
            assert_eq!(serde_json::from_str::<Limit>(&text).unwrap(), limit);
            assert_eq!(Limit::parse(&limit.to_string()), Some(limit));
        }
        assert!(serde_json::from_str::<Limit>("\"many\"").is_err());
    }
}
