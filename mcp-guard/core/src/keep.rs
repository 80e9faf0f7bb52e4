//! Holds the limit of one guard: has it written where it is kept whenever it is not in force, and
//! stops when somebody undoes it again and again.

use std::{collections::VecDeque, time::Duration};

use crate::{Time, limit::Limit, repair::STEP};

/// So many reversions within [`WITHIN`] are a fight, not an accident.
const REVERSIONS: usize = 3;
const WITHIN: Duration = Duration::from_secs(3600);
/// After a repair that was refused or failed, and after the next, and so on: an engine that is just
/// starting is asked again soon, one that is broken is left in peace.
const AGAIN: [Duration; 4] = [
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(60),
];

#[derive(Clone, Debug, Default)]
pub struct Keep {
    /// A repair is under way, or facts for one are being read.
    busy: bool,
    /// It, or the last step towards it, was in force since the guard began, or since the wanted limit
    /// changed.
    held: bool,
    wanted: Option<u64>,
    /// The last step towards it.
    step: Option<u64>,
    undone: VecDeque<Time>,
    not_before: Time,
    /// Repairs in a row that were refused or failed.
    failed: usize,
    /// Nothing more is done until it is in force again: somebody else has won, or nothing may be done.
    stopped: bool,
}

/// What fresh facts come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is in force, or nothing is wanted.
    Rest,
    Repair,
    /// It was undone too often: say so, and leave it.
    GiveUp,
}

impl Keep {
    /// A cheap look at what is in force; true where facts are to be read for [`Keep::judge`]. A limit
    /// lower than the wanted one is somebody's brake, and left alone.
    pub fn look(&mut self, now: Time, wanted: Option<u64>, in_force: Limit) -> bool {
        if self.wanted != wanted {
            *self = Self { wanted, busy: self.busy, ..Self::default() };
        }
        let is_in_force = wanted.is_none_or(|limit| in_force <= Limit::Tasks(limit));
        self.held |= is_in_force && wanted.is_some();
        self.stopped &= !is_in_force;
        if is_in_force {
            (self.step, self.failed) = (None, 0);
        }
        if is_in_force || self.busy || self.stopped || now < self.not_before {
            return false;
        }
        self.busy = true;
        true
    }

    /// Decides again on fresh facts. The caller answers [`Verdict::Repair`] with [`Keep::reached`],
    /// [`Keep::stepped`], [`Keep::waits`] or [`Keep::failed`].
    pub fn judge(&mut self, now: Time, wanted: Option<u64>, in_force: Limit) -> Verdict {
        self.busy = false;
        if !self.look(now, wanted, in_force) {
            return Verdict::Rest;
        }
        let below_step = self.step.is_some_and(|step| in_force <= Limit::Tasks(step));
        if !below_step && std::mem::take(&mut self.held) {
            self.undone.push_back(now);
            self.undone.retain(|at| now.since(*at) < WITHIN);
        }
        if self.undone.len() >= REVERSIONS {
            self.stopped = true;
            self.busy = false;
            return Verdict::GiveUp;
        }
        Verdict::Repair
    }

    /// There was nothing to write yet.
    pub fn waits(&mut self, now: Time) {
        (self.busy, self.failed, self.not_before) = (false, 0, now.after(STEP));
    }

    /// A repair was refused or failed.
    pub fn failed(&mut self, now: Time) {
        let after = AGAIN[self.failed.min(AGAIN.len() - 1)];
        (self.busy, self.not_before) = (false, now.after(after));
        self.failed = self.failed.saturating_add(1);
    }

    /// A step is in force by our hand. Above it is a reversion, as above the limit itself.
    pub fn stepped(&mut self, now: Time, step: u64) {
        self.waits(now);
        (self.step, self.held) = (Some(step), true);
    }

    /// The last step towards the limit; the next is no higher.
    #[must_use]
    pub fn step(&self) -> Option<u64> {
        self.step
    }

    /// The limit is in force by our hand: what comes next is a reversion, and noticed at once.
    pub fn reached(&mut self) {
        (self.busy, self.held, self.not_before) = (false, true, Time::default());
        (self.step, self.failed) = (None, 0);
    }

    /// It was said that it is not in force, and nothing is to be done about it.
    pub fn leave(&mut self) {
        (self.busy, self.stopped) = (false, true);
    }

    /// An operator asks for it again, whatever was before.
    pub fn asked_again(&mut self) {
        let (busy, wanted, step) = (self.busy, self.wanted, self.step);
        *self = Self { busy, wanted, step, ..Self::default() };
    }

