//! D: one package, started again and again, and nothing ends. What separates a leak from work.

use super::{Finding, comes_of_age, count, sooner};
use crate::{
    Time,
    incident::Detector,
    policy::Duplicates,
    registry::{Identity, OTHER_IDENTITIES, Registry},
};

/// Findings now, and when they may change by time alone.
pub fn look(now: Time, registry: &Registry, limits: &Duplicates) -> (Vec<Finding>, Option<Time>) {
    let mut findings = Vec::new();
    let mut next = None;
    for (name, identity) in registry.identities() {
        findings.extend(finding(now, name, identity, limits));
        let warns = comes_of_age(now, identity.nth_oldest(limits.warn), limits.warn_age);
        let acts = comes_of_age(now, identity.nth_oldest(limits.act), limits.act_age);
        next = sooner(next, sooner(warns, acts));
    }
    (findings, next)
}

fn finding(now: Time, name: &str, identity: &Identity, limits: &Duplicates) -> Option<Finding> {
    let warned = identity.live_aged(now, limits.warn_age);
    let acting = identity.live_aged(now, limits.act_age);
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
    Some(Finding::new(Detector::Duplicates, Some(name), &numbers, act))
}
