//! The detectors: pure functions from the state of a guard to detections.

pub mod burst;
pub mod duplicates;
pub mod emergency;
pub mod raw;

use std::time::Duration;

use crate::{
    Time,
    incident::{Cause, Detector},
    policy::Response,
};

/// A detector's current result.
#[derive(Clone, Debug, PartialEq)]
pub struct Detection {
    pub cause: Cause,
    /// The response that it asks for; `None` if it only warns.
    pub act: Option<Response>,
}

impl Detection {
    fn new(
        detector: Detector,
        identity: Option<&str>,
        numbers: &[(&str, u64)],
        act: Option<Response>,
    ) -> Self {
        let numbers = numbers.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        let cause =
            Cause { detector: Some(detector), identity: identity.map(str::to_owned), numbers };
        Self { cause, act }
    }
}

/// Returns the earlier of two deadlines.
pub fn sooner(a: Option<Time>, b: Option<Time>) -> Option<Time> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// Returns when something that began at `start` reaches `age`, if that is still to come.
fn comes_of_age(now: Time, start: Option<Time>, age: Duration) -> Option<Time> {
    start.map(|start| start.after(age)).filter(|moment| *moment > now)
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
