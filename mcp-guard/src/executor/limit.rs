//! Writes a limit through its owner: one record before, one after, and the kernel's value read
//! back.

use mcp_guard_core::{
    audit::{Record, Subject},
    diagnose::owner::Standing,
    incident::Outcome,
    limit::Limit,
    limits,
    repair::Write,
};

use super::{Executor, FactsFound, LateAnswer, OrderId, UnderWay, steps, still_there};
use crate::{
    guards::{Guards, Held},
    host::facts,
    owner::{self, OwnerQuestion},
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
            let _ = answers.send((ticket, LateAnswer::Owner(answer)));
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
            Err(error) => (Outcome::Failed, error),
        };
        self.close(announced, outcome, detail);
    }

    /// Writes the record after a write, and settles the order.
    fn close(&mut self, announced: LimitWrite, outcome: Outcome, detail: String) {
        let LimitWrite { subject, reason, .. } = &announced;
        tracing::info!(name = subject.name, ?outcome, detail, reason, "limit");
        self.audit.write(announced.record(Some(outcome), detail.clone()));
        self.settle(announced.order, outcome, detail);
    }
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
    forbidden(held, &facts::gather(&held.cgroup))
}

fn forbidden(held: &Held, found: &FactsFound) -> Option<String> {
    match found {
        Ok(facts) => limits::forbidden(facts, steps::is_clamped(&held.cgroup))
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

    #[test]
    fn a_write_without_an_answer_still_gets_its_outcome_record() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("audit.jsonl");
        let audit = Audit::open(&log).unwrap();
        let mut executor = Executor::new(audit, Layout::read().unwrap(), Engines::default());
        let subject = Subject { name: "gw".into(), cgroup: "/gw".into(), cgroup_id: CgroupId(7) };
        let ticket = Tickets::default().draw();
        let order = OrderId { ticket, guard: GuardId(3), incident: Incident::from("a-1") };
        let announced = LimitWrite {
            order,
            subject,
            container: None,
            write: Write::PidsMax { limit: 40 },
            reason: String::new(),
            found: "max".into(),
        };
        executor.under_way.insert(ticket, UnderWay::Owner(announced));
        let mut guards = Guards::new();
        executor.abandon_limits(&mut guards);
        let settled = executor.settled().unwrap();
        assert_eq!((settled.ticket, settled.outcome), (ticket, Outcome::Failed));
        assert!(!executor.has_orders_under_way());
        drop(executor);
        let text = std::fs::read_to_string(&log).unwrap();
        let line: Line = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        let Record::Limit { outcome, detail, .. } = line.record else { panic!("{text}") };
        assert_eq!(outcome, Some(Outcome::Failed));
        assert!(detail.contains("did not answer"), "{detail}");
    }
}
