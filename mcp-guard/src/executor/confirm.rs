//! A freeze or a kill is done when the kernel confirms it, not when it is written. Until then it is
//! requested, however long that takes: a task that waits in the kernel, or for its share of a CPU,
//! stops late, and a freeze that was undone for it would stop nothing.

use std::{io, time::Duration};

use mcp_guard_core::{
    Time,
    audit::{Subject, Timing},
    effect::Containment,
    id::Ticket,
    incident::Outcome,
    policy::Response,
};
use tokio::task::AbortHandle;

use super::{
    Executor, FactsFound, LateAnswer, OrderId, UnderWay, is_gone, micros, steps, steps::Until,
    still_there,
};
use crate::{
    guards::{Guards, Held},
    host::{
        cgroup::{Cgroup, Dir, EventsWatch, TaskCount},
        clock,
        facts::{LookWanted, Sharing},
    },
};

/// A freeze that the kernel does not confirm within this time also lowers `pids.max`.
const PROMPT: Duration = Duration::from_millis(100);
/// An order that the kernel does not confirm within this time is reported as requested.
const CONFIRM: Duration = Duration::from_secs(2);
/// Interval between two counts of what is left after that.
const COUNT_AGAIN: Duration = Duration::from_secs(10);

/// The kernel's answer to an order that was written.
pub enum KernelAnswer {
    Confirmed,
    /// It takes longer than usual.
    Slow,
    /// The cgroup of a slow freeze was looked at.
    Looked(FactsFound),
    /// These tasks have not stopped, or not ended.
    Left(TaskCount),
    /// The cgroup was removed.
    Removed(io::Error),
    /// It cannot be read now.
    Unread(io::Error),
}

/// An order that the kernel has not confirmed yet.
pub struct Awaited {
    order: OrderId,
    /// A copy, because the guard may be gone by then, and the order still needs its record.
    subject: Subject,
    response: Response,
    until: Until,
    decided: Time,
    written: Time,
    /// Further changes that were made with it, for the outcome.
    note: String,
    /// The order is settled as requested.
    is_settled: bool,
    left: Option<TaskCount>,
    watch: AbortHandle,
}

impl Drop for Awaited {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

impl Awaited {
    /// Whether a client or the core still waits for the outcome.
    pub(super) fn is_unsettled(&self) -> bool {
        !self.is_settled
    }

    pub(super) fn subject(&self) -> &Subject {
        &self.subject
    }

    fn is_of(&self, subject: &Subject, until: Until) -> bool {
        self.until == until && self.subject.is_same_cgroup(subject)
    }

    fn stop_growth(&mut self, cgroup: &Cgroup, sharing: io::Result<Sharing>) {
        self.note.push_str(&format!("; {}", steps::stop_growth(cgroup, sharing)));
    }

    fn requested(&self, left: &str) -> String {
        match self.until {
            Until::Frozen => format!("cgroup.freeze 1 written; {left}{}", self.note),
            Until::Dead => format!("cgroup.kill written; {left}"),
        }
    }
}

impl Executor {
    pub(super) fn await_kernel(
        &mut self,
        order: OrderId,
        held: &Held,
        wanted: &Containment,
        (written, until): (Time, Until),
        note: String,
    ) {
        let (ticket, answers) = (order.ticket, self.to_answers.clone());
        let answer = move |answer| {
            let at = clock::now();
            // The receiver is gone only when the program ends.
            let _ = answers.send((Some(ticket), LateAnswer::Kernel { answer, at }));
        };
        let dir = held.cgroup.dir().try_clone_to_owned().map(Dir::from);
        let watch = tokio::spawn(async move {
            match dir {
                Ok(dir) => watch(&dir, until, answer).await,
                Err(error) => answer(KernelAnswer::Unread(error)),
            }
        });
        let awaited = Awaited {
            order,
            subject: held.subject.clone(),
            response: wanted.response,
            until,
            decided: wanted.decided,
            written,
            note,
            is_settled: false,
            left: None,
            watch: watch.abort_handle(),
        };
        self.under_way.insert(ticket, UnderWay::Kernel(awaited));
    }

    /// Takes an answer of the kernel. The order stays under way until the last one.
    pub(super) fn confirm(
        &mut self,
        guards: &mut Guards,
        mut awaited: Awaited,
        answer: KernelAnswer,
        at: Time,
    ) {
        match (awaited.until, answer) {
            (until, KernelAnswer::Slow) => {
                let held = still_there(guards, awaited.order.guard, &awaited.subject);
                if let (Until::Frozen, Some(held)) = (until, held) {
                    held.cgroup.find_pids(&self.layout);
                    let looked = self.who_shares(awaited.order.ticket, &held.cgroup);
                    if let Some(sharing) = looked {
                        awaited.stop_growth(&held.cgroup, sharing);
                    }
                }
                self.go_on(awaited);
            }
            (_, KernelAnswer::Looked(found)) => {
                if let Some(held) = still_there(guards, awaited.order.guard, &awaited.subject) {
                    awaited.stop_growth(&held.cgroup, found.map(|found| found.sharing));
                }
                self.go_on(awaited);
            }
            (Until::Frozen, KernelAnswer::Confirmed) => {
                let detail = format!("cgroup.freeze 1, frozen 1 read back{}", awaited.note);
                self.report(&mut awaited, Outcome::Done, detail, Some(at));
            }
            // Once its last process is killed, its engine may remove a cgroup before it is read again.
            (Until::Dead, KernelAnswer::Confirmed | KernelAnswer::Removed(_)) => {
                let detail = "cgroup.kill written, populated 0 read back".to_owned();
                self.report(&mut awaited, Outcome::Done, detail, Some(at));
            }
            (Until::Frozen, KernelAnswer::Removed(error)) => {
                let detail = format!("the cgroup was removed before the kernel confirmed: {error}");
                self.report(&mut awaited, Outcome::Failed, detail, Some(at));
            }
            (until, KernelAnswer::Left(tasks)) => {
                let is_other = awaited.left.replace(tasks) != Some(tasks);
                if awaited.is_unsettled() || (until == Until::Dead && is_other) {
                    let left = match until {
                        Until::Frozen => format!("{tasks} not stopped yet"),
                        Until::Dead => format!("{tasks} not ended yet"),
                    };
                    let detail = awaited.requested(&left);
                    self.report(&mut awaited, Outcome::Requested, detail, None);
                }
                self.go_on(awaited);
            }
            (_, KernelAnswer::Unread(error)) => {
                if awaited.is_unsettled() {
                    let detail = awaited.requested(&format!("it cannot be confirmed now: {error}"));
                    self.report(&mut awaited, Outcome::Requested, detail, None);
                }
                self.go_on(awaited);
            }
        }
    }

