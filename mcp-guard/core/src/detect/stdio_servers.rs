//! D for programs that are no package: `node FILE`, `python -m`, a Go binary. Their idle copies become more and more.
//!
//! It tells of a leak of them long before G does: looks have proved that each copy that counts is a stdio server, that
//! nothing but its client can give it work, and that it had none for half a minute. It must not be raised by a pool,
//! whose workers may be idle stdio servers just as well. A pool does not grow steadily. Nor must it be raised by
//! consumers of a queue, or by servers with a port: they have a connection, or accept some.
//!
//! It only warns. Users who pause leave idle servers too, one each, and become more just as steadily. To act at a number
//! that no such gateway reaches is left to G.
//!
//! The numbers are those of D. What is steady is the same as for G.

use super::{Detection, comes_of_age, duplicates, forecast::Room, growth};
use crate::{Time, policy::Detect, registry::Identity};

/// Most of the servers are idle, so that it is they that became more: one in this many, at least.
const SHARE: usize = 2;

/// Returns the current detection, and when it may change by the passing of time alone.
pub fn look(
    (now, woke): (Time, Time),
    name: &str,
    identity: &Identity,
    detect: &Detect,
    room: Option<Room>,
) -> (Option<Detection>, Option<Time>) {
    let (least, age) = (detect.duplicates.warn, detect.duplicates.warn_age);
    let nth = identity.nth_proven(least).map(|since| since.max(woke));
    let idle = if now.since(woke) < age { 0 } else { identity.proven_idle(now, age) };
    if idle < least {
        return (None, comes_of_age(now, nth, age));
    }
    // A growth becomes steady, and ceases to be, while nothing starts or ends.
    let again = Some(identity.proofs_end()).filter(|end| *end > now);
    if idle * SHARE < identity.live() || !growth::is_steady(now, identity, least, &detect.growth) {
        return (None, again);
    }
    let found = duplicates::found(name, identity, (idle, age, least), None);
    (Some(duplicates::with_forecast(now, found, identity, room)), again)
}
