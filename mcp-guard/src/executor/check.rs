//! Checks a cgroup by the bystander rules right before an order changes it, on facts that are read for
//! that order. Other threads read them, so that the loop goes on if that takes long.

use std::io;

use mcp_guard_core::{
    audit::Subject,
    effect::Containment,
    id::Ticket,
    incident::{Hold, Outcome},
    limit::Limit,
    policy::Response,
    repair::Write,
    server_order::{ServerAct, ServersOrder},
};

use super::{Executor, LateAnswer, OrderId, UnderWay, still_there};
use crate::{
    guards::{Guards, Held},
    host::cgroup::Cgroup,
    host::facts::{self, LookFound, LookThread, LookWanted},
};

/// The facts of a cgroup, or why they cannot be read.
pub type FactsFound = io::Result<LookFound>;

/// The part of an order that follows its check.
pub enum AfterCheck {
    Contain(Containment),
    /// The limit is that in force when the write was decided on.
    WriteLimit(Write, Limit, String),
    LeaveLimit(Write, String, (Outcome, String)),
    Servers(ServerAct, ServersOrder),
}

/// An order whose cgroup is being looked at.
pub struct UnderCheck {
    order: OrderId,
    subject: Subject,
    then: AfterCheck,
}

impl UnderCheck {
    pub(super) fn subject(&self) -> &Subject {
        &self.subject
    }

    fn is_of(&self, subject: &Subject, hold: Hold) -> bool {
        let AfterCheck::Contain(wanted) = &self.then else { return false };
        self.subject.is_same_cgroup(subject) && Hold::of(wanted.response) == Some(hold)
    }
}

impl Executor {
    /// Has cgroups looked at on these threads. Without it, each look is as long as it takes.
    #[must_use]
    pub fn with_looks(self, looks: LookThread) -> Self {
        Self { looks: Some(looks), ..self }
    }

    /// Looks at the cgroup of an order, and carries the order out once the look is over.
    pub(super) fn check(&mut self, order: OrderId, held: &mut Held, then: AfterCheck) {
        let wanted = match &then {
            AfterCheck::Contain(wanted) if wanted.response == Response::Clamp => {
                // On a hybrid host the pids cgroup is found through a process, and the cgroup may have been
                // empty when its guard began.
                held.cgroup.find_pids(&self.layout);
                LookWanted::SHARING
            }
            AfterCheck::Contain(wanted) if wanted.response == Response::Freeze => LookWanted::FUSE,
            AfterCheck::Contain(_)
            | AfterCheck::WriteLimit(..)
            | AfterCheck::LeaveLimit(..)
            | AfterCheck::Servers(..) => LookWanted::FACTS,
        };
        let Some(found) = self.look(order.ticket, &held.cgroup, wanted, LateAnswer::Look) else {
            let checked = UnderCheck { order, subject: held.subject.clone(), then };
            self.under_way.insert(checked.order.ticket, UnderWay::Check(checked));
            return;
        };
        self.checked(order, held, then, found);
    }

    /// Looks at a cgroup. `None` if the answer comes later.
    pub(super) fn look(
        &self,
        ticket: Ticket,
        cgroup: &Cgroup,
        wanted: LookWanted,
        answer: impl FnOnce(FactsFound) -> LateAnswer + Send + 'static,
    ) -> Option<FactsFound> {
        let Some(looks) = &self.looks else { return Some(facts::look_at(cgroup, wanted)) };
        let answers = self.to_answers.clone();
        looks.look(cgroup, wanted, move |found| {
            // The receiver is gone only when the program ends.
            let _ = answers.send((Some(ticket), answer(found)));
        })
    }

    fn checked(&mut self, order: OrderId, held: &mut Held, then: AfterCheck, found: FactsFound) {
        match then {
            AfterCheck::Contain(wanted) => self.contain(order, held, wanted, found),
            AfterCheck::WriteLimit(write, over, reason) => {
                self.write_limit(order, held, (write, over, reason), &found);
            }
            AfterCheck::LeaveLimit(write, reason, said) => {
                self.leave_limit(order, held, (write, reason), said, &found);
            }
            AfterCheck::Servers(act, wanted) => {
                self.act_on_servers(order, held, (act, wanted), found);
            }
        }
    }

