//! Checks the bystander rules again while a guard lasts. The core decides when a refusal begins and ends.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    time::{Duration, Instant},
};

use mcp_guard_core::{
    Time,
    effect::{Input, Settled},
    id::{CgroupId, GuardId},
    incident::Outcome,
    refusal::{BystanderFacts, Refusal, refusal},
};
use tokio::sync::mpsc::UnboundedSender;

use super::Agent;
use crate::host::{
    cgroup::Cgroup,
    clock,
    facts::{LookFound, LookThread, LookWanted},
};

/// Interval between two checks of a guard that may be acted on. An action checks by itself.
const ALLOWED_AGAIN: Duration = Duration::from_secs(60);
/// Interval between two checks of a guard that is refused, so that it is acted on soon after.
const REFUSED_AGAIN: Duration = Duration::from_secs(1);
/// Most of the loop's time that the checks of one guard may take: one part in this many.
const SHARE: u32 = 100;

/// The end of a look on the other thread.
pub(super) struct Looked {
    guard: GuardId,
    /// The slot may have another guard by now.
    cgroup: CgroupId,
    found: io::Result<LookFound>,
}

/// When each guard is checked again.
pub(super) struct Standings {
    next: BTreeMap<GuardId, Time>,
    /// Guards that are being looked at on the other thread.
    under_way: BTreeSet<GuardId>,
    looks: LookThread,
    to_loop: UnboundedSender<Looked>,
}

impl Standings {
    pub fn new(looks: LookThread, to_loop: UnboundedSender<Looked>) -> Self {
        Self { next: BTreeMap::new(), under_way: BTreeSet::new(), looks, to_loop }
    }

    /// Has the facts of a cgroup read on another thread. `None` if the cgroup cannot be checked, or if that takes
    /// long: it then ends with a [`Looked`].
    fn look(&mut self, guard: GuardId, cgroup: &Cgroup) -> Option<BystanderFacts> {
        if self.under_way.contains(&guard) {
            return None;
        }
        let (to_loop, id) = (self.to_loop.clone(), cgroup.id());
        let found = self.looks.look(cgroup, LookWanted::FACTS, move |found| {
            // The receiver is gone only when the program ends.
            let _ = to_loop.send(Looked { guard, cgroup: id, found });
        });
        if found.is_none() {
            self.under_way.insert(guard);
        }
        found?.ok().map(|found| found.facts)
    }

    /// Notes the end of an order. If the executor refused it, the core does not know why yet.
    pub fn settled(&mut self, settled: &Settled) {
        if settled.outcome == Outcome::Refused
            && let Some(next) = self.next.get_mut(&settled.guard)
        {
            *next = Time(0);
        }
    }

    pub fn forget(&mut self, guard: GuardId) {
        self.next.remove(&guard);
    }

    /// Whether the guard must be checked. A new guard was checked when it began.
    fn is_due(&mut self, guard: GuardId, now: Time, is_refused: bool) -> bool {
        let next = self.next.entry(guard).or_insert_with(|| {
            // Not all guards in the same turn.
            let own_place = Duration::from_secs(1 + u64::from(guard.0) % ALLOWED_AGAIN.as_secs());
            now.after(if is_refused { REFUSED_AGAIN } else { own_place })
        });
        *next <= now
    }

    /// Notes a check that took `cost`.
    fn checked(&mut self, guard: GuardId, now: Time, is_refused: bool, cost: Duration) {
        let again = if is_refused { REFUSED_AGAIN } else { ALLOWED_AGAIN };
        self.next.insert(guard, now.after(again.max(cost * SHARE)));
    }
}

impl Agent {
    /// Checks a guard, for an operator who waits.
    pub(super) fn judge_now(&mut self, guard: GuardId) {
        self.judge(guard, true);
    }

    pub(super) fn judge_if_due(&mut self, guard: GuardId, now: Time) {
        let is_refused = self.is_refused(guard);
        if self.standings.is_due(guard, now, is_refused) {
            self.judge(guard, false);
        }
    }

    /// Has the core take what the rules say now. It keeps the last word if the cgroup cannot be checked.
    fn judge(&mut self, guard: GuardId, asked: bool) {
        let Some(held) = self.guards.get(guard) else { return };
        let began = Instant::now();
        let facts = self.standings.look(guard, &held.cgroup);
        let cost = began.elapsed();
        if let Some(facts) = facts {
            self.step(Input::Standing { guard, refusal: refusal(&facts), asked });
        }
        self.standings.checked(guard, clock::now(), self.is_refused(guard), cost);
    }

    /// Returns what the rules say about the cgroup of a new guard, as far as that is known at once.
    pub(super) fn first_refusal(&mut self, guard: GuardId, cgroup: &Cgroup) -> Option<Refusal> {
        self.standings.look(guard, cgroup).as_ref().and_then(refusal)
    }

    /// Takes what a look on the other thread has found.
    pub(super) fn looked(&mut self, looked: Looked) {
        let Looked { guard, cgroup, found } = looked;
        self.standings.under_way.remove(&guard);
        let is_present = self.guards.get(guard).is_some_and(|held| held.cgroup.id() == cgroup);
        if let (true, Ok(found)) = (is_present, found) {
            self.step(Input::Standing { guard, refusal: refusal(&found.facts), asked: false });
            let is_refused = self.is_refused(guard);
            self.standings.checked(guard, clock::now(), is_refused, Duration::ZERO);
        }
    }

    fn is_refused(&self, guard: GuardId) -> bool {
        self.core.guard(guard).is_some_and(|state| state.refusal.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standings() -> Standings {
        let (to_loop, _) = tokio::sync::mpsc::unbounded_channel();
        Standings::new(LookThread::start().unwrap(), to_loop)
    }

    const GUARD: GuardId = GuardId(61);
    const AT: Time = Time(1_000_000_000_000);

    fn at(seconds: u64) -> Time {
        AT.after(Duration::from_secs(seconds))
    }

    #[test]
    fn a_guard_is_checked_every_minute_and_a_refused_one_every_second() {
        let mut standings = standings();
        assert!(!standings.is_due(GUARD, at(0), false));
        assert!(standings.is_due(GUARD, at(2), false), "its own place within the minute");
        standings.forget(GUARD);
        assert!(!standings.is_due(GUARD, at(0), true) && standings.is_due(GUARD, at(1), true));
        standings.checked(GUARD, at(2), false, Duration::ZERO);
        assert!(!standings.is_due(GUARD, at(61), false) && standings.is_due(GUARD, at(62), false));
        standings.checked(GUARD, at(62), true, Duration::ZERO);
        assert!(standings.is_due(GUARD, at(63), true));
        standings.checked(GUARD, at(63), true, Duration::from_millis(500));
        assert!(!standings.is_due(GUARD, at(112), true), "a check that takes long is rare");
        assert!(standings.is_due(GUARD, at(113), true));
    }

    #[test]
    fn an_order_that_the_executor_refused_leads_to_a_check() {
        let mut standings = standings();
        standings.checked(GUARD, at(0), false, Duration::ZERO);
        let ticket = mcp_guard_core::id::Tickets::default().draw();
        let settled = |outcome| Settled {
            ticket,
            guard: GUARD,
            outcome,
            detail: String::new(),
            remark: None,
        };
        standings.settled(&settled(Outcome::Done));
        assert!(!standings.is_due(GUARD, at(1), false));
        standings.settled(&settled(Outcome::Refused));
        assert!(standings.is_due(GUARD, at(1), false));
    }
}
