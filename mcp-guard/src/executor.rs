//! The one place that changes the host. Each change writes one audit line before and one after.

mod confirm;
mod hold;
pub mod limit;
pub mod reconcile;
mod steps;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use mcp_guard_core::{
    Time,
    audit::{Record, Subject, Timing},
    effect::{Cause, Containment, Effect, GuardId, Input, Outcome},
    escape::visible_within,
    policy::{Mode, Response},
    refusal::refusal,
};
use tokio::sync::mpsc;

pub use confirm::Confirmed;
pub use hold::together;
pub use steps::Holder;
use steps::Step;

use crate::{
    audit::Audit,
    host::{
        cgroup::Cgroup,
        clock, facts,
        layout::{self, Layout},
    },
};

/// A guarded cgroup, held.
pub struct Held {
    pub cgroup: Cgroup,
    pub subject: Subject,
    /// Id of its container in the engine.
    pub container: Option<String>,
    /// The engine says Paused: its freeze is not ours to touch.
    pub paused: bool,
    /// When to try again to give back what could not be.
    try_again: Time,
}

impl Held {
    #[must_use]
    pub fn new(cgroup: Cgroup, name: &str, container: Option<String>, paused: bool) -> Self {
        let subject = Subject {
            name: visible_within(name, 256),
            cgroup: cgroup.path().to_owned(),
            cgroup_id: cgroup.id(),
        };
        Self { cgroup, subject, container, paused, try_again: Time::default() }
    }
}

/// How an incident ended, for whoever asked for it.
pub struct Settled {
    pub incident: String,
    pub outcome: Outcome,
    pub detail: String,
}

pub struct Executor {
    held: BTreeMap<GuardId, Held>,
    pub audit: Audit,
    layout: Layout,
    holder: Holder,
    incidents: u64,
    settled: Vec<Settled>,
    released: Vec<(Outcome, String)>,
    /// Writes of limits that are announced and have no outcome yet; one for each guard at most.
    changes: Vec<Arc<limit::Change>>,
    confirmations: mpsc::UnboundedSender<Confirmed>,
    /// Of these so many are under way.
    awaited: usize,
}

impl Executor {
    /// Confirmations arrive on the receiver; hand each to [`Executor::confirm`]. There is at most
    /// one for each guard and response at a time, so the queue needs no other bound.
    #[must_use]
    pub fn new(audit: Audit, layout: Layout) -> (Self, mpsc::UnboundedReceiver<Confirmed>) {
        let (confirmations, receiver) = mpsc::unbounded_channel();
        let holder = Holder::this_process();
        (
            Self {
                held: BTreeMap::new(),
                audit,
                layout,
                holder,
                incidents: 0,
                settled: Vec::new(),
                released: Vec::new(),
                changes: Vec::new(),
                confirmations,
                awaited: 0,
            },
            receiver,
        )
    }

    /// The incident that the next effect will be.
    #[must_use]
    pub fn next_incident(&self) -> String {
        format!("{}-{}", self.audit.run(), self.incidents + 1)
    }

    /// What has been settled since the last call.
    pub fn take_settled(&mut self) -> Vec<Settled> {
        std::mem::take(&mut self.settled)
    }

    /// How the releases since the last call ended.
    pub fn take_released(&mut self) -> Vec<(Outcome, String)> {
        std::mem::take(&mut self.released)
    }

    pub fn hold(&mut self, guard: GuardId, held: Held) {
        self.held.insert(guard, held);
    }

    pub fn forget(&mut self, guard: GuardId) -> Option<Held> {
        self.held.remove(&guard)
    }

    #[must_use]
    pub fn held(&self) -> &BTreeMap<GuardId, Held> {
        &self.held
    }

    pub fn held_mut(&mut self) -> &mut BTreeMap<GuardId, Held> {
        &mut self.held
    }

    /// Carries out one effect. What comes back goes into the core; a freeze or kill answers later,
    /// through [`Executor::confirm`].
    pub fn apply(&mut self, effect: Effect) -> Option<Input> {
        match effect {
            Effect::Warn { guard, cause } => {
                let guard = self.subject(guard)?;
                self.audit.write(Record::Warning { guard, cause });
                None
            }
            Effect::Contain(containment) => self.contain(containment),
            Effect::Refuse { guard, response, mode, cause, refusal } => {
                self.refuse(guard, response, mode, cause, refusal.to_string())
            }
            Effect::Renew { guard, lease } => self.renew(guard, lease),
            Effect::Loosen { guard, by, aborts, denials } => {
                self.loosen(guard, by, aborts, denials)
            }
            Effect::Release { guard, response, end } => {
                self.release(guard, response, end);
                None
            }
            Effect::Disown { guard, response, end } => self.disown(guard, response, end),
            // The loop's, which has the kernel side at hand.
            Effect::Rescan { .. } => None,
        }
    }

    /// Whether the engine's pause is the same switch as our freeze. Beside a version 1 hierarchy it is
    /// not: there an engine pauses with the version 1 freezer, its unpause would never undo our
    /// freeze, and our thaw leaves its pause alone. Nor is it in a cgroup around or inside the one
    /// that the engine pauses.
    fn engine_freezes(&self, held: &Held) -> bool {
        let unified = self.layout.kind == layout::Kind::Unified;
        held.paused && unified && held.cgroup.is_where_an_engine_pauses()
    }