    /// Looks for others that share the pids cgroup. `None` if the answer comes later.
    fn who_shares(&self, ticket: Ticket, cgroup: &Cgroup) -> Option<io::Result<Sharing>> {
        if !cgroup.may_share_pids() {
            return Some(Ok(Sharing::Nobody));
        }
        let late = |found| {
            let answer = KernelAnswer::Looked(found);
            LateAnswer::Kernel { answer, at: clock::now() }
        };
        let found = self.look(ticket, cgroup, LookWanted::SHARING, late)?;
        Some(found.map(|found| found.sharing))
    }

    fn go_on(&mut self, awaited: Awaited) {
        self.under_way.insert(awaited.order.ticket, UnderWay::Kernel(awaited));
    }

    /// Records what came of an order, and settles it the first time.
    fn report(
        &mut self,
        awaited: &mut Awaited,
        outcome: Outcome,
        detail: String,
        confirmed: Option<Time>,
    ) {
        let timing = Timing {
            decided_boot_ns: awaited.decided.0,
            written_us: micros(awaited.decided, awaited.written),
            confirmed_us: confirmed.map(|at| micros(awaited.decided, at)),
        };
        let Awaited { order, subject, response, .. } = &*awaited;
        self.record_outcome(order, subject, *response, (outcome, &detail), Some(timing));
        if !std::mem::replace(&mut awaited.is_settled, true) {
            self.settle(awaited.order.clone(), outcome, detail);
        }
    }

    /// Stops waiting for a freeze of this cgroup, because the freeze has ended.
    pub(super) fn abandon_freeze(&mut self, subject: &Subject) {
        let detail = "the freeze ended before the kernel confirmed it";
        let is_it = |awaited: &Awaited| awaited.is_of(subject, Until::Frozen);
        self.abandon(is_it, Outcome::NotNeeded, detail);
    }

    /// Stops waiting for kills, because the agent ends.
    pub fn abandon_kills(&mut self) {
        let detail =
            "cgroup.kill written; the agent ends and does not wait for the tasks that are left";
        self.abandon(|awaited| awaited.until == Until::Dead, Outcome::Requested, detail);
    }

    fn abandon(&mut self, is_it: impl Fn(&Awaited) -> bool, outcome: Outcome, detail: &str) {
        let is_it = |one: &UnderWay| matches!(one, UnderWay::Kernel(awaited) if is_it(awaited));
        let ended: Vec<_> = self.under_way.extract_if(.., |_, one| is_it(one)).collect();
        for (_, one) in ended {
            let UnderWay::Kernel(mut awaited) = one else { continue };
            let left = awaited.left.map(|left| format!("; {left} left at the last count"));
            let detail = format!("{detail}{}", left.unwrap_or_default());
            self.report(&mut awaited, outcome, detail, None);
        }
    }

    /// Returns how many tasks of a guard have not stopped or not ended yet, if any are waited for. A
    /// large number is a lower bound.
    #[must_use]
    pub fn stopping(&self, held: &Held) -> Option<u64> {
        let awaited = self.under_way.values().filter_map(|one| match one {
            UnderWay::Kernel(awaited) if awaited.subject.is_same_cgroup(&held.subject) => {
                awaited.left
            }
            UnderWay::Check(_)
            | UnderWay::Kernel(_)
            | UnderWay::Servers(_)
            | UnderWay::Owner(_)
            | UnderWay::GivenUp(_) => None,
        });
        awaited.map(|left| left.least).max()
    }
}

/// Reports what the kernel says, until it confirms.
async fn watch(dir: &Dir, until: Until, answer: impl Fn(KernelAnswer)) {
    let mut events = None;
    match reached(dir, &mut events, until, PROMPT).await {
        Ok(true) => return answer(KernelAnswer::Confirmed),
        Ok(false) => answer(KernelAnswer::Slow),
        // The next look has the same error, or none.
        Err(_) => {}
    }
    let mut patience = CONFIRM - PROMPT;
    loop {
        match reached(dir, &mut events, until, patience).await {
            Ok(true) => return answer(KernelAnswer::Confirmed),
            Ok(false) => answer(KernelAnswer::Left(until.left(dir))),
            Err(error) if is_gone(&error) => return answer(KernelAnswer::Removed(error)),
            Err(error) => {
                answer(KernelAnswer::Unread(error));
                tokio::time::sleep(COUNT_AGAIN).await;
            }
        }
        patience = COUNT_AGAIN;
    }
}

async fn reached(
    dir: &Dir,
    events: &mut Option<EventsWatch>,
    until: Until,
    patience: Duration,
) -> io::Result<bool> {
    let events = match events {
        Some(events) => events,
        None => events.insert(EventsWatch::open(dir)?),
    };
    events.wait(patience, |events| until.is_reached(events)).await
}