    /// Whether it is left alone.
    #[must_use]
    pub fn has_stopped(&self) -> bool {
        self.stopped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: Option<u64> = Some(40);
    const OTHER: Limit = Limit::Max;
    const OURS: Limit = Limit::Tasks(40);

    fn at(seconds: u64) -> Time {
        Time(seconds * 1_000_000_000)
    }

    fn repaired(keep: &mut Keep, second: u64) -> Verdict {
        assert!(keep.look(at(second), WANTED, OTHER), "noticed");
        assert!(!keep.look(at(second), WANTED, OTHER), "once");
        let verdict = keep.judge(at(second), WANTED, OTHER);
        if verdict == Verdict::Repair {
            keep.reached();
        }
        verdict
    }

    #[test]
    fn what_is_in_force_or_stricter_or_not_wanted_is_left_alone() {
        let mut keep = Keep::default();
        for (wanted, in_force) in
            [(WANTED, OURS), (WANTED, Limit::Tasks(10)), (None, OTHER), (None, OURS)]
        {
            assert!(!keep.look(at(1), wanted, in_force));
        }
    }

    #[test]
    fn the_third_reversion_within_an_hour_is_the_last() {
        let mut keep = Keep::default();
        assert_eq!(repaired(&mut keep, 1), Verdict::Repair, "never in force: no reversion");
        assert_eq!(repaired(&mut keep, 10), Verdict::Repair);
        assert_eq!(repaired(&mut keep, 20), Verdict::Repair);
        assert_eq!(repaired(&mut keep, 30), Verdict::GiveUp);
        assert!(keep.has_stopped() && !keep.look(at(4000), WANTED, OTHER));
        // Another limit is another matter.
        assert!(keep.look(at(4001), Some(50), OTHER));
    }

    #[test]
    fn an_operator_who_asks_again_ends_the_rest() {
        let mut keep = Keep::default();
        for second in [1, 10, 20, 30] {
            repaired(&mut keep, second);
        }
        assert!(keep.has_stopped());
        keep.asked_again();
        assert!(!keep.has_stopped());
        assert_eq!(repaired(&mut keep, 31), Verdict::Repair);
    }

    #[test]
    fn what_is_left_alone_is_said_again_only_after_it_was_in_force() {
        let mut keep = Keep::default();
        assert!(keep.look(at(1), WANTED, OTHER));
        assert_eq!(keep.judge(at(1), WANTED, OTHER), Verdict::Repair);
        keep.leave();
        assert!(!keep.look(at(1000), WANTED, OTHER));
        assert!(!keep.look(at(1001), WANTED, OURS));
        assert!(keep.look(at(1002), WANTED, OTHER));
    }

    #[test]
    fn reversions_of_different_hours_are_no_fight() {
        let mut keep = Keep::default();
        for second in [1, 2000, 4000, 6000, 8000, 10_000] {
            assert_eq!(repaired(&mut keep, second), Verdict::Repair, "{second}");
        }
    }

    #[test]
    fn fresh_facts_may_clear_it_up() {
        let mut keep = Keep::default();
        assert!(!keep.look(at(1), WANTED, OURS));
        assert!(keep.look(at(2), WANTED, Limit::Tasks(500)));
        // The engine was told 500 by somebody, and now says so.
        assert_eq!(keep.judge(at(2), Some(500), Limit::Tasks(500)), Verdict::Rest);
        assert!(!keep.look(at(3), Some(500), Limit::Tasks(500)));
    }

    #[test]
    fn a_step_down_waits_for_the_next_and_is_no_reversion() {
        let mut keep = Keep::default();
        let mut step = 300;
        for second in [0, 10, 20, 30, 40, 50] {
            assert!(keep.look(at(second), WANTED, Limit::Tasks(step)));
            let verdict = keep.judge(at(second), WANTED, Limit::Tasks(step));
            assert_eq!(verdict, Verdict::Repair);
            step -= 20;
            keep.stepped(at(second), step);
            assert!(!keep.look(at(second + 9), WANTED, Limit::Tasks(step)));
        }
    }

    #[test]
    fn a_step_that_is_undone_is_a_reversion() {
        let mut keep = Keep::default();
        let mut second = 0;
        let mut undone = |keep: &mut Keep| {
            second += 10;
            assert!(keep.look(at(second), WANTED, OTHER));
            let verdict = keep.judge(at(second), WANTED, OTHER);
            if verdict == Verdict::Repair {
                keep.stepped(at(second), 100);
            }
            verdict
        };
        assert_eq!(undone(&mut keep), Verdict::Repair, "the first is nobody's");
        for _ in 1..REVERSIONS {
            assert_eq!(undone(&mut keep), Verdict::Repair);
        }
        assert_eq!(undone(&mut keep), Verdict::GiveUp);
        assert_eq!(keep.step(), Some(100), "no later one is higher");
        assert!(!keep.look(at(1000), Some(41), Limit::Tasks(41)));
        assert_eq!(keep.step(), None, "of another limit");
    }

    #[test]
    fn what_fails_is_tried_again_soon_and_then_seldom() {
        let mut keep = Keep::default();
        let mut second = 0;
        for wait in [2, 5, 15, 60, 60] {
            assert!(keep.look(at(second), WANTED, OTHER), "{wait}");
            keep.failed(at(second));
            assert!(!keep.look(at(second + wait - 1), WANTED, OTHER), "{wait}");
            second += wait;
        }
        assert!(keep.look(at(second), WANTED, OTHER));
        keep.waits(at(second));
        assert!(keep.look(at(second + 10), WANTED, OTHER));
        keep.failed(at(second + 10));
        assert!(keep.look(at(second + 12), WANTED, OTHER), "the first in a row");
    }
}
