//! The detectors: pure functions from the state of a guard to detections.

pub mod burning;
pub mod burst;
pub mod crash;
pub mod disconnected;
pub mod duplicates;
pub mod emergency;
pub mod forecast;
pub mod growth;
pub mod headroom;
pub mod herd;
pub mod raw;
pub mod schedule;
pub mod stdio_servers;
pub mod tasks;
pub mod zombies;

use std::time::Duration;

use self::forecast::Room;
use crate::{
    Time,
    incident::{Cause, Detector},
    policy::{Detect, Response},
    registry::Identity,
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
        let (detector, identity) = (Some(detector), identity.map(str::to_owned));
        let cause = Cause { detector, identity, numbers, forecast: None, advice: None };
        Self { cause, act }
    }
}

/// Runs the detectors of one identity. Returns their detections, and when these may change by the
/// passing of time alone. `woke`: when the host last woke from a suspend. Nothing counts as older than that:
/// a server that was started just before a suspend of an hour has not lived for an hour.
pub fn look(
    (now, woke): (Time, Time),
    name: &str,
    identity: &Identity,
    detect: &Detect,
    room: Option<Room>,
) -> (Vec<Detection>, Option<Time>) {
    let (packages, soon) = if identity.is_package() {
        duplicates::look((now, woke), name, identity, &detect.duplicates, room)
    } else {
        (None, None)
    };
    // A package may be installed, too, and be started without a launcher.
    let (others, later) = stdio_servers::look((now, woke), name, identity, detect, room);
    let soon = sooner(soon, later);
    let (burst, later) = burst::look((now, woke), name, identity, &detect.burst);
    let growth = growth::look(now, name, identity, &detect.growth, room);
    let duplicates = packages.or(others);
    (duplicates.into_iter().chain(burst).chain(growth).collect(), sooner(soon, later))
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