    /// Carries out an order whose cgroup was looked at on the other thread.
    pub(super) fn end_check(
        &mut self,
        guards: &mut Guards,
        checked: UnderCheck,
        found: FactsFound,
    ) {
        match still_there(guards, checked.order.guard, &checked.subject) {
            Some(held) => self.checked(checked.order, held, checked.then, found),
            None => self.drop(
                checked,
                Outcome::NotOurs,
                "the guard ended meanwhile, or its cgroup was removed",
            ),
        }
    }

    /// Whether an order for this cgroup waits for a look.
    #[must_use]
    pub fn is_checking(&self, held: &Held) -> bool {
        let is_it = |one: &UnderWay| matches!(one, UnderWay::Check(checked) if checked.subject.is_same_cgroup(&held.subject));
        self.under_way.values().any(is_it)
    }

    /// Drops what was ordered and has not begun, because its hold ends.
    pub(super) fn abandon_check(&mut self, subject: &Subject, hold: Hold) {
        self.abandon_checks(|checked| checked.is_of(subject, hold));
    }

    /// Drops an order that has not begun.
    pub(super) fn abandon_check_of(&mut self, order: Ticket) {
        self.abandon_checks(|checked| checked.order.ticket == order);
    }

    /// Drops all orders that have not begun, because the agent ends.
    pub fn abandon_all_checks(&mut self) {
        self.abandon_checks(|_| true);
    }

    fn abandon_checks(&mut self, is_it: impl Fn(&UnderCheck) -> bool) {
        let is_it = |one: &UnderWay| matches!(one, UnderWay::Check(checked) if is_it(checked));
        let ended: Vec<_> = self.under_way.extract_if(.., |_, one| is_it(one)).collect();
        for (_, one) in ended {
            if let UnderWay::Check(checked) = one {
                let detail = "it ended before the cgroup was checked; nothing was done";
                self.drop(checked, Outcome::NotNeeded, detail);
            }
        }
    }

