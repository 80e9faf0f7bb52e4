//! What the detectors of one guard have found, and what has come of it: each episode warns once and acts
//! once.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    Time,
    detect::Detection,
    incident::{Cause, Detector},
    policy::Response,
    warnings::Budget,
};

/// An episode is over when its detector has been silent for so long; then it may warn again.
const QUIET: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
struct Episode {
    last_seen: Time,
    /// Its warning was told; a guard may tell so many in an hour.
    told: bool,
    /// What it asked for when it acted.
    acted: Option<Response>,
    /// It asks for action at this moment.
    acting: bool,
    /// What came to nothing is not tried again before.
    not_before: Time,
}

/// What follows from a detection.
#[derive(Clone, Debug, Default)]
pub(super) struct Follows {
    pub warn: Option<Cause>,
    pub respond: Option<Response>,
    /// When it would ask for a response, where that is too early now.
    pub respond_at: Option<Time>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Episodes {
    episodes: BTreeMap<(Detector, Option<String>), Episode>,
    warnings: Budget,
    /// Nothing is done before.
    not_before: Time,
    /// What failed is not tried before, and stands in no other's way: a clamp may fail for ever.
    recovers: BTreeMap<Response, Time>,
}

impl Episodes {
    /// The detectors have looked again; what they found follows.
    pub fn looked(&mut self, detectors: &[Detector]) {
        for ((detector, _), episode) in &mut self.episodes {
            episode.acting &= !detectors.contains(detector);
        }
    }

    /// Keeps the episode of one detection. `highest`: the strongest response that the guard's terms allow.
    pub fn note(&mut self, now: Time, detection: &Detection, highest: Response) -> Follows {
        let Detection { cause, act } = detection;
        let mut follows = Follows::default();
        let Some(detector) = cause.detector else { return follows };
        let key = (detector, cause.identity.clone());
        let new =
            Episode { last_seen: now, told: false, acted: None, acting: false, not_before: now };
        let episode = self.episodes.entry(key).or_insert(new);
        if !episode.told {
            follows.warn = self.warnings.spend(now, cause);
            episode.told = follows.warn.is_some();
        }
        episode.last_seen = now;
        episode.acting = act.is_some();
        if let Some(response) = act.filter(|_| episode.acted.is_none()) {
            let response = response.min(highest);
            let recovers = self.recovers.get(&response).copied().unwrap_or_default();
            let earliest = recovers.max(self.not_before).max(episode.not_before);
            if now < earliest {
                follows.respond_at = Some(earliest);
            } else {
                episode.acted = Some(response);
                follows.respond = Some(response);
            }
        }
        follows
    }

    /// Ends the episodes whose detectors are silent.
    pub fn forget_quiet(&mut self, now: Time) {
        self.episodes.retain(|_, episode| {
            let lasts = now.since(episode.last_seen) < QUIET;
            if !lasts && !episode.told {
                self.warnings.withhold();
            }
            lasts
        });
    }

    /// Lets those that acted by such a response act again.
    pub fn act_again(&mut self, by: impl Fn(Response) -> bool) {
        for episode in self.episodes.values_mut() {
            episode.acted = episode.acted.filter(|response| !by(*response));
        }
    }

    /// Lets those that asked for it ask again after `at`; no other has to wait for that.
    pub fn ask_again_at(&mut self, at: Time, response: Response) {
        for episode in self.episodes.values_mut() {
            if episode.acted == Some(response) {
                episode.acted = None;
                episode.not_before = at;
            }
        }
    }

    /// Keeps this response from being asked for before `at`, and lets it be asked for again then.
    pub fn failed(&mut self, response: Response, at: Time) {
        self.recovers.insert(response, at);
        self.act_again(|acted| acted == response);
    }

    /// Nothing is asked for before `at`.
    pub fn wait_until(&mut self, at: Time) {
        self.not_before = at;
    }

    /// Whether one that has acted asks for action at this moment.
    pub fn still_ask(&self) -> bool {
        self.episodes.values().any(|episode| episode.acting && episode.acted.is_some())
    }
}