    fn subject(&self, guard: GuardId) -> Option<Subject> {
        self.held.get(&guard).map(|held| held.subject.clone())
    }

    fn incident(&mut self) -> String {
        let incident = self.next_incident();
        self.incidents += 1;
        incident
    }

    fn contain(&mut self, wanted: Containment) -> Option<Input> {
        let subject = self.subject(wanted.guard)?;
        let incident = self.incident();
        let held = self.held.get_mut(&wanted.guard)?;
        if wanted.response == Response::Clamp {
            // On a hybrid host it is found through a process, and the guard may have begun empty.
            held.cgroup.find_pids(&self.layout);
        }
        let pids_max = (wanted.response == Response::Clamp)
            .then(|| steps::planned_clamp(&held.cgroup, wanted.headroom).ok())
            .flatten();
        let processes = held.cgroup.processes().map_or(0, |pids| pids.len() as u64);
        let has_lease = wanted.lease > Duration::ZERO;
        self.audit.write(Record::Intent {
            incident: incident.clone(),
            guard: subject,
            response: wanted.response,
            mode: wanted.mode,
            cause: wanted.cause.clone(),
            lease_ms: has_lease
                .then(|| u64::try_from(wanted.lease.as_millis()).unwrap_or(u64::MAX)),
            pids_max,
            processes: Some(processes),
        });
        match self.attempt(&wanted, &incident) {
            Step::Settled(outcome, detail) => {
                let written = matches!(outcome, Outcome::Done).then(clock::now);
                self.settle(&wanted, incident, outcome, detail, written)
            }
            Step::Written(at) => {
                self.await_confirmation(&wanted, incident, at);
                None
            }
        }
    }

    /// The same checks for every mode; the last step is left out where the mode says so.
    fn attempt(&mut self, wanted: &Containment, incident: &str) -> Step {
        let Some(held) = self.held.get(&wanted.guard) else {
            return Step::Settled(Outcome::Failed, "the guard is gone".to_owned());
        };
        let facts = match facts::gather(&held.cgroup) {
            Ok(facts) => facts,
            Err(error) => {
                let what = if is_gone(&error) {
                    "the cgroup is gone or was replaced"
                } else {
                    "not all of the cgroup could be looked at"
                };
                return Step::Settled(
                    Outcome::NotOurs,
                    format!("{what} ({error}); nothing was done"),
                );
            }
        };
        if let Some(refusal) = refusal(&facts) {
            return Step::Settled(Outcome::Refused, refusal.to_string());
        }
        let mark = self.holder.mark(incident, &wanted.cause, clock::now().after(wanted.lease));
        match wanted.response {
            Response::Record => Step::Settled(Outcome::Done, "recorded".to_owned()),
            Response::Clamp => steps::clamp(&held.cgroup, wanted.headroom, wanted.mode, mark),
            Response::Freeze => steps::freeze(&held.cgroup, held.paused, wanted.mode, &mark),
            Response::Kill => steps::kill(&held.cgroup, wanted.mode),
        }
    }

    fn settle(
        &mut self,
        wanted: &Containment,
        incident: String,
        outcome: Outcome,
        detail: String,
        written: Option<Time>,
    ) -> Option<Input> {
        let guard = wanted.guard;
        let timing = written.map(|at| Timing {
            decided_boot_ns: wanted.decided.0,
            written_us: micros(wanted.decided, at),
            confirmed_us: None,
        });
        let subject = self.subject(guard)?;
        self.outcome(subject, incident, wanted.response, outcome, detail, timing);
        let (response, lease) = (wanted.response, wanted.lease);
        Some(Input::Settled { guard, response, outcome, lease })
    }

    fn outcome(
        &mut self,
        guard: Subject,
        incident: String,
        response: Response,
        outcome: Outcome,
        detail: String,
        timing: Option<Timing>,
    ) {
        tracing::info!(name = guard.name, %response, ?outcome, detail);
        let settled = Settled { incident: incident.clone(), outcome, detail: detail.clone() };
        self.settled.push(settled);
        self.audit.write(Record::Outcome { incident, guard, response, outcome, detail, timing });
    }

    fn refuse(
        &mut self,
        guard: GuardId,
        response: Response,
        mode: Mode,
        cause: Cause,
        detail: String,
    ) -> Option<Input> {
        let subject = self.subject(guard)?;
        let incident = self.incident();
        self.audit.write(Record::Intent {
            incident: incident.clone(),
            guard: subject.clone(),
            response,
            mode,
            cause,
            lease_ms: None,
            pids_max: None,
            processes: None,
        });
        self.outcome(subject, incident, response, Outcome::Refused, detail, None);
        let lease = Duration::ZERO;
        Some(Input::Settled { guard, response, outcome: Outcome::Refused, lease })
    }
}

fn is_gone(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT))
}

fn micros(from: Time, to: Time) -> u64 {
    u64::try_from(to.since(from).as_micros()).unwrap_or(u64::MAX)
}
