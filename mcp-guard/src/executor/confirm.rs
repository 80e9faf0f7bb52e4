//! A freeze or a kill is done when the kernel confirms it, not when it is written.

use std::{io, time::Duration};

use mcp_guard_core::{
    Time,
    audit::{Subject, Timing},
    effect::Containment,
    incident::Outcome,
    policy::Response,
};

use super::{
    Executor, LateAnswer, OrderId, UnderWay, is_gone, micros,
    steps::{self, Until},
    still_there,
};
use crate::{
    guards::{Guards, Held},
    host::{cgroup::wait_events, clock},
};

/// A freeze or a kill that the kernel does not confirm within this time has failed.
const CONFIRM: Duration = Duration::from_secs(2);

/// An order that the kernel has not confirmed yet.
pub struct Awaited {
    order: OrderId,
    /// A copy, because the guard may be gone by then, and the order still needs its record.
    subject: Subject,
    response: Response,
    until: Until,
    decided: Time,
    written: Time,
}

impl Executor {
    pub(super) fn await_kernel(
        &mut self,
        order: OrderId,
        held: &Held,
        wanted: &Containment,
        written: Time,
        until: Until,
    ) {
        let dir = held.cgroup.dir().try_clone_to_owned();
        let (ticket, answers) = (order.ticket, self.to_answers.clone());
        let (subject, response, decided) = (held.subject.clone(), wanted.response, wanted.decided);
        let awaited = Awaited { order, subject, response, until, decided, written };
        self.under_way.insert(ticket, UnderWay::Kernel(awaited));
        tokio::spawn(async move {
            let reached = match (dir, until) {
                (Ok(dir), Until::Dead) => {
                    gone_is_dead(wait_events(dir, CONFIRM, |events| !events.populated).await)
                }
                (Ok(dir), Until::Frozen) => wait_events(dir, CONFIRM, |events| events.frozen).await,
                (Err(error), _) => Err(error),
            };
            let at = clock::now();
            // The receiver is gone only when the program ends.
            let _ = answers.send((ticket, LateAnswer::Kernel { reached, at }));
        });
    }

    /// Takes the kernel's answer. A cgroup that did not freeze in time is thawed.
    pub(super) fn confirm(
        &mut self,
        guards: &mut Guards,
        awaited: Awaited,
        reached: io::Result<bool>,
        at: Time,
    ) {
        let Awaited { order, subject, response, until, decided, written } = awaited;
        let answer = match until {
            Until::Dead => dead(reached),
            Until::Frozen => frozen(reached, || {
                let held = still_there(guards, order.guard, &subject);
                held.map_or_else(
                    || "the cgroup is gone".to_owned(),
                    |held| steps::thaw(&held.cgroup, self.engine_freezes(held)).1,
                )
            }),
        };
        let timing = Timing {
            decided_boot_ns: decided.0,
            written_us: micros(decided, written),
            confirmed_us: Some(micros(decided, at)),
        };
        self.outcome(order, subject, response, answer, Some(timing));
    }
}

fn frozen(reached: io::Result<bool>, undo: impl FnOnce() -> String) -> (Outcome, String) {
    match reached {
        Ok(true) => (Outcome::Done, "cgroup.freeze 1, frozen 1 read back".to_owned()),
        Ok(false) => {
            let undone = undo();
            (
                Outcome::Failed,
                format!("the cgroup did not freeze within {CONFIRM:?}; its thaw: {undone}"),
            )
        }
        Err(error) if is_gone(&error) => went_away(&error),
        Err(error) => {
            let undone = undo();
            (
                Outcome::Failed,
                format!("the freeze cannot be confirmed: {error}; its thaw: {undone}"),
            )
        }
    }
}

fn dead(reached: io::Result<bool>) -> (Outcome, String) {
    match reached {
        Ok(true) => (Outcome::Done, "cgroup.kill written, populated 0 read back".to_owned()),
        Ok(false) => (
            Outcome::Failed,
            format!("cgroup.kill written, but processes remain after {CONFIRM:?}"),
        ),
        Err(error) if is_gone(&error) => went_away(&error),
        Err(error) => {
            (Outcome::Failed, format!("cgroup.kill written, but it cannot be confirmed: {error}"))
        }
    }
}

fn went_away(error: &io::Error) -> (Outcome, String) {
    (Outcome::Failed, format!("the cgroup was removed before the kernel confirmed: {error}"))
}

/// Treats a removed cgroup as dead. Once its last process is killed, its engine may remove it
/// before it is read again.
fn gone_is_dead(reached: io::Result<bool>) -> io::Result<bool> {
    match reached {
        Err(error) if is_gone(&error) => Ok(true),
        other => other,
    }
}
