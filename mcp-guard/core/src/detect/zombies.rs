//! Z: zombies pile up, which are processes that have ended and that their parent does not reap.
//!
//! It catches a container whose PID 1 is no init, and a gateway that never waits for its children. Each zombie counts
//! against the limit until it is reaped, but uses nothing else. It must not be raised by those of a moment: a parent
//! that is busy reaps late. So they count only if two looks in a row have found them. It only warns, because a process
//! that has ended cannot be ended.
//!
//! The numbers: a healthy process tree has none for longer than an instant, and twenty are more than a busy parent
//! leaves. Below a small limit fewer matter, but a handful matters nowhere.

use std::time::Duration;

use super::Detection;
use crate::{Time, evidence::Unreaped, incident::Detector, policy::Zombies};

/// The last two looks at the zombies of a guard.
#[derive(Clone, Debug, Default)]
pub struct Pile {
    last: Option<(Time, Unreaped)>,
    before: u64,
}

impl Pile {
    /// `fresh`: how old the look before may be.
    pub fn take(&mut self, now: Time, fresh: Duration, found: Unreaped) {
        let before = self.last.as_ref().filter(|(at, _)| now.since(*at) <= fresh);
        self.before = before.map_or(0, |(_, last)| last.zombies);
        self.last = Some((now, found));
    }

    pub fn had_some(&self) -> bool {
        self.last.as_ref().is_some_and(|(_, last)| last.zombies >= Unreaped::FEWEST)
    }

    /// `limit`: the one in force, if there is one. `fresh`: how old a look may be.
    pub fn look(
        &self,
        now: Time,
        fresh: Duration,
        limit: Option<u64>,
        limits: &Zombies,
    ) -> Option<Detection> {
        let (_, found) = self.last.as_ref().filter(|(at, _)| now.since(*at) <= fresh)?;
        let share = limit.map_or(u64::MAX, |limit| limit.saturating_mul(limits.warn_percent) / 100);
        let zombies = found.zombies.min(self.before);
        if zombies < limits.warn.min(share).max(Unreaped::FEWEST) {
            return None;
        }
        let mut numbers = vec![("zombies", zombies)];
        numbers.extend(limit.map(|limit| ("limit", limit)));
        let mut detection = Detection::new(Detector::Zombies, None, &numbers, None);
        detection.cause.advice = found.reaper.as_ref().map(ToString::to_string);
        Some(detection)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{evidence::Reaper, id::Pid};

    const SECOND: u64 = 1_000_000_000;
    const FRESH: Duration = Duration::from_secs(60);

    fn found(zombies: u64) -> Unreaped {
        let reaper = Reaper { pid: Pid(7), name: "node".to_owned(), is_init: true };
        Unreaped { zombies, reaper: Some(reaper) }
    }

    /// Returns the number of zombies that is warned about after looks that found these, 30 s apart.
    fn warned(limit: Option<u64>, looks: &[u64]) -> Option<u64> {
        let (mut pile, mut now) = (Pile::default(), Time(0));
        for zombies in looks {
            now = now.after(Duration::from_secs(30));
            pile.take(now, FRESH, found(*zombies));
        }
        let detection = pile.look(now, FRESH, limit, &Zombies::default())?;
        assert_eq!(detection.act, None);
        Some(detection.cause.numbers["zombies"])
    }

    #[test]
    fn zombies_that_stay_are_told() {
        for (limit, looks, expected) in [
            (None, &[20, 20][..], Some(20)),
            (None, &[19, 40], None),
            (None, &[40, 19], None),
            (None, &[40], None),
            (None, &[0, 25, 30], Some(25)),
            // Five percent of the limit are less.
            (Some(200), &[10, 10], Some(10)),
            (Some(200), &[9, 9], None),
            (Some(25), &[5, 5], Some(5)),
            (Some(25), &[4, 4], None),
            (Some(100_000), &[20, 20], Some(20)),
        ] {
            assert_eq!(warned(limit, looks), expected, "{limit:?} {looks:?}");
        }
    }

    #[test]
    fn an_old_look_says_nothing_and_the_parent_is_named() {
        let mut pile = Pile::default();
        pile.take(Time(0), FRESH, found(30));
        pile.take(Time(30 * SECOND), FRESH, found(30));
        let look =
            |seconds: u64| pile.look(Time(seconds * SECOND), FRESH, None, &Zombies::default());
        let advice = look(90).and_then(|found| found.cause.advice);
        let expected = "process 7 (node) does not reap its children; start the container with an \
                        init (docker run --init)";
        assert_eq!(advice.as_deref(), Some(expected));
        assert_eq!(look(91), None);
        pile.take(Time(100 * SECOND), FRESH, found(30));
        assert_eq!(pile.look(Time(100 * SECOND), FRESH, None, &Zombies::default()), None);
    }
}
