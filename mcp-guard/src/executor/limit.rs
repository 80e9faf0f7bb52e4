//! Writes a limit through its owner: one record before, one after, and the kernel's value read
//! back.

use mcp_guard_core::{
    audit::{Record, Subject},
    diagnose::owner::Standing,
    effect::Remark,
    id::Ticket,
    incident::Outcome,
    limit::Limit,
    limits,
    repair::Write,
};

use super::{Executor, FactsFound, LateAnswer, OrderId, UnderWay, steps, still_there};
use crate::{
    guards::{Guards, Held},
    host::facts::{self, LookWanted},
    owner::{self, OwnerQuestion, Unwritten},
};

/// A write that was announced and has not ended.
pub struct LimitWrite {
    order: OrderId,
    subject: Subject,
    container: Option<String>,
    write: Write,
    reason: String,
    found: String,
}

impl LimitWrite {
    pub(super) fn subject(&self) -> &Subject {
        &self.subject
    }

    fn record(&self, outcome: Option<Outcome>, detail: String) -> Record {
        Record::Limit {
            incident: self.order.incident.clone(),
            guard: self.subject.clone(),
            write: self.write.clone(),
            reason: self.reason.clone(),
            found: self.found.clone(),
            outcome,
            detail,
        }
    }
}

impl Executor {
    /// Announces a write, and asks the limit's owner for it if no rule forbids that.
    pub(super) fn write_limit(
        &mut self,
        order: OrderId,
        held: &mut Held,
        (write, over, reason): (Write, Limit, String),
        found: &FactsFound,
    ) {
        let Some(announced) = self.announce(order, held, (write, Some(over), reason), found) else {
            return;
        };
        let ask = OwnerQuestion {
            write: announced.write.clone(),
            cgroup: announced.subject.cgroup.clone(),
            container: announced.container.clone(),
        };
        let ticket = announced.order.ticket;
        self.under_way.insert(ticket, UnderWay::Owner(announced));
        let (engines, answers) = (self.engines.clone(), self.to_answers.clone());
        tokio::spawn(async move {
            let answer = owner::ask(ask, &engines).await;
            // The receiver is gone only when the program ends.
            let _ = answers.send((Some(ticket), LateAnswer::Owner(answer)));
        });
    }

    /// Writes both records of a write that is not made, with the reason.
    pub(super) fn leave_limit(
        &mut self,
        order: OrderId,
        held: &mut Held,
        (write, reason): (Write, String),
        (outcome, detail): (Outcome, String),
        found: &FactsFound,
    ) {
        if let Some(announced) = self.announce(order, held, (write, None, reason), found) {
            self.close(announced, outcome, detail);
        }
    }

    /// Writes the record before a write. Returns `None` if the write is forbidden or the cgroup is
    /// gone. That is then recorded, and the order is settled. `over`: see [`limits::overtaken`].
    fn announce(
        &mut self,
        order: OrderId,
        held: &mut Held,
        (write, over, reason): (Write, Option<Limit>, String),
        facts: &FactsFound,
    ) -> Option<LimitWrite> {
        held.cgroup.find_pids(&self.layout);
        let read = held.cgroup.pids_max();
        let overtaken = over
            .zip(read.as_ref().ok())
            .and_then(|(over, found)| limits::overtaken(&write, over, *found));
        let found = read.map_or_else(|error| error.to_string(), |max| max.to_string());
        let forbidden = forbidden(held, facts).or_else(|| {
            let there = limits::forbidden_there(&write, &held.subject.cgroup);
            there.or(overtaken).map(|one| one.to_string())
        });
        let (subject, container) = (held.subject.clone(), held.container.clone());
        let announced = LimitWrite { order, subject, container, write, reason, found };
        self.audit.write(announced.record(None, String::new()));
        let Some(forbidden) = forbidden else { return Some(announced) };
        self.close(announced, Outcome::Refused, forbidden);
        None
    }

    /// Writes both records of a write that ends before its cgroup was checked.
    pub(super) fn drop_limit(
        &mut self,
        order: OrderId,
        subject: Subject,
        (write, reason): (Write, String),
        (outcome, detail): (Outcome, String),
    ) {
        let found = "not read".to_owned();
        let dropped = LimitWrite { order, subject, container: None, write, reason, found };
        self.audit.write(dropped.record(None, String::new()));
        self.close(dropped, outcome, detail);
    }

    /// Ends a write with its owner's answer. A write is done only if its limit is read back.
    pub(super) fn end_limit(
        &mut self,
        guards: &mut Guards,
        announced: LimitWrite,
        answer: owner::OwnerAnswer,
    ) {
        let (outcome, detail) = match answer {
            Ok(kept) => read_back(
                still_there(guards, announced.order.guard, &announced.subject),
                &announced,
                kept,
            ),
            Err(unwritten) => return self.fail_limit(announced, unwritten),
        };
        self.close(announced, outcome, detail);
    }

