//! Checks a cgroup by the bystander rules right before an order changes it, on facts that are read for
//! that order. Those of a large cgroup are read on another thread, so that the loop goes on meanwhile.

use std::io;

use mcp_guard_core::{
    audit::Subject,
    effect::Containment,
    incident::{Hold, Outcome},
    refusal::BystanderFacts,
    repair::Write,
};

use super::{Executor, LateAnswer, OrderId, UnderWay, still_there};
use crate::{
    guards::{Guards, Held},
    host::facts::{self, LookThread},
};

/// The facts of a cgroup, or why they cannot be read.
pub type FactsFound = io::Result<BystanderFacts>;

/// The part of an order that follows its check.
pub enum AfterCheck {
    Contain(Containment),
    WriteLimit(Write, String),
    LeaveLimit(Write, String, (Outcome, String)),
}

/// An order whose cgroup is being looked at.
pub struct UnderCheck {
    order: OrderId,
    subject: Subject,
    then: AfterCheck,
}

impl UnderCheck {
    fn is_of(&self, subject: &Subject, hold: Hold) -> bool {
        let AfterCheck::Contain(wanted) = &self.then else { return false };
        self.subject == *subject && Hold::of(wanted.response) == Some(hold)
    }
}

impl Executor {
    /// Has large cgroups looked at on this thread. Without it, each look is as long as it takes.
    #[must_use]
    pub fn with_looks(self, looks: LookThread) -> Self {
        Self { looks: Some(looks), ..self }
    }

    /// Looks at the cgroup of an order, and carries the order out once the look is over.
    pub(super) fn check(&mut self, order: OrderId, held: &mut Held, then: AfterCheck) {
        let (ticket, answers) = (order.ticket, self.to_answers.clone());
        let answer = move |found| {
            // The receiver is gone only when the program ends.
            let _ = answers.send((ticket, LateAnswer::Look(found)));
        };
        let found = match &self.looks {
            Some(looks) => looks.look(&held.cgroup, answer),
            None => Some(facts::gather(&held.cgroup)),
        };
        let Some(found) = found else {
            let checked = UnderCheck { order, subject: held.subject.clone(), then };
            self.under_way.insert(ticket, UnderWay::Check(checked));
            return;
        };
        self.checked(order, held, then, found);
    }

    fn checked(&mut self, order: OrderId, held: &mut Held, then: AfterCheck, found: FactsFound) {
        match then {
            AfterCheck::Contain(wanted) => self.contain(order, held, wanted, found),
            AfterCheck::WriteLimit(write, reason) => {
                self.write_limit(order, held, (write, reason), &found);
            }
            AfterCheck::LeaveLimit(write, reason, said) => {
                self.leave_limit(order, held, (write, reason), said, &found);
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
        let UnderCheck { order, subject, then } = checked;
        match still_there(guards, order.guard, &subject) {
            Some(held) => self.checked(order, held, then, found),
            None => {
                let detail = "the cgroup was removed meanwhile".to_owned();
                self.settle(order, Outcome::NotOurs, detail);
            }
        }
    }

    /// Whether an order for this cgroup waits for a look.
    #[must_use]
    pub fn is_checking(&self, held: &Held) -> bool {
        let is_it = |one: &UnderWay| matches!(one, UnderWay::Check(checked) if checked.subject == held.subject);
        self.under_way.values().any(is_it)
    }

    /// Drops what was ordered and has not begun, because its hold ends.
    pub(super) fn abandon_check(&mut self, subject: &Subject, hold: Hold) {
        self.abandon_checks(|checked| checked.is_of(subject, hold));
    }

    /// Drops all orders that have not begun, because the agent ends.
    pub fn abandon_all_checks(&mut self) {
        self.abandon_checks(|_| true);
    }

    fn abandon_checks(&mut self, is_it: impl Fn(&UnderCheck) -> bool) {
        let is_it = |one: &UnderWay| matches!(one, UnderWay::Check(checked) if is_it(checked));
        let ended: Vec<_> = self.under_way.extract_if(.., |_, one| is_it(one)).collect();
        for (_, one) in ended {
            if let UnderWay::Check(UnderCheck { order, .. }) = one {
                let detail = "it ended before the cgroup was checked; nothing was done".to_owned();
                self.settle(order, Outcome::NotNeeded, detail);
            }
        }
    }
}
