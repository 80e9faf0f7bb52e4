//! B: many starts of one package in a short time. A healthy gateway that ends each server does this
//! too, so the detector acts only if servers stay alive, or if the rate is that of a storm.

use std::time::Duration;

use super::{Detection, comes_of_age, count};
use crate::{
    Time,
    incident::Detector,
    policy::Burst,
    registry::{Identity, OTHER_IDENTITIES},
};

/// Returns the current detection, and when it may change by the passing of time alone.
pub fn look(
    (now, woke): (Time, Time),
    name: &str,
    identity: &Identity,
    limits: &Burst,
) -> (Option<Detection>, Option<Time>) {
    let detection = detection((now, woke), name, identity, limits);
    let survivor = detection.as_ref().and_then(|_| identity.nth_oldest(limits.survivors));
    let awake = survivor.map(|start| start.max(woke));
    (detection, comes_of_age(now, awake, limits.survivor_age))
}

fn detection(
    (now, woke): (Time, Time),
    name: &str,
    identity: &Identity,
    limits: &Burst,
) -> Option<Detection> {
    let ten = identity.starts_within(now, Duration::from_secs(10));
    let sixty = identity.starts_within(now, Duration::from_secs(60));
    let storm = is_storm(now, identity, limits);
    let burst = ten >= limits.warn_10s || sixty >= limits.warn_60s;
    if !burst && !storm {
        return None;
    }
    let is_awake = now.since(woke) >= limits.survivor_age;
    // By age, whether they are in use or not: a server of a few seconds is always at work.
    let survivors = if is_awake { identity.live_aged(now, limits.survivor_age) } else { 0 };
    let numbers = [
        ("starts_1s", count(identity.starts_in_second(now, 0))),
        ("starts_10s", count(ten)),
        ("starts_60s", count(sixty)),
        ("survivors", count(survivors)),
        ("live", count(identity.live())),
    ];
    let acts = (survivors >= limits.survivors || storm) && name != OTHER_IDENTITIES;
    let act = acts.then_some(limits.response);
    Some(Detection::new(Detector::Burst, Some(name), &numbers, act))
}

fn is_storm(now: Time, identity: &Identity, limits: &Burst) -> bool {
    (0..limits.act_for.as_secs())
        .all(|second| identity.starts_in_second(now, second) >= limits.act_rate)
}
