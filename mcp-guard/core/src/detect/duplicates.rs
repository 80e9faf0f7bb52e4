//! D: one package is started again and again, and nothing ends. That separates a leak from work.

use super::{Detection, comes_of_age, count, sooner};
use crate::{
    Time,
    incident::Detector,
    policy::Duplicates,
    registry::{Identity, OTHER_IDENTITIES},
};

/// Returns the current detection, and when it may change by the passing of time alone.
pub fn look(
    (now, woke): (Time, Time),
    name: &str,
    identity: &Identity,
    limits: &Duplicates,
) -> (Option<Detection>, Option<Time>) {
    let awake = |n| identity.nth_oldest_launched(n).map(|start| start.max(woke));
    let warns = comes_of_age(now, awake(limits.warn), limits.warn_age);
    let acts = comes_of_age(now, awake(limits.act), limits.act_age);
    (detection((now, woke), name, identity, limits), sooner(warns, acts))
}

fn detection(
    (now, woke): (Time, Time),
    name: &str,
    identity: &Identity,
    limits: &Duplicates,
) -> Option<Detection> {
    let aged = |age| if now.since(woke) < age { 0 } else { identity.launched_aged(now, age) };
    let (warned, acting) = (aged(limits.warn_age), aged(limits.act_age));
    let acts = acting >= limits.act;
    if warned < limits.warn && !acts {
        return None;
    }
    let (aged, age, threshold) = if acts {
        (acting, limits.act_age, limits.act)
    } else {
        (warned, limits.warn_age, limits.warn)
    };
    let numbers = [
        ("live", count(identity.live())),
        ("aged", count(aged)),
        ("age_ms", u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
        ("threshold", count(threshold)),
        ("starts", identity.starts),
    ];
    let act = (acts && name != OTHER_IDENTITIES).then_some(limits.response);
    Some(Detection::new(Detector::Duplicates, Some(name), &numbers, act))
}
