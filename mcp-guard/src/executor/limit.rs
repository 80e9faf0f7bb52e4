//! A limit, written at its owner: one record before, one after, and what the kernel says then.

use mcp_guard_core::{
    audit::{Record, Subject},
    effect::{GuardId, Outcome},
    limit::Limit,
    refusal::refusal,
    repair::Write,
};

use super::{Executor, steps};
use crate::host::facts;

/// A write that is announced and not yet done.
pub struct Change {
    incident: String,
    guard: GuardId,
    subject: Subject,
    container: Option<String>,
    write: Write,
    reason: String,
    found: String,
}

impl Change {
    #[must_use]
    pub fn guard(&self) -> GuardId {
        self.guard
    }

    /// What its owner is to be asked for. What only the kernel owns is written by
    /// [`Executor::end_limit`], which holds the cgroup.
    #[must_use]
    pub fn write(&self) -> &Write {
        &self.write
    }

    /// Id of the container, for its engine.
    #[must_use]
    pub fn container(&self) -> Option<&str> {
        self.container.as_deref()
    }

    fn record(&self, outcome: Option<Outcome>, detail: String) -> Record {
        Record::Limit {
            incident: self.incident.clone(),
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
    /// The record before a write. None where the guard is gone.
    ///
    /// # Errors
    /// A bystander rule forbids it, or the cgroup is gone: says which, and is recorded.
    pub fn begin_limit(
        &mut self,
        guard: GuardId,
        write: Write,
        reason: &str,
    ) -> Option<Result<Change, String>> {
        let incident = self.incident();
        let held = self.held.get_mut(&guard)?;
        held.cgroup.find_pids(&self.layout);
        let found =
            held.cgroup.pids_max().map_or_else(|error| error.to_string(), |max| max.to_string());
        let forbidden = match facts::gather(&held.cgroup) {
            Ok(facts) => refusal(&facts).map(|refusal| refusal.to_string()),
            Err(error) => Some(format!("the cgroup is gone or was replaced: {error}")),
        };
        let change = Change {
            incident,
            guard,
            subject: held.subject.clone(),
            container: held.container.clone(),
            write,
            reason: reason.to_owned(),
            found,
        };
        self.audit.write(change.record(None, String::new()));
        let Some(forbidden) = forbidden else { return Some(Ok(change)) };
        self.audit.write(change.record(Some(Outcome::Refused), forbidden.clone()));
        Some(Err(forbidden))
    }

    /// Both records of a write that is not made, and why not.
    ///
    /// # Errors
    /// It would have been refused: says why.
    pub fn leave_limit(
        &mut self,
        guard: GuardId,
        write: Write,
        reason: &str,
        outcome: Outcome,
        detail: &str,
    ) -> Result<(), String> {
        let Some(change) = self.begin_limit(guard, write, reason).transpose()? else {
            return Err("the target is gone".to_owned());
        };
        tracing::info!(name = change.subject.name, ?outcome, detail, reason, "limit");
        self.audit.write(change.record(Some(outcome), detail.to_owned()));
        Ok(())
    }

    /// What became of it: nothing counts that the kernel does not say.
    pub fn end_limit(&mut self, change: &Change, carried: Result<(), String>) -> (Outcome, String) {
        let (outcome, detail) = match carried {
            Ok(()) => self.read_back(change),
            Err(error) => (Outcome::Failed, error),
        };
        tracing::info!(
            name = change.subject.name,
            ?outcome,
            detail,
            reason = change.reason,
            "limit"
        );
        self.audit.write(change.record(Some(outcome), detail.clone()));
        (outcome, detail)
    }

    fn read_back(&self, change: &Change) -> (Outcome, String) {
        let held = self.held.get(&change.guard);
        // A slot may have another guard by now.
        let Some(held) = held.filter(|held| held.subject == change.subject) else {
            return (Outcome::NotOurs, "the cgroup is gone meanwhile".to_owned());
        };
        match &change.write {
            Write::PidsMax { limit } => steps::limit(&held.cgroup, Limit::Tasks(*limit)),
            Write::Docker { limit } | Write::Podman { limit } => {
                steps::limit_is(&held.cgroup, &change.found, Limit::Tasks(*limit))
            }
            // Of a cgroup above, where an engine keeps the processes one deeper.
            Write::TasksMax { unit, limit, .. }
                if !held.subject.cgroup.ends_with(unit.as_str()) =>
            {
                (Outcome::Done, format!("systemd took TasksMax={limit} for {unit}"))
            }
            Write::TasksMax { limit, .. } => {
                steps::limit_is(&held.cgroup, &change.found, Limit::Tasks(*limit))
            }
        }
    }
}
