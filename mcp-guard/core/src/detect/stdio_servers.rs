//! D for programs that are no package: `node FILE`, `python -m`, a Go binary. Their idle copies become more and more.
//!
//! It catches a leak of them long before G acts: looks have proved that each copy that counts is a stdio server, that
//! nothing but its client can give it work, and that it had none for a minute. It must not be raised by a pool, whose
//! workers may be idle stdio servers just as well. A pool does not grow steadily, so D acts here only on what G would
//! warn about, by other numbers. Nor must it be raised by consumers of a queue, or by servers with a port: they have
//! a connection, or accept some.
//!
//! The numbers are those of D. What is steady is the same as for G.

use super::{Detection, comes_of_age, count, forecast::Room, growth, sooner};
use crate::{
    Time,
    incident::Detector,
    policy::Detect,
    registry::{Identity, OTHER_IDENTITIES},
};

/// Returns the current detection, and when it may change by the passing of time alone.
pub fn look(
    (now, woke): (Time, Time),
    name: &str,
    identity: &Identity,
    detect: &Detect,
    room: Option<Room>,
) -> (Option<Detection>, Option<Time>) {
    let limits = &detect.duplicates;
    let steps = [(limits.act, limits.act_age, true), (limits.warn, limits.warn_age, false)];
    let later = steps.map(|(least, age, _)| {
        let nth = identity.nth_proven(least).map(|since| since.max(woke));
        comes_of_age(now, nth, age)
    });
    let found = steps.into_iter().find_map(|(least, age, acts)| {
        let idle = if now.since(woke) < age { 0 } else { identity.proven_idle(now, age) };
        let is_it = idle >= least && growth::is_steady(now, identity, least, acts, &detect.growth);
        is_it.then_some((idle, least, age, acts))
    });
    let detection = found.map(|(idle, least, age, acts)| {
        let numbers = [
            ("live", count(identity.live())),
            ("aged", count(idle)),
            ("age_ms", u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
            ("threshold", count(least)),
            ("starts", identity.starts),
        ];
        let act = (acts && name != OTHER_IDENTITIES).then_some(limits.response);
        let mut found = Detection::new(Detector::Duplicates, Some(name), &numbers, act);
        let over = identity.nth_oldest(1).map(|oldest| now.since(oldest)).unwrap_or_default();
        found.cause.forecast = room.and_then(|room| room.forecast(identity, identity.live(), over));
        found
    });
    let [acts, warns] = later;
    (detection, sooner(acts, warns))
}
