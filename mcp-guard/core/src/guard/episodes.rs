//! The episodes of one guard: what its detectors found, and which responses followed. Each episode
//! warns once and acts once.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use crate::{
    Time,
    detect::Detection,
    incident::{Cause, Detector},
    policy::Response,
    warnings::Budget,
};

/// How long a detector must be silent before its episode ends. The next episode may warn again.
const QUIET: Duration = Duration::from_secs(30);
/// How often an episode acts. A person must look at what three holds did not end.
const MOST_TIMES: u32 = 3;
/// How far apart episodes ask again that wait for the response of another one. Otherwise each of a thousand packages
/// would ask each second.
const TURN: Duration = Duration::from_secs(1);
/// The longest line of such episodes. The rest ask together with others.
const MOST_TURNS: u32 = 60;

/// Whether what an episode has done so far counts towards [`MOST_TIMES`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Count {
    GoesOn,
    BeginsAgain,
}

#[derive(Clone, Debug)]
struct Episode {
    last_seen: Time,
    /// Its warning was issued. A guard issues a limited number of warnings per hour.
    warned: bool,
    /// The response that it asked for when it acted.
    acted: Option<Response>,
    /// How often it has acted. A hold of an operator that answers it is not among them.
    times: u32,
    /// Its detector currently asks for a response.
    acting: bool,
    /// Earliest retry of a response that was refused or not ours.
    not_before: Time,
    /// When it asks again if it has to wait.
    turn: Time,
}

/// The consequences of a detection.
#[derive(Clone, Debug, Default)]
pub(super) struct Follows {
    pub warn: Option<Cause>,
    pub respond: Option<Response>,
    /// When to ask for the response, if it is too early now.
    pub respond_at: Option<Time>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Episodes {
    episodes: BTreeMap<(Detector, Option<String>), Episode>,
    warnings: Budget,
    /// No response is asked for before this time.
    not_before: Time,
    /// Earliest retry per failed response. A clamp may fail forever, and must not delay other
    /// responses.
    retry_at: BTreeMap<Response, Time>,
    /// How many episodes have begun to wait since the last response.
    waiting: u32,
}

impl Episodes {
    /// Records that `detectors` ran again for this identity, or for the guard as a whole. Their
    /// detections follow in [`Episodes::note`].
    pub fn looked(&mut self, detectors: &[Detector], identity: Option<&str>) {
        for detector in detectors {
            let key = (*detector, identity.map(str::to_owned));
            if let Some(episode) = self.episodes.get_mut(&key) {
                episode.acting = false;
            }
        }
    }

    pub fn detectors(&self) -> impl Iterator<Item = Detector> {
        self.episodes.keys().map(|(detector, _)| *detector)
    }

    /// Returns the identities that have an episode.
    pub fn identities(&self) -> BTreeSet<Arc<str>> {
        self.episodes
            .keys()
            .filter_map(|(_, identity)| identity.as_deref())
            .map(Arc::from)
            .collect()
    }

    /// Updates the episode of one detection. `highest`: the strongest response that the guard's
    /// terms allow. `is_operators`: an operator has made that response already.
    pub fn note(
        &mut self,
        now: Time,
        detection: &Detection,
        highest: Response,
        is_operators: impl Fn(Response) -> bool,
    ) -> Follows {
        let Detection { cause, act } = detection;
        let mut follows = Follows::default();
        let Some(detector) = cause.detector else { return follows };
        let key = (detector, cause.identity.clone());
        let episode = self.episodes.entry(key).or_insert(Episode {
            last_seen: now,
            warned: false,
            acted: None,
            times: 0,
            acting: false,
            not_before: now,
            turn: now,
        });
        if !episode.warned {
            follows.warn = self.warnings.spend(now, cause);
            episode.warned = follows.warn.is_some();
        }
        episode.last_seen = now;
        episode.acting = act.is_some();
        if let Some(response) = act.filter(|_| episode.acted.is_none()) {
            let response = response.min(highest);
            let retry_at = self.retry_at.get(&response).copied().unwrap_or_default();
            let earliest = retry_at.max(self.not_before).max(episode.not_before);
            if now < earliest {
                if episode.turn < earliest {
                    episode.turn = earliest.after(TURN * self.waiting.min(MOST_TURNS));
                    self.waiting = self.waiting.saturating_add(1);
                }
                follows.respond_at = Some(episode.turn);
            } else {
                self.waiting = 0;
                episode.acted = Some(response);
                episode.times = episode.times.saturating_add(u32::from(!is_operators(response)));
                follows.respond = Some(response);
            }
        }
        follows
    }

