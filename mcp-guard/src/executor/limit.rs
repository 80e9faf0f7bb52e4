//! A limit, written at its owner: one record before, one after, and what the kernel says then.

use std::sync::Arc;

use mcp_guard_core::{
    audit::{Record, Subject},
    effect::{GuardId, Outcome},
    limit::Limit,
    refusal::refusal,
    repair::{Standing, Write},
};

use super::{Executor, Held, steps};
use crate::host::facts;

/// What an owner said: why not, or where that is systemd, what it keeps since.
pub type Carried = Result<Option<Limit>, String>;

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

    /// Path of the cgroup.
    #[must_use]
    pub fn cgroup(&self) -> &str {
        &self.subject.cgroup
    }

    /// Id of the container, for its engine.
    #[must_use]
    pub fn container(&self) -> Option<&str> {
        self.container.as_deref()
    }

    #[must_use]
    pub fn is_of(&self, held: &Held) -> bool {
        held.subject == self.subject
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
    /// The record before a write, which [`Executor::end_limit`] ends. None where the guard is gone.
    ///
    /// # Errors
    /// A bystander rule forbids it, or the cgroup is gone: says which, and is recorded.
    pub fn begin_limit(
        &mut self,
        guard: GuardId,
        write: Write,
        reason: &str,
    ) -> Option<Result<Arc<Change>, String>> {
        let change = self.announce(guard, write, reason)?.map(Arc::new);
        self.changes.extend(change.as_ref().ok().map(Arc::clone));
        Some(change)
    }

    fn announce(
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
            Ok(facts) => refusal(&facts)
                .map(|refusal| refusal.to_string())
                .or_else(|| binds_more(&write, held))
                .or_else(|| steps::is_clamped(&held.cgroup).then(|| CLAMPED.to_owned())),
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
        let Some(change) = self.announce(guard, write, reason).transpose()? else {
            return Err("the target is gone".to_owned());
        };
        tracing::info!(name = change.subject.name, ?outcome, detail, reason, "limit");
        self.audit.write(change.record(Some(outcome), detail.to_owned()));
        Ok(())
    }

    /// What became of it: nothing counts that is not read back.
    pub fn end_limit(&mut self, change: &Change, carried: Carried) -> (Outcome, String) {
        self.changes.retain(|one| one.incident != change.incident);
        let (outcome, detail) = match carried {
            Ok(kept) => self.read_back(change, kept),
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

    /// Whether a write has its first record and not its last.
    #[must_use]
    pub fn has_limits_under_way(&self) -> bool {
        !self.changes.is_empty()
    }

    /// The last record of each write whose owner has not answered by now.
    pub fn abandon_limits(&mut self) {
        for change in std::mem::take(&mut self.changes) {
            let detail = "no answer before the agent ended; it may still be carried out";
            self.end_limit(&change, Err(detail.to_owned()));
        }
    }

    fn read_back(&self, change: &Change, kept: Option<Limit>) -> (Outcome, String) {
        let held = self.held.get(&change.guard);
        // A slot may have another guard by now.
        let Some(held) = held.filter(|held| change.is_of(held)) else {
            return (Outcome::NotOurs, "the cgroup is gone meanwhile".to_owned());
        };
        match &change.write {
            Write::PidsMax { limit } => steps::limit(&held.cgroup, Limit::Tasks(*limit)),
            Write::Docker { limit } | Write::Podman { limit } => {
                steps::limit_is(&held.cgroup, &change.found, Limit::Tasks(*limit))
            }
            Write::TasksMax { unit, limit, .. } if kept != Some(Limit::Tasks(*limit)) => {
                let kept = kept.map_or_else(|| "none".to_owned(), |kept| kept.to_string());
                (Outcome::Failed, format!("TasksMax of {unit} is {kept} after setting {limit}"))
            }
            Write::TasksMax { unit, limit, .. } => {
                match Standing::of(&held.subject.cgroup, unit) {
                    Some(Standing::Own) => {
                        steps::limit_is(&held.cgroup, &change.found, Limit::Tasks(*limit))
                    }
                    // Its pids.max is another cgroup's, the one above.
                    Some(Standing::Payload) | None => {
                        (Outcome::Done, format!("TasksMax {limit} of {unit} read back"))
                    }
                }
            }
        }
    }
}

const CLAMPED: &str = "mcp-guard has clamped it, and any other limit would end the clamp and not what it \
                       stops; `mcp-guard thaw` gives back the limit before it, then this one can be written";

/// A limit of a unit binds all that is in it.
fn binds_more(write: &Write, held: &Held) -> Option<String> {
    let Write::TasksMax { unit, .. } = write else { return None };
    let cgroup = &held.subject.cgroup;
    Standing::of(cgroup, unit).is_none().then(|| {
        format!("{unit} is not the unit of {cgroup} alone, and its limit would bind bystanders")
    })
}

#[cfg(test)]
mod tests {
    use mcp_guard_core::audit::Line;

    use super::*;
    use crate::{audit::Audit, host::layout::Layout};

    #[test]
    fn a_write_without_an_answer_has_its_outcome_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("audit.jsonl");
        let (mut executor, _) = Executor::new(Audit::open(&log).unwrap(), Layout::read().unwrap());
        let subject = Subject { name: "gw".into(), cgroup: "/gw".into(), cgroup_id: 7 };
        let change = Change {
            incident: "a-1".into(),
            guard: 3,
            subject,
            container: None,
            write: Write::PidsMax { limit: 40 },
            reason: String::new(),
            found: "max".into(),
        };
        let change = Arc::new(change);
        executor.changes.push(Arc::clone(&change));
        executor.abandon_limits();
        assert!(!executor.has_limits_under_way());
        executor.audit.flush();
        let text = std::fs::read_to_string(&log).unwrap();
        let line: Line = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        let Record::Limit { outcome, detail, .. } = line.record else { panic!("{text}") };
        assert_eq!(outcome, Some(Outcome::Failed));
        assert!(detail.contains("no answer"), "{detail}");
    }
}
