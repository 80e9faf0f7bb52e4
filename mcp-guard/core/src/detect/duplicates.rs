//! D: one package is started again and again, and nothing ends. That separates a leak from work.
//!
//! A copy that is in use is somebody's. Many of those are told, and never acted upon: forty users may have one each.
//! Where use was never known, no copy is in use.

use std::time::Duration;

use super::{Detection, comes_of_age, count, forecast::Room, sooner};
use crate::{
    Time,
    incident::Detector,
    policy::{Duplicates, Response},
    registry::{Identity, OTHER_IDENTITIES},
};

/// Returns the current detection, and when it may change by the passing of time alone.
pub fn look(
    (now, woke): (Time, Time),
    name: &str,
    identity: &Identity,
    limits: &Duplicates,
    room: Option<Room>,
) -> (Option<Detection>, Option<Time>) {
    let awake = |nth: Option<Time>| nth.map(|start| start.max(woke));
    let warns = comes_of_age(now, awake(identity.nth_idlest(limits.warn)), limits.warn_age);
    let acts = comes_of_age(now, awake(identity.nth_idlest(limits.act)), limits.act_age);
    let used = awake(identity.nth_oldest(limits.warn_in_use));
    let used = comes_of_age(now, used, limits.warn_age);
    let detection = detection((now, woke), name, identity, limits);
    let detection = detection.map(|found| with_forecast(now, found, identity, room));
    (detection, sooner(used, sooner(warns, acts)))
}

/// Adds when the limit is reached. The pace is that of all that live.
pub(super) fn with_forecast(
    now: Time,
    mut found: Detection,
    identity: &Identity,
    room: Option<Room>,
) -> Detection {
    let over = identity.nth_oldest(1).map(|oldest| now.since(oldest)).unwrap_or_default();
    found.cause.forecast = room.and_then(|room| room.forecast(identity, identity.live(), over));
    found
}

/// Describes servers of an identity, `aged` of which are at least this old or have been idle for so long.
pub(super) fn found(
    name: &str,
    identity: &Identity,
    (aged, age, threshold): (usize, Duration, usize),
    act: Option<Response>,
) -> Detection {
    let numbers = [
        ("live", count(identity.live())),
        ("aged", count(aged)),
        ("age_ms", u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
        ("threshold", count(threshold)),
        ("starts", identity.starts),
    ];
    Detection::new(Detector::Duplicates, Some(name), &numbers, act)
}

fn detection(
    (now, woke): (Time, Time),
    name: &str,
    identity: &Identity,
    limits: &Duplicates,
) -> Option<Detection> {
    let aged = |age, count: fn(&Identity, Time, Duration) -> usize| {
        if now.since(woke) < age { 0 } else { count(identity, now, age) }
    };
    let warned = aged(limits.warn_age, Identity::launched_idle);
    let acting = aged(limits.act_age, Identity::launched_idle);
    let all = aged(limits.warn_age, Identity::live_aged);
    let acts = acting >= limits.act;
    let (aged, age, threshold) = if acts {
        (acting, limits.act_age, limits.act)
    } else if warned >= limits.warn {
        (warned, limits.warn_age, limits.warn)
    } else if all >= limits.warn_in_use {
        (all, limits.warn_age, limits.warn_in_use)
    } else {
        return None;
    };
    let act = (acts && name != OTHER_IDENTITIES).then_some(limits.response);
    Some(found(name, identity, (aged, age, threshold), act))
}
