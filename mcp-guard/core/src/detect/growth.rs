//! G: more and more servers of one identity live, at any pace.
//!
//! It looks at how many lived at a time, at most, before each of those that live now was started. If that rose
//! steadily, up to a number that was never reached before, some of the servers stay: all of them, or one session of
//! five. Only what lives is remembered, a pace of one a minute and one of nine a day are the same, and a restart of
//! the agent loses nothing but the ends before it.
//!
//! It catches a leak of any program that D does not act on: `node FILE`, `python -m`, `uv run`, `docker run`, a
//! browser, a Go binary. It also acts on packages whose copies are never idle. It must not be raised by a pool that
//! starts at once and stays, by load that comes and goes, by servers of sessions that end, by servers that replace
//! each other, or by a build: none of them goes beyond what it reached before.
//!
//! The numbers: real leaks start 9 a day to 6 a minute. Forty users with a server each, or an autoscaler, stay below
//! `act`.

use std::time::Duration;

use super::{Detection, count, forecast::Room};
use crate::{
    Time,
    incident::Detector,
    policy::Growth,
    registry::{Identity, OTHER_IDENTITIES},
};

/// The period is cut into ten parts. In this many of them, more must have lived than ever before.
const RISING_TO_WARN: u32 = 5;
const RISING_TO_ACT: u32 = 6;
const PARTS: u32 = 10;
/// The shortest period. A pool may take minutes to start, and what is faster is for the other detectors.
const SHORTEST: Duration = Duration::from_secs(600);
/// How many periods are tried, each with half as much growth more: from 60 up to 1,000.
const TRIES: u32 = 8;
/// A period that is longer than the one before by less than this part of it shows nothing new.
const LONGER_BY: u32 = 4;
/// This share of the growth must have been seen since the ends are known: after a restart, a pool whose servers
/// replace each other looks like a leak.
const KNOWN_SHARE: usize = 6;

/// `room`: what the guard has left until its limit.
pub fn look(
    now: Time,
    name: &str,
    identity: &Identity,
    limits: &Growth,
    room: Option<Room>,
) -> Option<Detection> {
    let steady = |least: usize, rising| steady(now, identity, (least, rising), limits);
    let acts = steady(limits.act, RISING_TO_ACT);
    // D warns about packages, and acts on those that are idle. Copies that leak and have a timer never are.
    let is_package = identity.is_all_launched();
    let warns = || steady(limits.warn, RISING_TO_WARN).filter(|_| !is_package);
    let Steady { grown, over } = acts.or_else(warns)?;
    let numbers = [
        ("live", count(identity.live())),
        ("grown", count(grown)),
        ("within_s", over.as_secs()),
        ("starts", identity.starts),
    ];
    let act = (acts.is_some() && name != OTHER_IDENTITIES).then_some(limits.response);
    let mut detection = Detection::new(Detector::Growth, Some(name), &numbers, act);
    detection.cause.forecast = room.and_then(|room| room.forecast(identity, grown, over));
    Some(detection)
}

/// Returns whether there is a growth by at least `least` servers that is steady enough to warn.
pub fn is_steady(now: Time, identity: &Identity, least: usize, limits: &Growth) -> bool {
    steady(now, identity, (least, RISING_TO_WARN), limits).is_some()
}

#[derive(Clone, Copy)]
struct Steady {
    grown: usize,
    over: Duration,
}

/// Returns the steady growth by at least `least` servers, if there is one. A leak may come in bursts, which only show
/// as steady in a longer period.
fn steady(
    now: Time,
    identity: &Identity,
    (least, rising): (usize, u32),
    limits: &Growth,
) -> Option<Steady> {
    let longest = now.since(identity.nth_oldest(1)?);
    let (mut wanted, mut shortest) = (least, SHORTEST);
    for _ in 0..TRIES {
        if shortest > longest {
            return None;
        }
        let before = height(identity).checked_sub(wanted)?;
        let from = identity.began_within(before)?.min(now.before(SHORTEST));
        let over = now.since(from);
        if over > limits.within {
            return None;
        }
        if over >= shortest {
            let grown = grown_since(identity, from);
            if is_known(identity, from, grown) && rises(identity, from, over, rising) {
                return Some(Steady { grown, over });
            }
            shortest = over + over / LONGER_BY;
        }
        wanted = wanted.saturating_add(wanted.div_ceil(2));
    }
    None
}

/// Returns the number that was reached. Sessions come and go, so it is that of the last peak until half of the
/// servers have ended.
fn height(identity: &Identity) -> usize {
    let (live, peak) = (identity.live(), identity.peak());
    if live >= peak.div_ceil(2) { peak } else { live }
}

/// Returns by how many more servers it is than had lived at a time before.
fn grown_since(identity: &Identity, from: Time) -> usize {
    let before = identity.peak_before(from).unwrap_or(identity.peak());
    height(identity).saturating_sub(before)
}

/// Returns whether more lived than ever before in `rising` parts of the period. The latest parts are looked at
/// first: of a pool that stays, they tell soon enough.
fn rises(identity: &Identity, from: Time, over: Duration, rising: u32) -> bool {
    let part = over / PARTS;
    let (mut later, mut missing) = (identity.peak(), 0);
    for at in (0..PARTS).rev() {
        let peak = identity.peak_before(from.after(part * at)).unwrap_or(later);
        missing += u32::from(peak >= later);
        later = peak;
        if missing > PARTS - rising {
            return false;
        }
    }
    true
}

/// Returns whether enough of a growth happened while ends were known.
fn is_known(identity: &Identity, from: Time, grown: usize) -> bool {
    let watched = identity.watched();
    watched <= from || grown_since(identity, watched) * KNOWN_SHARE >= grown
}

#[cfg(test)]
mod tests;