    fn fail_limit(&mut self, announced: LimitWrite, unwritten: Unwritten) {
        let Unwritten { why, may_arrive } = unwritten;
        let detail = if may_arrive { format!("{why}; it may still arrive") } else { why };
        self.record_limit(&announced, Outcome::Failed, &detail);
        self.settle_with(announced.order, (Outcome::Failed, detail), arrives(may_arrive));
    }

    /// Ends an order whose owner has not answered, because a clamp waits for it no longer. A write that was not
    /// sent yet never is.
    pub(super) fn give_up_limit(&mut self, write: Ticket) {
        self.abandon_check_of(write);
        let announced = match self.under_way.remove(&write) {
            Some(UnderWay::Owner(announced)) => announced,
            Some(
                UnderWay::Check(_)
                | UnderWay::Kernel(_)
                | UnderWay::Servers(_)
                | UnderWay::GivenUp(_),
            )
            | None => return,
        };
        // Written here, once its turn comes.
        if matches!(announced.write, Write::PidsMax { .. }) {
            let detail = "a clamp came first; nothing was written".to_owned();
            return self.close(announced, Outcome::NotNeeded, detail);
        }
        let detail = "the owner has not answered, and a clamp waits no longer; it may still arrive";
        self.record_limit(&announced, Outcome::Failed, detail);
        let said = (Outcome::Failed, detail.to_owned());
        self.settle_with(announced.order.clone(), said, arrives(true));
        self.under_way.insert(write, UnderWay::GivenUp(announced));
    }

    /// Records the answer of an owner that nobody waited for any more.
    pub(super) fn note_late_limit(
        &mut self,
        guards: &mut Guards,
        announced: LimitWrite,
        answer: owner::OwnerAnswer,
    ) {
        let held = still_there(guards, announced.order.guard, &announced.subject);
        let now = held.and_then(|held| held.cgroup.pids_max().ok());
        let now = now.map_or_else(|| "cannot be read".to_owned(), |now| format!("is {now}"));
        let (outcome, may_arrive, detail) = match answer {
            Ok(_) => (Outcome::Done, false, format!("the owner wrote it late; pids.max {now} now")),
            Err(Unwritten { why, may_arrive }) => (Outcome::Failed, may_arrive, why),
        };
        if outcome == Outcome::Done {
            self.record_limit(&announced, outcome, &detail);
        }
        self.settle_with(announced.order, (outcome, detail), arrives(may_arrive));
    }

    /// Writes the record after a write, and settles the order.
    fn close(&mut self, announced: LimitWrite, outcome: Outcome, detail: String) {
        self.record_limit(&announced, outcome, &detail);
        self.settle(announced.order, outcome, detail);
    }

    fn record_limit(&mut self, announced: &LimitWrite, outcome: Outcome, detail: &str) {
        let LimitWrite { subject, reason, .. } = announced;
        tracing::info!(name = subject.name, ?outcome, detail, reason, "limit");
        self.audit.write(announced.record(Some(outcome), detail.to_owned()));
    }
}

fn arrives(may_arrive: bool) -> Option<Remark> {
    may_arrive.then_some(Remark::MayArrive)
}

fn read_back(
    held: Option<&mut Held>,
    announced: &LimitWrite,
    kept: Option<Limit>,
) -> (Outcome, String) {
    let Some(held) = held else {
        return (
            Outcome::NotOurs,
            "the guard ended meanwhile, or its cgroup was removed".to_owned(),
        );
    };
    match &announced.write {
        Write::PidsMax { limit } => steps::limit(&held.cgroup, Limit::Tasks(*limit)),
        Write::Docker { limit } | Write::Podman { limit } => {
            steps::limit_is(&held.cgroup, &announced.found, Limit::Tasks(*limit))
        }
        Write::TasksMax { unit, limit, .. } if kept != Some(Limit::Tasks(*limit)) => {
            let kept = kept.map_or_else(|| "none".to_owned(), |kept| kept.to_string());
            (Outcome::Failed, format!("TasksMax of {unit} is {kept} after {limit} was set"))
        }
        Write::TasksMax { unit, limit, .. } => match Standing::of(&held.subject.cgroup, unit) {
            Some(Standing::Own) => {
                steps::limit_is(&held.cgroup, &announced.found, Limit::Tasks(*limit))
            }
            // The unit's pids.max is in another cgroup, the one above.
            Some(Standing::Payload) | None => {
                (Outcome::Done, format!("TasksMax {limit} of {unit} read back"))
            }
        },
    }
}