    /// Records and settles an order that is not carried out.
    fn drop(&mut self, checked: UnderCheck, outcome: Outcome, detail: &str) {
        let UnderCheck { order, subject, then } = checked;
        let said = (outcome, detail.to_owned());
        match then {
            AfterCheck::Contain(wanted) => {
                self.intend(&order, &subject, &wanted, None, None);
                self.outcome(order, subject, wanted.response, said, None);
            }
            AfterCheck::WriteLimit(write, _, reason) | AfterCheck::LeaveLimit(write, reason, _) => {
                self.drop_limit(order, subject, (write, reason), said);
            }
            AfterCheck::Servers(act, wanted) => {
                self.drop_servers(order, &subject, (act, wanted), said);
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::{fs::File, os::fd::OwnedFd, path::Path, time::Duration};

    use mcp_guard_core::{
        Time,
        audit::{Line, Record},
        id::{CgroupId, GuardId, Incident, Tickets},
        incident::Cause,
        policy::Mode,
        refusal::BystanderFacts,
    };

    use super::*;
    use crate::{
        audit::Audit,
        engine::Engines,
        host::{cgroup::Dir, facts::Sharing, layout::Layout},
    };

    fn subject() -> Subject {
        Subject { name: "gw".into(), cgroup: "/gw".into(), cgroup_id: CgroupId(7) }
    }

    fn freeze() -> AfterCheck {
        AfterCheck::Contain(containment(Response::Freeze))
    }

    pub fn containment(response: Response) -> Containment {
        Containment {
            response,
            mode: Mode::Enforce,
            cause: Cause::operator(),
            lease: Duration::from_secs(60),
            headroom: 0,
            decided: Time(0),
            despite: None,
            spares_fuse: false,
        }
    }

    /// A guard whose cgroup is this folder.
    pub fn held_at(folder: &Path) -> Held {
        let dir = Dir::from(OwnedFd::from(File::open(folder).unwrap()));
        let layout = Layout::bare();
        let cgroup = Cgroup::at(&dir, "/gw", Hold::Freeze, &layout).unwrap();
        Held::new(cgroup, "gw", None, false)
    }

    fn limit() -> AfterCheck {
        AfterCheck::WriteLimit(Write::PidsMax { limit: 40 }, Limit::Max, "operator".into())
    }

    /// Has orders under check, ends them, and returns how they are settled and what the log has of each.
    fn ended(
        orders: impl IntoIterator<Item = AfterCheck>,
        end: impl Fn(&mut Executor, &[Ticket]),
    ) -> (Vec<Outcome>, Vec<Record>) {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("audit.jsonl");
        let audit = Audit::open(&log).unwrap();
        let mut executor = Executor::new(audit, Layout::read().unwrap(), Engines::default());
        let mut tickets = Tickets::default();
        let tickets: Vec<Ticket> = orders
            .into_iter()
            .map(|then| {
                let ticket = tickets.draw();
                let order = OrderId { ticket, guard: GuardId(3), incident: Incident::from("a-1") };
                let checked = UnderCheck { order, subject: subject(), then };
                executor.under_way.insert(ticket, UnderWay::Check(checked));
                ticket
            })
            .collect();
        end(&mut executor, &tickets);
        let settled = std::iter::from_fn(|| executor.settled()).map(|one| one.outcome).collect();
        assert!(!executor.has_orders_under_way());
        drop(executor);
        let text = std::fs::read_to_string(&log).unwrap();
        let record = |line| serde_json::from_str::<Line>(line).unwrap().record;
        (settled, text.lines().map(record).collect())
    }

    #[test]
    fn an_executor_needs_a_guard_while_its_order_is_under_check() {
        let folder = tempfile::tempdir().unwrap();
        let mut held = held_at(folder.path());
        let needs = |executor: &mut Executor, held: &Held| {
            let needs = executor.needs(held);
            executor.abandon_all_checks();
            assert!(!executor.needs(held), "the order has ended");
            needs
        };
        held.subject = subject();
        ended([limit()], |executor, _| assert!(needs(executor, &held)));
        held.rename("its engine's name for it");
        ended([limit()], |executor, _| assert!(needs(executor, &held), "renamed meanwhile"));
        held.subject.cgroup_id = CgroupId(8);
        ended([limit()], |executor, _| assert!(!needs(executor, &held), "of another cgroup"));
    }

    #[test]
    fn an_order_that_ends_under_its_check_is_in_the_log() {
        let abandon = |executor: &mut Executor, _: &[Ticket]| {
            executor.abandon_check(&subject(), Hold::Clamp);
            assert!(executor.settled().is_none(), "another hold");
            executor.abandon_check(&subject(), Hold::Freeze);
        };
        let (settled, log) = ended([freeze()], abandon);
        assert_eq!(settled, [Outcome::NotNeeded]);
        let [Record::Intent { processes, lease_ms, .. }, Record::Outcome { outcome, detail, .. }] =
            &log[..]
        else {
            panic!("{log:?}")
        };
        assert_eq!((*processes, *lease_ms), (None, Some(60_000)), "they were not counted");
        assert_eq!(*outcome, Outcome::NotNeeded);
        assert!(detail.contains("nothing was done"), "{detail}");
    }

    #[test]
    fn all_orders_under_check_are_in_the_log_when_the_agent_ends() {
        let (settled, log) =
            ended([freeze(), limit()], |executor, _| executor.abandon_all_checks());
        assert_eq!(settled, [Outcome::NotNeeded; 2]);
        let [_, _, Record::Limit { outcome: None, .. }, Record::Limit { outcome, found, .. }] =
            &log[..]
        else {
            panic!("{log:?}")
        };
        assert_eq!((*outcome, found.as_str()), (Some(Outcome::NotNeeded), "not read"));
    }

    #[test]
    fn an_order_whose_cgroup_is_removed_under_its_check_is_in_the_log() {
        let removed = |executor: &mut Executor, tickets: &[Ticket]| {
            for ticket in tickets {
                let facts = BystanderFacts::default();
                let found = LookFound { facts, sharing: Sharing::NotLooked };
                executor.take_answer(
                    &mut Guards::new(),
                    Some(*ticket),
                    LateAnswer::Look(Ok(found)),
                );
            }
        };
        let (settled, log) = ended([freeze(), limit()], removed);
        assert_eq!(settled, [Outcome::NotOurs; 2]);
        assert_eq!(log.len(), 4, "{log:?}");
    }
}
