//! Decides when the limit of one guard is checked again, and when to stop: a tool that undoes the
//! limit again and again wins.

use std::{collections::VecDeque, time::Duration};

use crate::{Time, limit::Limit, repair::STEP};

/// Number of reversions within [`WITHIN`] that count as a conflict with another tool, not as an
/// accident.
const REVERSIONS: usize = 3;
const WITHIN: Duration = Duration::from_secs(3600);
/// Delays after consecutive repairs that were refused or failed. The first retry comes soon,
/// because the engine may just be starting; later ones are rarer, because it may be broken.
const RETRY_AFTER: [Duration; 4] = [
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(60),
];

#[derive(Clone, Debug, Default)]
pub struct Pacing {
    /// The limit must be written once even if it is in force, because its owner may not store it.
    insists: bool,
    /// A repair is in progress, or facts for one are being read.
    busy: bool,
    /// The limit, or the last step towards it, was in force at some time since the last reversion
    /// or change of the wanted limit. A higher limit is then a reversion.
    held: bool,
    wanted: Option<u64>,
    /// The last step towards the limit.
    step: Option<u64>,
    /// The last limit that we put in force, of any kind. It is nobody's brake.
    own: Option<u64>,
    /// There is nothing to write until tasks end.
    waiting: bool,
    undone: VecDeque<Time>,
    not_before: Time,
    /// Number of consecutive repairs that were refused or failed.
    failed: usize,
    /// The limit is left alone until it is in force again: another tool has won, or nothing may be
    /// written.
    stopped: bool,
}

/// The decision from fresh facts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ruling {
    /// Do nothing: the limit is in force, none is wanted, or it is not time to act.
    Rest,
    Repair,
    /// The limit was undone too often: record that, and leave it alone.
    GiveUp,
}

impl Pacing {
    /// Creates the pacing for a limit that is written once even if it is in force.
    #[must_use]
    pub fn insisting() -> Self {
        Self { insists: true, ..Self::default() }
    }

    /// Returns whether the wanted limit is in force, or another tool's brake below it.
    fn is_in_force(&self, wanted: Option<u64>, in_force: Limit) -> bool {
        wanted.is_none_or(|limit| {
            let is_brake = in_force < Limit::Tasks(limit) && in_force.tasks() != self.own;
            in_force == Limit::Tasks(limit) || is_brake
        })
    }

    /// Checks the limit in force. Returns true if facts must be read for [`Pacing::judge`]. A limit
    /// below the wanted one is another tool's brake and is left alone.
    pub fn look(&mut self, now: Time, wanted: Option<u64>, in_force: Limit) -> bool {
        if self.wanted != wanted {
            let (insists, busy, own) = (self.insists, self.busy, self.own);
            *self = Self { insists, wanted, busy, own, ..Self::default() };
        }
        let is_in_force = self.is_in_force(wanted, in_force);
        self.held |= is_in_force && wanted.is_some();
        self.stopped &= !is_in_force;
        if is_in_force {
            (self.step, self.failed) = (None, 0);
        }
        let rests = is_in_force && !self.insists;
        if rests || self.busy || self.stopped || now < self.not_before {
            return false;
        }
        (self.busy, self.waiting) = (true, false);
        true
    }

    /// Decides from fresh facts. The caller must follow every [`Ruling::Repair`] with one of
    /// [`Pacing::waits`], [`Pacing::failed`], [`Pacing::stepped`], [`Pacing::reached`] and
    /// [`Pacing::leave`].
    pub fn judge(&mut self, now: Time, wanted: Option<u64>, in_force: Limit) -> Ruling {
        self.busy = false;
        if !self.look(now, wanted, in_force) {
            return Ruling::Rest;
        }
        let below_step = self.step.is_some_and(|step| in_force <= Limit::Tasks(step));
        let is_in_force = self.is_in_force(wanted, in_force);
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

    /// Records that there is nothing to write yet.
    pub fn waits(&mut self, now: Time) {
        (self.busy, self.failed, self.not_before) = (false, 0, now.after(STEP));
        self.waiting = true;
    }

    /// Records that a repair was refused or failed.
    pub fn failed(&mut self, now: Time) {
        let after = RETRY_AFTER[self.failed.min(RETRY_AFTER.len() - 1)];
        (self.busy, self.not_before) = (false, now.after(after));
        self.failed = self.failed.saturating_add(1);
    }

    /// Records that we put a step in force. From now on a higher limit is a reversion.
    pub fn stepped(&mut self, now: Time, step: u64) {
        self.waits(now);
        (self.step, self.own, self.held, self.waiting) = (Some(step), Some(step), true, false);
    }

    /// Records that another mcp-guard process lowered the limit. No later step is higher.
    pub fn lowered(&mut self, in_force: Limit) {
        self.step = self.step.into_iter().chain(in_force.tasks()).min();
    }

    /// Records that a late write of ours put a limit in force. It is no brake, and no reversion.
    pub fn arrived(&mut self, limit: Option<u64>) {
        (self.own, self.held) = (limit, false);
    }

    /// Returns whether there is nothing to write until tasks end.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.waiting
    }