    /// Ends the episodes whose detectors have been silent long enough.
    pub fn forget_quiet(&mut self, now: Time) {
        self.episodes.retain(|_, episode| {
            let lasts = now.since(episode.last_seen) < QUIET;
            if !lasts && !episode.warned {
                self.warnings.withhold();
            }
            lasts
        });
    }

    /// Lets episodes act again if `by` returns true for the response that they asked for.
    pub fn act_again(&mut self, count: Count, by: impl Fn(Response) -> bool) {
        for episode in self.episodes.values_mut() {
            if count == Count::BeginsAgain || episode.times < MOST_TIMES {
                episode.acted = episode.acted.filter(|response| !by(*response));
            }
        }
    }

    /// Lets episodes that asked for `response` ask again after `at`. Other episodes do not wait.
    pub fn ask_again_at(&mut self, at: Time, response: Response) {
        for episode in self.episodes.values_mut() {
            if episode.acted == Some(response) {
                episode.acted = None;
                episode.not_before = at;
            }
        }
    }

    /// Records that a hold has ended. The episodes that asked for it may act again after `at`, up to
    /// [`MOST_TIMES`].
    pub fn hold_ended(&mut self, response: Response, at: Time) {
        for episode in self.episodes.values_mut() {
            if episode.acted == Some(response) && episode.times < MOST_TIMES {
                episode.acted = None;
                episode.not_before = at;
            }
        }
    }

    /// Records that another response than the one asked for was made.
    pub fn replaced(&mut self, asked: Response, by: Response) {
        for episode in self.episodes.values_mut() {
            if episode.acted == Some(asked) {
                episode.acted = Some(by);
            }
        }
    }

    /// Blocks `response` until `at`, and then lets episodes ask for it again.
    pub fn failed(&mut self, response: Response, at: Time) {
        self.retry_at.insert(response, at);
        self.act_again(Count::BeginsAgain, |acted| acted == response);
    }

    /// Blocks `response` until `at`, or for longer if it is already blocked.
    pub fn delay(&mut self, response: Response, at: Time) {
        let earliest = self.retry_at.entry(response).or_default();
        *earliest = at.max(*earliest);
    }

    /// Blocks all responses until `at`.
    pub fn wait_until(&mut self, at: Time) {
        self.not_before = at;
    }

    /// Returns whether an episode that has acted still asks for a response.
    pub fn still_ask(&self) -> bool {
        self.episodes.values().any(|episode| episode.acting && episode.acted.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of a thousand packages is answered in each second, and the others wait for the end of that order.
    #[test]
    fn episodes_that_wait_for_the_response_of_another_ask_by_turns() {
        let found = |number: u32| {
            let identity = Some(format!("package-{number}"));
            let detector = Some(Detector::Duplicates);
            let cause = Cause {
                detector,
                identity,
                numbers: BTreeMap::new(),
                forecast: None,
                advice: None,
            };
            Detection { cause, act: Some(Response::Clamp) }
        };
        let mut episodes = Episodes::default();
        let start = Time(1_000_000_000);
        let mut asks: BTreeSet<(Time, u32)> = (0..1000).map(|number| (start, number)).collect();
        let (mut looks, mut answered, mut under_way_until) = (0, 0, start);
        while let Some((now, number)) = asks.pop_first()
            && now < start.after(Duration::from_secs(60))
        {
            looks += 1;
            if now < under_way_until {
                episodes.delay(Response::Clamp, now.after(TURN));
            }
            let follows = episodes.note(now, &found(number), Response::Clamp, |_| false);
            if follows.respond.is_some() {
                answered += 1;
                under_way_until = now.after(Duration::from_millis(10));
            }
            asks.extend(follows.respond_at.map(|at| (at, number)));
        }
        assert!(looks < 4000, "{looks} looks for {answered} responses");
        assert!((30..=60).contains(&answered), "{answered} responses in a minute");
    }
}
