//! A freeze or kill is done when the kernel says so, not when it was written.

use std::time::Duration;

use mcp_guard_core::{
    Time,
    audit::{Subject, Timing},
    effect::{Containment, GuardId, Input, Outcome},
    policy::Response,
};

use super::{Executor, is_gone, micros, steps};
use crate::host::{cgroup::wait_events, clock};

/// A freeze or a kill that the kernel does not confirm within this time has failed.
const CONFIRM: Duration = Duration::from_secs(2);

/// The kernel's answer to a freeze or kill, sent by the task that waited for it.
pub struct Confirmed {
    incident: String,
    guard: GuardId,
    /// Kept here: the guard may be gone by then, and its record must not be.
    subject: Subject,
    response: Response,
    lease: Duration,
    decided: Time,
    written: Time,
    reached: std::io::Result<bool>,
    at: Time,
}

impl Executor {
    pub(super) fn await_confirmation(
        &mut self,
        wanted: &Containment,
        incident: String,
        written: Time,
    ) {
        let Some(held) = self.held.get(&wanted.guard) else { return };
        let (dir, subject) = (held.cgroup.dir().try_clone_to_owned(), held.subject.clone());
        let (guard, response, lease) = (wanted.guard, wanted.response, wanted.lease);
        let decided = wanted.decided;
        let confirmations = self.confirmations.clone();
        self.awaited += 1;
        tokio::spawn(async move {
            let reached = match dir {
                Ok(dir) if response == Response::Kill => {
                    gone_is_dead(wait_events(dir, CONFIRM, |events| !events.populated).await)
                }
                Ok(dir) => wait_events(dir, CONFIRM, |events| events.frozen).await,
                Err(error) => Err(error),
            };
            let at = clock::now();
            // The receiver is gone only when the program ends.
            let _ = confirmations.send(Confirmed {
                incident,
                guard,
                subject,
                response,
                lease,
                decided,
                written,
                reached,
                at,
            });
        });
    }

    /// Whether the kernel's answer to something is under way.
    #[must_use]
    pub fn awaits_confirmation(&self) -> bool {
        self.awaited > 0
    }

    /// Takes the kernel's answer; what was not reached is undone.
    pub fn confirm(&mut self, confirmed: Confirmed) -> Option<Input> {
        let Confirmed { incident, guard, subject, response, lease, decided, written, reached, at } =
            confirmed;
        self.awaited -= 1;
        let (outcome, detail) = match reached {
            Ok(true) if response == Response::Kill => {
                (Outcome::Done, "cgroup.kill written, populated 0 read back".to_owned())
            }
            Ok(true) => (Outcome::Done, "cgroup.freeze 1, frozen 1 read back".to_owned()),
            Ok(false) if response == Response::Kill => {
                (Outcome::Failed, format!("processes are still there after {CONFIRM:?}"))
            }
            Ok(false) => {
                let undone = self.undo_freeze(guard);
                (Outcome::Failed, format!("frozen 1 not seen within {CONFIRM:?}; {undone}"))
            }
            Err(error) if is_gone(&error) => {
                (Outcome::Failed, format!("the cgroup went away: {error}"))
            }
            Err(error) if response == Response::Kill => {
                (Outcome::Failed, format!("cgroup.kill written, what came of it not seen: {error}"))
            }
            Err(error) => {
                let undone = self.undo_freeze(guard);
                (Outcome::Failed, format!("frozen 1 could not be looked for: {error}; {undone}"))
            }
        };
        let timing = Timing {
            decided_boot_ns: decided.0,
            written_us: micros(decided, written),
            confirmed_us: Some(micros(decided, at)),
        };
        self.outcome(subject, incident, response, outcome, detail, Some(timing));
        Some(Input::Settled { guard, response, outcome, lease })
    }

    fn undo_freeze(&self, guard: GuardId) -> String {
        self.held.get(&guard).map_or_else(
            || "the cgroup is gone".to_owned(),
            |held| steps::thaw(&held.cgroup, self.engine_freezes(held)).1,
        )
    }
}

/// A cgroup whose last process is killed may be removed by its engine before it is read again.
fn gone_is_dead(reached: std::io::Result<bool>) -> std::io::Result<bool> {
    match reached {
        Err(error) if is_gone(&error) => Ok(true),
        other => other,
    }
}