    /// Returns the last step towards the limit. The next step is no higher.
    #[must_use]
    pub fn step(&self) -> Option<u64> {
        self.step
    }

    /// Records that we put the limit in force. From now on a higher limit is a reversion, and is
    /// noticed at once.
    pub fn reached(&mut self, limit: u64) {
        self.own = Some(limit);
        (self.busy, self.held, self.not_before) = (false, true, Time::default());
        (self.insists, self.step, self.failed) = (false, None, 0);
    }

    /// Records that the limit is not in force and is left alone.
    pub fn leave(&mut self) {
        (self.busy, self.stopped) = (false, true);
    }

    /// Forgets earlier reversions, because the limit was requested again or the mode changed.
    pub fn asked_again(&mut self) {
        let Self { insists, busy, wanted, step, own, .. } = *self;
        *self = Self { insists, busy, wanted, step, own, ..Self::default() };
    }

    /// Returns whether the limit is left alone.
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
        assert!(!pacing.look(at(second), WANTED, OTHER), "noticed only once");
        let ruling = pacing.judge(at(second), WANTED, OTHER);
        if ruling == Ruling::Repair {
            pacing.reached(40);
        }
        ruling
    }

    #[test]
    fn a_limit_in_force_a_lower_one_and_an_unwanted_one_are_left_alone() {
        let mut pacing = Pacing::default();
        for (wanted, in_force) in
            [(WANTED, OURS), (WANTED, Limit::Tasks(10)), (None, OTHER), (None, OURS)]
        {
            assert!(!pacing.look(at(1), wanted, in_force));
        }
    }

    #[test]
    fn the_third_reversion_within_an_hour_stops_the_repairs() {
        let mut pacing = Pacing::default();
        assert_eq!(repaired(&mut pacing, 1), Ruling::Repair, "never in force, so no reversion");
        assert_eq!(repaired(&mut pacing, 10), Ruling::Repair);
        assert_eq!(repaired(&mut pacing, 20), Ruling::Repair);
        assert_eq!(repaired(&mut pacing, 30), Ruling::GiveUp);
        assert!(pacing.has_stopped() && !pacing.look(at(4000), WANTED, OTHER));
        // A different wanted limit starts over.
        assert!(pacing.look(at(4001), Some(50), OTHER));
    }

    #[test]
    fn a_repeated_request_resumes_the_repairs() {
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
    fn a_limit_left_alone_is_reported_again_only_after_it_was_in_force() {
        let mut pacing = Pacing::default();
        assert!(pacing.look(at(1), WANTED, OTHER));
        assert_eq!(pacing.judge(at(1), WANTED, OTHER), Ruling::Repair);
        pacing.leave();
        assert!(!pacing.look(at(1000), WANTED, OTHER));
        assert!(!pacing.look(at(1001), WANTED, OURS));
        assert!(pacing.look(at(1002), WANTED, OTHER));
    }

    #[test]
    fn reversions_in_different_hours_do_not_stop_the_repairs() {
        let mut pacing = Pacing::default();
        for second in [1, 2000, 4000, 6000, 8000, 10_000] {
            assert_eq!(repaired(&mut pacing, second), Ruling::Repair, "{second}");
        }
    }

    #[test]
    fn fresh_facts_can_make_a_repair_unnecessary() {
        let mut pacing = Pacing::default();
        assert!(!pacing.look(at(1), WANTED, OURS));
        assert!(pacing.look(at(2), WANTED, Limit::Tasks(500)));
        // Another tool set 500 in the engine, and the fresh facts show it.
        assert_eq!(pacing.judge(at(2), Some(500), Limit::Tasks(500)), Ruling::Rest);
        assert!(!pacing.look(at(3), Some(500), Limit::Tasks(500)));
    }

    #[test]
    fn a_step_down_delays_the_next_and_is_not_a_reversion() {
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
    fn an_undone_step_is_a_reversion() {
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
        assert_eq!(undone(&mut pacing), Ruling::Repair, "nothing was in force before the first");
        for _ in 1..REVERSIONS {
            assert_eq!(undone(&mut pacing), Ruling::Repair);
        }
        assert_eq!(undone(&mut pacing), Ruling::GiveUp);
        assert_eq!(pacing.step(), Some(100), "no later step is higher");
        assert!(!pacing.look(at(1000), Some(41), Limit::Tasks(41)));
        assert_eq!(pacing.step(), None, "the step belonged to another limit");
    }

    #[test]
    fn a_failed_repair_is_retried_soon_and_then_less_often() {
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
        assert!(pacing.look(at(second + 12), WANTED, OTHER), "the delays start over");
    }
}
