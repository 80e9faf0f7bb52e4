//! C: a server dies soon after its start, with a failure, again and again.
//!
//! It catches a broken server that its gateway starts in a loop. It must not be raised by a gateway that ends each
//! server after one request, nor by the probes of a build script that are meant to fail: a death by a signal that asks
//! for the end is no failure, and only packages and scripts count, not plain programs. It only warns, because what
//! must be stopped is the one who starts them.
//!
//! The numbers: a crash loop of `npx` starts every other second on one CPU, and one of `node` twice a second.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use super::{Detection, count};
use crate::{Time, incident::Detector, policy::CrashLoop, registry::ServerEnd, server::Naming};

/// Identities whose crashes are kept. A crash loop is one of few.
const MOST_IDENTITIES: usize = 64;

/// The latest crashes of each identity.
#[derive(Clone, Debug, Default)]
pub struct Crashes(BTreeMap<Arc<str>, VecDeque<Time>>);

impl Crashes {
    /// Takes the end of a server. `code`: the status of its last process as `wait(2)` returns it.
    pub fn look(
        &mut self,
        now: Time,
        end: &ServerEnd,
        code: u32,
        limits: &CrashLoop,
    ) -> Option<Detection> {
        let counts = match end.naming {
            Naming::Package | Naming::Cached | Naming::Image | Naming::Script => true,
            Naming::Program | Naming::Unclear => false,
        };
        if !counts || !is_failure(code) || now.since(end.started) >= limits.age {
            return None;
        }
        if self.0.len() >= MOST_IDENTITIES && !self.0.contains_key(&end.identity) {
            let is_recent = |crashes: &VecDeque<Time>| {
                crashes.back().is_some_and(|last| now.since(*last) < limits.within)
            };
            self.0.retain(|_, crashes| is_recent(crashes));
            if self.0.len() >= MOST_IDENTITIES {
                return None;
            }
        }
        let crashes = self.0.entry(end.identity.clone()).or_default();
        crashes.push_back(now);
        while crashes.len() > limits.warn
            || crashes.front().is_some_and(|first| now.since(*first) >= limits.within)
        {
            crashes.pop_front();
        }
        let within = u64::try_from(limits.within.as_millis()).unwrap_or(u64::MAX);
        let numbers = [("crashes", count(crashes.len())), ("within_ms", within)];
        let found = crashes.len() >= limits.warn;
        found.then(|| Detection::new(Detector::Crash, Some(&end.identity), &numbers, None))
    }
}

/// Returns whether a status says that the program failed. A signal that asks for the end, or a status that stands for
/// one (128 and its number), does not.
fn is_failure(code: u32) -> bool {
    const ASKED: [u32; 5] = [1, 2, 9, 13, 15];
    let (signal, status) = (code & 0x7f, (code >> 8) & 0xff);
    match (signal, status) {
        (0, 0) => false,
        (0, status) => !status.checked_sub(128).is_some_and(|signal| ASKED.contains(&signal)),
        (signal, _) => !ASKED.contains(&signal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// Returns how many of these ends are detections. Each server lives for `lived` seconds.
    fn found(naming: Naming, codes: &[u32], every: u64, lived: u64) -> usize {
        let mut crashes = Crashes::default();
        let ends = codes.iter().zip(1..).filter(|(code, number)| {
            let started = Time(number * every * SECOND);
            let now = Time(started.0 + lived * SECOND);
            let end = ServerEnd { identity: "a".into(), naming, started };
            crashes.look(now, &end, **code, &CrashLoop::default()).is_some()
        });
        ends.count()
    }

    #[test]
    fn the_fifth_crash_within_a_minute_is_a_loop() {
        let failed = [1 << 8; 6];
        assert_eq!(found(Naming::Package, &failed, 10, 1), 2);
        assert_eq!(found(Naming::Script, &failed, 10, 1), 2);
        assert_eq!(found(Naming::Package, &[6; 6], 10, 1), 2, "SIGABRT");
        assert_eq!(found(Naming::Package, &failed, 16, 1), 0, "too slow");
        assert_eq!(found(Naming::Package, &failed, 10, 5), 0, "each lived for a while");
        assert_eq!(found(Naming::Program, &failed, 1, 0), 0, "the probes of a build script");
    }

    #[test]
    fn ends_that_were_asked_for_are_no_crashes() {
        for code in [0, 15, 9, 143 << 8, 137 << 8, 130 << 8] {
            assert_eq!(found(Naming::Package, &[code; 9], 1, 0), 0, "{code}");
        }
    }

    #[test]
    fn the_identities_of_a_hostile_container_are_bounded() {
        let mut crashes = Crashes::default();
        for number in 0..10_000_u64 {
            let (now, identity) = (Time(number * SECOND / 100), format!("p{number}").into());
            let end = ServerEnd { identity, naming: Naming::Package, started: now };
            crashes.look(now, &end, 1 << 8, &CrashLoop::default());
            assert!(crashes.0.len() <= MOST_IDENTITIES);
        }
    }
}
