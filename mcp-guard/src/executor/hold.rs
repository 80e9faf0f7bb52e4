//! What becomes of a state that is held: renewed, loosened, given back, or disowned.

use std::time::Duration;

use mcp_guard_core::{
    audit::{Record, Subject},
    effect::{Cause, End, GuardId, Input, Outcome},
    policy::{Mode, Response},
};

use super::{Executor, steps};
use crate::host::{
    clock,
    mark::{self, Mark, Slot},
};

/// What could not be given back is tried again after this time; each attempt is in the log.
const AGAIN: Duration = Duration::from_secs(10);

impl Executor {
    pub(super) fn renew(&mut self, guard: GuardId, lease: Duration) -> Option<Input> {
        let incident = self.incident();
        let held = self.held.get(&guard)?;
        let deadline = clock::now().after(lease);
        let (outcome, detail) = steps::renew_clamp(&held.cgroup, deadline);
        let subject = held.subject.clone();
        self.outcome(subject, incident, Response::Clamp, outcome, detail, None);
        None
    }

    pub(super) fn loosen(
        &mut self,
        guard: GuardId,
        by: u64,
        aborts: u64,
        denials: u64,
    ) -> Option<Input> {
        let incident = self.incident();
        let subject = self.held.get(&guard)?.subject.clone();
        let numbers = [("by", by), ("sigabrt_exits", aborts), ("refused_forks", denials)];
        let numbers = numbers.map(|(name, number)| (name.to_owned(), number)).into();
        self.audit.write(Record::Intent {
            incident: incident.clone(),
            guard: subject.clone(),
            response: Response::Clamp,
            mode: Mode::Enforce,
            cause: Cause { detector: None, identity: None, numbers },
            lease_ms: None,
            pids_max: None,
            processes: None,
        });
        let held = self.held.get(&guard)?;
        let (outcome, detail) = steps::loosen(&held.cgroup, by);
        let detail =
            format!("{detail}, after {aborts} exits by SIGABRT and {denials} refused forks");
        self.outcome(subject, incident, Response::Clamp, outcome, detail, None);
        None
    }

    /// Tries again what could not be given back when its lease ended.
    pub fn release_overdue(&mut self, guard: GuardId) {
        let now = clock::now();
        let Some(held) = self.held.get(&guard).filter(|held| held.try_again <= now) else { return };
        let overdue = |dir, slot| {
            mark::read(dir, slot).is_ok_and(|mark| mark.is_some_and(|mark| mark.deadline <= now))
        };
        let freeze = overdue(held.cgroup.dir(), Slot::Freeze);
        let clamp = held.cgroup.pids_dir().is_some_and(|dir| overdue(dir, Slot::Clamp));
        for (response, is_overdue) in [(Response::Freeze, freeze), (Response::Clamp, clamp)] {
            if is_overdue
                && let Some((Outcome::Failed, _)) = self.release(guard, response, End::LeaseOver)
                && let Some(held) = self.held.get_mut(&guard)
            {
                held.try_again = now.after(AGAIN);
            }
        }
    }

    /// What of it carries a mark, of this process or of one that is gone.
    #[must_use]
    pub fn marks(&self, guard: GuardId) -> Vec<(Response, Mark)> {
        let Some(held) = self.held.get(&guard) else { return Vec::new() };
        let freeze = mark::read(held.cgroup.dir(), Slot::Freeze).ok().flatten();
        let clamp = held.cgroup.pids_dir().and_then(|dir| mark::read(dir, Slot::Clamp).ok());
        let slots = [(Response::Freeze, freeze), (Response::Clamp, clamp.flatten())];
        slots.into_iter().filter_map(|(slot, mark)| Some((slot, mark?))).collect()
    }

    /// Whether it carries a mark of this process.
    #[must_use]
    pub fn is_marked(&self, guard: GuardId) -> bool {
        self.marks(guard).iter().any(|(_, mark)| mark.holder == std::process::id())
    }

    /// Whether somebody else wrote the limit that we had lowered.
    #[must_use]
    pub fn is_unclamped(&self, guard: GuardId) -> bool {
        self.held.get(&guard).is_some_and(|held| steps::is_unclamped(&held.cgroup))
    }

    /// Gives a state back, where it is still ours. None where the guard is gone.
    pub fn release(
        &mut self,
        guard: GuardId,
        response: Response,
        end: End,
    ) -> Option<(Outcome, String)> {
        let incident = self.incident();
        let held = self.held.get(&guard)?;
        let subject = held.subject.clone();
        self.audit.write(release_record(&incident, &subject, response, end, None, String::new()));
        let (outcome, detail) = match response {
            Response::Freeze => steps::thaw(&held.cgroup, self.engine_freezes(held)),
            Response::Clamp => steps::unclamp(&held.cgroup),
            Response::Record | Response::Kill => (Outcome::NotOurs, "nothing to undo".to_owned()),
        };
        tracing::info!(name = subject.name, %response, ?end, ?outcome, detail, "released");
        let said = Some(outcome);
        self.audit.write(release_record(&incident, &subject, response, end, said, detail.clone()));
        self.released.push((outcome, detail.clone()));
        Some((outcome, detail))
    }

    pub(super) fn disown(&mut self, guard: GuardId, response: Response, end: End) -> Option<Input> {
        let incident = self.incident();
        let held = self.held.get(&guard)?;
        let subject = held.subject.clone();
        let detail = steps::disown(&held.cgroup, response);
        tracing::info!(name = subject.name, %response, ?end, detail, "no longer ours");
        let outcome = Some(Outcome::NotOurs);
        self.audit.write(release_record(&incident, &subject, response, end, outcome, detail));
        None
    }
}

/// What several releases come to; None where there was none. The worst of them: "done" is said only of what
/// was read back.
#[must_use]
pub fn together(released: Vec<(Outcome, String)>) -> Option<(Outcome, String)> {
    let outcomes = || released.iter().map(|(outcome, _)| *outcome);
    let worst = outcomes().find(|one| *one != Outcome::Done).or_else(|| outcomes().next())?;
    let details: Vec<String> = released.into_iter().map(|(_, detail)| detail).collect();
    Some((worst, details.join("; ")))
}

pub(super) fn release_record(
    incident: &str,
    guard: &Subject,
    response: Response,
    end: End,
    outcome: Option<Outcome>,
    detail: String,
) -> Record {
    let (incident, guard) = (incident.to_owned(), guard.clone());
    Record::Release { incident, guard, response, end, outcome, detail }
}
