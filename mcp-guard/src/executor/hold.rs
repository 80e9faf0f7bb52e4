//! Renews, loosens, releases and disowns holds.

use std::time::Duration;

use mcp_guard_core::{
    audit::{Record, Subject},
    id::Incident,
    incident::{Cause, End, Hold, Outcome},
    limit::Limit,
    policy::{Mode, Response},
};

use super::{Executor, OrderId, steps};
use crate::{
    guards::Held,
    host::{
        clock,
        mark::{self, Mark},
        process,
    },
};

impl Executor {
    pub(super) fn renew(&mut self, order: OrderId, held: &Held, lease: Duration) {
        let deadline = clock::now().after(lease);
        let renewed = steps::renew_clamp(&held.cgroup, deadline);
        self.outcome(order, held.subject.clone(), Response::Clamp, renewed, None);
    }

    pub(super) fn loosen(
        &mut self,
        order: OrderId,
        held: &Held,
        by: u64,
        aborts: u64,
        denials: u64,
    ) {
        let numbers = [("by", by), ("sigabrt_exits", aborts), ("refused_forks", denials)];
        let numbers = numbers.map(|(name, number)| (name.to_owned(), number)).into();
        self.audit.write(Record::Intent {
            incident: order.incident.clone(),
            guard: held.subject.clone(),
            response: Response::Clamp,
            mode: Mode::Enforce,
            cause: Cause { numbers, ..Cause::operator() },
            lease_ms: None,
            pids_max: None,
            processes: None,
            despite: None,
        });
        let (outcome, detail) = steps::loosen(&held.cgroup, by);
        let detail =
            format!("{detail}, after {aborts} exits by SIGABRT and {denials} refused forks");
        self.outcome(order, held.subject.clone(), Response::Clamp, (outcome, detail), None);
    }

    /// Releases a hold, if the state is still ours.
    pub(super) fn release(&mut self, order: OrderId, held: &Held, hold: Hold, end: End) {
        let (incident, subject) = (&order.incident, &held.subject);
        self.abandon_check(subject, hold);
        self.audit.write(release_record(incident, subject, hold, end, None, String::new()));
        let (outcome, detail) = match hold {
            Hold::Freeze => steps::thaw(&held.cgroup, self.engine_freezes(held)),
            Hold::Clamp => steps::unclamp(&held.cgroup),
        };
        if hold == Hold::Freeze {
            self.abandon_freeze(subject);
        }
        tracing::info!(name = subject.name, ?hold, ?end, ?outcome, detail, "released");
        let said = Some(outcome);
        self.audit.write(release_record(incident, subject, hold, end, said, detail.clone()));
        self.settle(order, outcome, detail);
    }

    pub(super) fn disown(&mut self, order: OrderId, held: &Held, hold: Hold, end: End) {
        let subject = &held.subject;
        self.abandon_check(subject, hold);
        let by = match end {
            End::LateWrite => "the owner has made a write of mcp-guard late",
            End::LeaseOver
            | End::Operator
            | End::Shutdown
            | End::Reconcile
            | End::ThawedByOther
            | End::UnclampedByOther
            | End::Unguarded => "another process has changed it",
        };
        let detail = steps::disown(&held.cgroup, hold, by);
        if hold == Hold::Freeze {
            self.abandon_freeze(subject);
        }
        tracing::info!(name = subject.name, ?hold, ?end, detail, "disowned");
        let said = Some(Outcome::NotOurs);
        let record = release_record(&order.incident, subject, hold, end, said, detail.clone());
        self.audit.write(record);
        self.settle(order, Outcome::NotOurs, detail);
    }
}

/// Returns the marks on a cgroup, of this process or an earlier one.
#[must_use]
pub fn marks(held: &Held) -> Vec<(Hold, Mark)> {
    let freeze = mark::read(held.cgroup.dir(), Hold::Freeze).ok().flatten();
    let clamp = held.cgroup.pids_dir().and_then(|dir| mark::read(dir, Hold::Clamp).ok());
    // A limit that was lowered beside a freeze ends with it, and is no hold of its own.
    let clamp = clamp.flatten().filter(|mark| freeze.is_none() || !mark.ends_with_a_freeze());
    let slots = [(Hold::Freeze, freeze), (Hold::Clamp, clamp)];
    slots.into_iter().filter_map(|(slot, mark)| Some((slot, mark?))).collect()
}

/// Whether the cgroup carries a mark of this process.
#[must_use]
pub fn is_marked(held: &Held) -> bool {
    marks(held).iter().any(|(_, mark)| mark.holder == process::this())
}

/// Returns the limit that has replaced the one of our clamp.
#[must_use]
pub fn unclamped(held: &Held) -> Option<Limit> {
    steps::unclamped(&held.cgroup)
}

/// Combines several releases into one outcome, the first that is not `Done`: `Done` means that all
/// of them were read back. `None` if there was no release.
#[must_use]
pub fn together(released: Vec<(Outcome, String)>) -> Option<(Outcome, String)> {
    let outcomes = || released.iter().map(|(outcome, _)| *outcome);
    let worst = outcomes().find(|one| *one != Outcome::Done).or_else(|| outcomes().next())?;
    let details: Vec<String> = released.into_iter().map(|(_, detail)| detail).collect();
    Some((worst, details.join("; ")))
}

pub(super) fn release_record(
    incident: &Incident,
    guard: &Subject,
    hold: Hold,
    end: End,
    outcome: Option<Outcome>,
    detail: String,
) -> Record {
    let (incident, guard, response) = (incident.clone(), guard.clone(), hold.into());
    Record::Release { incident, guard, response, end, outcome, detail }
}
