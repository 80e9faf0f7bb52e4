//! When the limit of one guard is looked into again, and when no more: somebody who undoes it again and
//! again has won.

use std::{collections::VecDeque, time::Duration};

use crate::{Time, limit::Limit, repair::STEP};

/// Reversions within [`WITHIN`] that are a fight, not an accident.
const REVERSIONS: usize = 3;
const WITHIN: Duration = Duration::from_secs(3600);
/// Waits after repairs in a row that were refused or failed: an engine that is just starting is asked
/// again soon, one that is broken is left in peace.
const AGAIN: [Duration; 4] = [
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(60),
];

#[derive(Clone, Debug, Default)]
pub struct Pacing {
    /// The limit must be written once, also where it is in force: its owner may not keep it.
    insists: bool,
    /// A repair is under way, or facts for one are being read.
    busy: bool,
    /// The limit, or the last step towards it, was in force since the guard began, or since the wanted
    /// limit changed.
    held: bool,
    wanted: Option<u64>,
    /// The last step towards it.
    step: Option<u64>,
    undone: VecDeque<Time>,
    not_before: Time,
    /// Repairs in a row that were refused or failed.
    failed: usize,
    /// Nothing more is done until the limit is in force again: somebody else has won, or nothing may be
    /// done.
    stopped: bool,
}

/// What fresh facts come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ruling {
    /// It is in force, or nothing is wanted.
    Rest,
    Repair,
    /// It was undone too often: say so, and leave it.
    GiveUp,
}

impl Pacing {
    /// For a limit that is written once in any case.
    #[must_use]
    pub fn insisting() -> Self {
        Self { insists: true, ..Self::default() }
    }

    /// A cheap look at what is in force; true where facts are to be read for [`Pacing::judge`]. A limit
    /// lower than the wanted one is somebody's brake, and left alone.
    pub fn look(&mut self, now: Time, wanted: Option<u64>, in_force: Limit) -> bool {
        if self.wanted != wanted {
            let (insists, busy) = (self.insists, self.busy);
            *self = Self { insists, wanted, busy, ..Self::default() };
        }
        let is_in_force = wanted.is_none_or(|limit| in_force <= Limit::Tasks(limit));
        self.held |= is_in_force && wanted.is_some();
        self.stopped &= !is_in_force;
        if is_in_force {
            (self.step, self.failed) = (None, 0);
        }
        let rests = is_in_force && !self.insists;
        if rests || self.busy || self.stopped || now < self.not_before {
            return false;
        }
        self.busy = true;
        true
    }