/// Returns why no limit of this cgroup may be written now.
pub fn forbids(held: &Held) -> Option<String> {
    forbidden(held, &facts::look_at(&held.cgroup, LookWanted::FACTS))
}

fn forbidden(held: &Held, found: &FactsFound) -> Option<String> {
    match found {
        Ok(found) => limits::forbidden(&found.facts, steps::is_clamped(&held.cgroup))
            .map(|forbidden| forbidden.to_string()),
        Err(error) => Some(format!("the cgroup cannot be checked: {error}; nothing was written")),
    }
}

#[cfg(test)]
mod tests {
    use mcp_guard_core::{
        audit::Line,
        id::{CgroupId, GuardId, Incident, Tickets},
    };

    use super::*;
    use crate::{audit::Audit, engine::Engines, host::layout::Layout};

    /// Returns an executor that has asked for this write, and its log.
    fn asked(write: Write) -> (tempfile::TempDir, Executor, Ticket) {
        let folder = tempfile::tempdir().unwrap();
        let audit = Audit::open(&folder.path().join("audit.jsonl")).unwrap();
        let mut executor = Executor::new(audit, Layout::read().unwrap(), Engines::default());
        let subject = Subject { name: "gw".into(), cgroup: "/gw".into(), cgroup_id: CgroupId(7) };
        let ticket = Tickets::default().draw();
        let order = OrderId { ticket, guard: GuardId(3), incident: Incident::from("a-1") };
        let (reason, found) = (String::new(), "max".into());
        let announced = LimitWrite { order, subject, container: None, write, reason, found };
        executor.under_way.insert(ticket, UnderWay::Owner(announced));
        (folder, executor, ticket)
    }

    fn outcomes(folder: &tempfile::TempDir) -> Vec<(Outcome, String)> {
        let text = std::fs::read_to_string(folder.path().join("audit.jsonl")).unwrap();
        let outcome = |line: &str| {
            let record = serde_json::from_str::<Line>(line).unwrap().record;
            let Record::Limit { outcome, detail, .. } = record else { panic!("{line}") };
            outcome.map(|outcome| (outcome, detail))
        };
        text.lines().filter_map(outcome).collect()
    }

    #[test]
    fn a_write_that_is_given_up_may_arrive_and_its_late_answer_is_recorded() {
        let refused = Unwritten { why: "no such container".to_owned(), may_arrive: false };
        for (answer, late) in [(Ok(None), Some(Outcome::Done)), (Err(refused), None)] {
            let (folder, mut executor, ticket) = asked(Write::Docker { limit: 40 });
            executor.give_up_limit(ticket);
            let settled = executor.settled().unwrap();
            assert_eq!((settled.outcome, settled.remark), (Outcome::Failed, arrives(true)));
            assert!(!executor.has_orders_under_way() && !executor.awaits_owners());
            executor.take_answer(&mut Guards::new(), Some(ticket), LateAnswer::Owner(answer));
            let settled = executor.settled().unwrap();
            let expected = late.unwrap_or(Outcome::Failed);
            assert_eq!((settled.outcome, settled.remark), (expected, None));
            drop(executor);
            let outcomes = outcomes(&folder);
            assert!(outcomes[0].1.contains("it may still arrive"), "{outcomes:?}");
            let outcomes: Vec<_> = outcomes.into_iter().map(|(outcome, _)| outcome).collect();
            assert_eq!(
                outcomes,
                [Some(Outcome::Failed), late].into_iter().flatten().collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn a_write_of_ours_that_is_given_up_is_never_made() {
        let (folder, mut executor, ticket) = asked(Write::PidsMax { limit: 40 });
        executor.give_up_limit(ticket);
        let settled = executor.settled().unwrap();
        assert_eq!((settled.outcome, settled.remark), (Outcome::NotNeeded, None));
        executor.take_answer(&mut Guards::new(), Some(ticket), LateAnswer::Owner(Ok(None)));
        assert!(executor.settled().is_none());
        drop(executor);
        assert_eq!(outcomes(&folder).len(), 1);
    }

    #[test]
    fn a_write_without_an_answer_still_gets_its_outcome_record() {
        let (folder, mut executor, ticket) = asked(Write::PidsMax { limit: 40 });
        executor.abandon_limits(&mut Guards::new());
        let settled = executor.settled().unwrap();
        assert_eq!((settled.ticket, settled.outcome), (ticket, Outcome::Failed));
        assert!(!executor.has_orders_under_way());
        drop(executor);
        let outcomes = outcomes(&folder);
        let [(Outcome::Failed, detail)] = &outcomes[..] else { panic!("{outcomes:?}") };
        assert!(detail.contains("did not answer"), "{detail}");
    }
}
