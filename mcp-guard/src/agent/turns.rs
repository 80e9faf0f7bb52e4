//! In which order the guards have their servers looked at.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use mcp_guard_core::{
    Time,
    id::{CgroupId, GuardId},
    registry::TreeId,
};

/// A guard that is to be looked at.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NextLook {
    /// In this round.
    Guard(GuardId),
    /// These servers of one whose turn has ended.
    Rest(Rest),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rest {
    pub guard: GuardId,
    pub cgroup: CgroupId,
    pub servers: BTreeSet<TreeId>,
}

/// The guards, in the order in which they have their turn.
#[derive(Default)]
pub(super) struct LookTurns {
    queue: VecDeque<NextLook>,
    /// Guards whose looks took too long, and when they come back into the queue, the earliest first. They pay for it
    /// one after the other: each alone could cost a tenth of a CPU.
    late: VecDeque<(Time, Rest)>,
    /// When the last of them has paid.
    paid: Time,
}

impl LookTurns {
    /// Whether some guards still wait for their turn in this round.
    pub fn is_round(&self) -> bool {
        self.queue.iter().any(|next| matches!(next, NextLook::Guard(_)))
    }

    pub fn begin_round(&mut self, guards: impl Iterator<Item = GuardId>) {
        self.queue.extend(guards.map(NextLook::Guard));
    }

    /// Takes what is left of a guard whose turn has ended. `owes`: how long it waits at least.
    pub fn put_back(&mut self, now: Time, rest: Rest, owes: Duration) {
        if owes > Duration::ZERO {
            self.paid = self.paid.max(now).after(owes);
            self.late.push_back((self.paid, rest));
        } else if !rest.servers.is_empty() {
            self.queue.push_back(NextLook::Rest(rest));
        }
    }

    /// Whether a guard waits for a turn of its own, and so has none in the round.
    pub fn has_rest(&self, guard: GuardId, cgroup: CgroupId) -> bool {
        let is_it = |rest: &Rest| (rest.guard, rest.cgroup) == (guard, cgroup);
        let mut queued = self.queue.iter();
        queued.any(|next| matches!(next, NextLook::Rest(rest) if is_it(rest)))
            || self.late.iter().any(|(_, rest)| is_it(rest))
    }

    pub fn next(&mut self, now: Time) -> Option<NextLook> {
        while let Some((_, rest)) = self.late.pop_front_if(|(at, _)| *at <= now) {
            self.queue.push_back(NextLook::Rest(rest));
        }
        self.queue.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rest(guard: u32, servers: &[u64]) -> Rest {
        let servers = servers.iter().copied().map(TreeId).collect();
        Rest { guard: GuardId(guard), cgroup: CgroupId(1), servers }
    }

    #[test]
    fn guards_whose_looks_took_too_long_wait_one_after_the_other_and_hold_up_no_round() {
        let (mut turns, now, second) = (LookTurns::default(), Time(0), Duration::from_secs(1));
        for guard in [1, 2] {
            turns.put_back(now, rest(guard, &[7]), second);
        }
        turns.put_back(now, rest(3, &[8]), Duration::ZERO);
        turns.put_back(now, rest(4, &[]), Duration::ZERO);
        assert!(!turns.is_round());
        turns.begin_round([5].map(GuardId).into_iter());
        assert!(turns.is_round());
        let has_rest = |turns: &LookTurns, guard| turns.has_rest(GuardId(guard), CgroupId(1));
        assert_eq!(
            [1, 2, 3, 4, 5].map(|guard| has_rest(&turns, guard)),
            [true, true, true, false, false]
        );
        assert!(!turns.has_rest(GuardId(1), CgroupId(2)), "another one has its place");
        assert_eq!(turns.next(now), Some(NextLook::Rest(rest(3, &[8]))));
        assert_eq!(turns.next(now), Some(NextLook::Guard(GuardId(5))));
        assert_eq!(turns.next(now), None);
        assert_eq!(turns.next(now.after(second)), Some(NextLook::Rest(rest(1, &[7]))));
        assert_eq!(turns.next(now.after(second)), None);
        assert_eq!(turns.next(now.after(2 * second)), Some(NextLook::Rest(rest(2, &[7]))));
        assert!(!has_rest(&turns, 2));
    }
}