    /// Decides from fresh facts. Every [`Ruling::Repair`] is followed by one of [`Pacing::waits`],
    /// [`Pacing::failed`], [`Pacing::stepped`], [`Pacing::reached`] and [`Pacing::leave`].
    pub fn judge(&mut self, now: Time, wanted: Option<u64>, in_force: Limit) -> Ruling {
        self.busy = false;
        if !self.look(now, wanted, in_force) {
            return Ruling::Rest;
        }
        let below_step = self.step.is_some_and(|step| in_force <= Limit::Tasks(step));
        let is_in_force = wanted.is_none_or(|limit| in_force <= Limit::Tasks(limit));
        if !below_step && !is_in_force && std::mem::take(&mut self.held) {
            self.undone.push_back(now);
            self.undone.retain(|at| now.since(*at) < WITHIN);
        }
        if self.undone.len() >= REVERSIONS {
            self.stopped = true;
            self.busy = false;
            return Ruling::GiveUp;
        }
        Ruling::Repair
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

    /// A step is in force by our hand. A higher limit is a reversion from now on.
    pub fn stepped(&mut self, now: Time, step: u64) {
        self.waits(now);
        (self.step, self.held) = (Some(step), true);
    }

    /// Another process of ours has lowered the limit: no later step is higher.
    pub fn lowered(&mut self, in_force: Limit) {
        self.step = self.step.into_iter().chain(in_force.tasks()).min();
    }

    /// The last step towards the limit; the next is no higher.
    #[must_use]
    pub fn step(&self) -> Option<u64> {
        self.step
    }

    /// The limit is in force by our hand. The next change is a reversion, and noticed at once.
    pub fn reached(&mut self) {
        (self.busy, self.held, self.not_before) = (false, true, Time::default());
        (self.insists, self.step, self.failed) = (false, None, 0);
    }

    /// It was said that the limit is not in force, and nothing is to be done about it.
    pub fn leave(&mut self) {
        (self.busy, self.stopped) = (false, true);
    }

    /// An operator asks for the limit again: earlier reversions do not count.
    pub fn asked_again(&mut self) {
        let (insists, busy, wanted, step) = (self.insists, self.busy, self.wanted, self.step);
        *self = Self { insists, busy, wanted, step, ..Self::default() };
    }

    /// Whether the limit is left alone.
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

    fn repaired(pacing: &mut Pacing, second: u64) -> Ruling {
        assert!(pacing.look(at(second), WANTED, OTHER), "noticed");
        assert!(!pacing.look(at(second), WANTED, OTHER), "once");
        let ruling = pacing.judge(at(second), WANTED, OTHER);
        if ruling == Ruling::Repair {
            pacing.reached();
        }
        ruling
    }

    #[test]
    fn what_is_in_force_or_stricter_or_not_wanted_is_left_alone() {
        let mut pacing = Pacing::default();
        for (wanted, in_force) in
            [(WANTED, OURS), (WANTED, Limit::Tasks(10)), (None, OTHER), (None, OURS)]
        {
            assert!(!pacing.look(at(1), wanted, in_force));
        }
    }

    #[test]
    fn the_third_reversion_within_an_hour_is_the_last() {
        let mut pacing = Pacing::default();
        assert_eq!(repaired(&mut pacing, 1), Ruling::Repair, "never in force: no reversion");
        assert_eq!(repaired(&mut pacing, 10), Ruling::Repair);
        assert_eq!(repaired(&mut pacing, 20), Ruling::Repair);
        assert_eq!(repaired(&mut pacing, 30), Ruling::GiveUp);
        assert!(pacing.has_stopped() && !pacing.look(at(4000), WANTED, OTHER));
        // Another limit is another matter.
        assert!(pacing.look(at(4001), Some(50), OTHER));
    }

    #[test]
    fn an_operator_who_asks_again_ends_the_rest() {
        let mut pacing = Pacing::default();
        for second in [1, 10, 20, 30] {
            repaired(&mut pacing, second);
        }
        assert!(pacing.has_stopped());
        pacing.asked_again();
        assert!(!pacing.has_stopped());
        assert_eq!(repaired(&mut pacing, 31), Ruling::Repair);
    }

    #[test]
    fn what_is_left_alone_is_said_again_only_after_it_was_in_force() {
        let mut pacing = Pacing::default();
        assert!(pacing.look(at(1), WANTED, OTHER));
        assert_eq!(pacing.judge(at(1), WANTED, OTHER), Ruling::Repair);
        pacing.leave();
        assert!(!pacing.look(at(1000), WANTED, OTHER));
        assert!(!pacing.look(at(1001), WANTED, OURS));
        assert!(pacing.look(at(1002), WANTED, OTHER));
    }

    #[test]
    fn reversions_of_different_hours_are_no_fight() {
        let mut pacing = Pacing::default();
        for second in [1, 2000, 4000, 6000, 8000, 10_000] {
            assert_eq!(repaired(&mut pacing, second), Ruling::Repair, "{second}");
        }
    }

    #[test]
    fn fresh_facts_may_clear_it_up() {
        let mut pacing = Pacing::default();
        assert!(!pacing.look(at(1), WANTED, OURS));
        assert!(pacing.look(at(2), WANTED, Limit::Tasks(500)));
        // The engine was told 500 by somebody, and now says so.
        assert_eq!(pacing.judge(at(2), Some(500), Limit::Tasks(500)), Ruling::Rest);
        assert!(!pacing.look(at(3), Some(500), Limit::Tasks(500)));
    }

    #[test]
    fn a_step_down_waits_for_the_next_and_is_no_reversion() {
        let mut pacing = Pacing::default();
        let mut step = 300;
        for second in [0, 10, 20, 30, 40, 50] {
            assert!(pacing.look(at(second), WANTED, Limit::Tasks(step)));
            let ruling = pacing.judge(at(second), WANTED, Limit::Tasks(step));
            assert_eq!(ruling, Ruling::Repair);
            step -= 20;
            pacing.stepped(at(second), step);
            assert!(!pacing.look(at(second + 9), WANTED, Limit::Tasks(step)));
        }
    }

    #[test]
    fn a_step_that_is_undone_is_a_reversion() {
        let mut pacing = Pacing::default();
        let mut second = 0;
        let mut undone = |pacing: &mut Pacing| {
            second += 10;
            assert!(pacing.look(at(second), WANTED, OTHER));
            let ruling = pacing.judge(at(second), WANTED, OTHER);
            if ruling == Ruling::Repair {
                pacing.stepped(at(second), 100);
            }
            ruling
        };
        assert_eq!(undone(&mut pacing), Ruling::Repair, "the first is nobody's");
        for _ in 1..REVERSIONS {
            assert_eq!(undone(&mut pacing), Ruling::Repair);
        }
        assert_eq!(undone(&mut pacing), Ruling::GiveUp);
        assert_eq!(pacing.step(), Some(100), "no later one is higher");
        assert!(!pacing.look(at(1000), Some(41), Limit::Tasks(41)));
        assert_eq!(pacing.step(), None, "of another limit");
    }

    #[test]
    fn what_fails_is_tried_again_soon_and_then_seldom() {
        let mut pacing = Pacing::default();
        let mut second = 0;
        for wait in [2, 5, 15, 60, 60] {
            assert!(pacing.look(at(second), WANTED, OTHER), "{wait}");
            pacing.failed(at(second));
            assert!(!pacing.look(at(second + wait - 1), WANTED, OTHER), "{wait}");
            second += wait;
        }
        assert!(pacing.look(at(second), WANTED, OTHER));
        pacing.waits(at(second));
        assert!(pacing.look(at(second + 10), WANTED, OTHER));
        pacing.failed(at(second + 10));
        assert!(pacing.look(at(second + 12), WANTED, OTHER), "the first in a row");
    }
}
