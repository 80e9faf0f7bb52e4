//! What becomes of a state that is held: renewed, loosened, given back, or disowned.

use std::time::Duration;

use mcp_guard_core::{
    audit::{Record, Subject},
    effect::{End, GuardId, Input, Outcome},
    policy::Response,
};

use super::{Executor, steps};
use crate::host::clock;

impl Executor {
    pub(super) fn renew(&mut self, guard: GuardId, lease: Duration) -> Option<Input> {
        let held = self.held.get(&guard)?;
        let deadline = clock::now().after(lease);
        let (outcome, detail) = steps::renew_clamp(&held.cgroup, deadline);
        let incident = self.incident();
        self.outcome(guard, incident, Response::Clamp, outcome, detail, None);
        None
    }

    pub(super) fn loosen(
        &mut self,
        guard: GuardId,
        by: u64,
        aborts: u64,
        denials: u64,
    ) -> Option<Input> {
        let held = self.held.get(&guard)?;
        let (outcome, detail) = steps::loosen(&held.cgroup, by);
        let detail =
            format!("{detail}, after {aborts} exits by SIGABRT and {denials} refused forks");
        let incident = self.incident();
        self.outcome(guard, incident, Response::Clamp, outcome, detail, None);
        None
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
