//! G: servers of one identity start again and again and stay, at any pace.
//!
//! It looks at the servers that live now, youngest first: as many as make a leak must have started steadily, and few
//! others may have ended meanwhile. Start times are enough for that, so nothing is remembered, a pace of one a
//! minute and one of nine a day are the same, and a restart of the agent loses nothing but the ends before it.
//!
//! It catches a leak of any program that D does not count: `node FILE`, `python -m`, `uv run`, `docker run`, a
//! browser, a Go binary. It must not be raised by a pool that starts at once and stays, by load that comes and goes,
//! by servers that replace each other, or by a build. If a number of servers has been reached before and has fallen
//! again by itself, reaching it again is no growth.
//!
//! The numbers: real leaks start 9 a day to 6 a minute, and end none. Forty users with a server each, or an
//! autoscaler, stay below `act`.

use std::time::Duration;

use super::{Detection, count, forecast::Room};
use crate::{
    Time,
    incident::Detector,
    policy::Growth,
    registry::{Identity, OTHER_IDENTITIES},
};

/// The period is cut into ten parts. In this many of them, a server must have started that lives.
const RISING_TO_WARN: u32 = 5;
const RISING_TO_ACT: u32 = 6;
const PARTS: u32 = 10;
/// The shortest period. A pool may take minutes to start, and what is faster is for the other detectors.
const SHORTEST: Duration = Duration::from_secs(600);
/// How many periods are tried, each with half as many servers more: from 60 up to 1,000.
const TRIES: u32 = 8;
/// This share of those that stay must have started since their ends are known: after a restart, a pool whose
/// servers replace each other looks like a leak.
const KNOWN_SHARE: usize = 6;

/// `room`: what the guard has left until its limit.
pub fn look(
    now: Time,
    name: &str,
    identity: &Identity,
    limits: &Growth,
    room: Option<Room>,
) -> Option<Detection> {
    // D counts them: ten copies of a package are a leak at every pace.
    if identity.is_all_launched() {
        return None;
    }
    // Load that comes every day and goes again is no leak.
    let steady = |least: usize, rising| {
        let is_higher = identity.live() >= identity.usual() + least;
        is_higher.then(|| steady(now, identity, (least, rising), limits)).flatten()
    };
    let acts = steady(limits.act, RISING_TO_ACT);
    let warns = || steady(limits.warn, RISING_TO_WARN);
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
    let mut wanted = least;
    for _ in 0..TRIES {
        let from = identity.nth_youngest(wanted)?.min(now.before(SHORTEST));
        let over = now.since(from);
        if over > limits.within {
            return None;
        }
        let grown = identity.stayed_since(from);
        let is_long = over >= SHORTEST;
        if is_long && stays(identity, from, grown) && rises(identity, from, over, rising) {
            return Some(Steady { grown, over });
        }
        wanted = wanted.saturating_add(wanted.div_ceil(2));
    }
    None
}

/// Returns whether a server that lives started in `rising` parts of the period. The latest parts are looked at first:
/// of a pool that stays, they tell soon enough.
fn rises(identity: &Identity, from: Time, over: Duration, rising: u32) -> bool {
    let part = over / PARTS;
    let (mut later, mut missing) = (0, 0);
    for at in (0..PARTS).rev() {
        let stayed = identity.stayed_since(from.after(part * at));
        missing += u32::from(stayed == later);
        later = stayed;
        if missing > PARTS - rising {
            return false;
        }
    }
    true
}

/// Returns whether fewer than a fifth of the starts have ended, as far as that is known.
fn stays(identity: &Identity, from: Time, grown: usize) -> bool {
    let from = from.max(identity.watched());
    let stayed = identity.stayed_since(from);
    let ended = identity.ended_since(from);
    stayed * KNOWN_SHARE >= grown && ended * 4 < count(stayed)
}

#[cfg(test)]
mod tests;
