//! Responds to a leak: announces the response, checks it, and attempts it.

use std::time::Duration;

use mcp_guard_core::{
    audit::{LimitChange, Record, Subject, Timing},
    effect::{Containment, Remark},
    id::Pid,
    incident::{Cause, Outcome},
    policy::{Mode, Response},
    refusal::{Despite, refusal_despite},
};

use super::{Executor, FactsFound, OrderId, is_gone, micros, steps, steps::Step};
use crate::{
    guards::Held,
    host::{clock, facts::LookFound, mark::Mark},
};

impl Executor {
    /// `found`: the facts that were read for this order.
    pub(super) fn contain(
        &mut self,
        order: OrderId,
        held: &Held,
        wanted: Containment,
        found: FactsFound,
    ) {
        let response = wanted.response;
        let pids_max = match response {
            Response::Clamp => steps::planned_clamp(&held.cgroup, wanted.headroom).ok(),
            Response::Record | Response::Freeze | Response::Kill => None,
        };
        let processes = found.as_ref().ok().and_then(|found| found.facts.processes);
        self.intend(&order, &held.subject, &wanted, pids_max, processes);
        let deadline = clock::now().after(wanted.lease);
        let mark = self.holder.mark(&order.incident, &wanted.cause, deadline);
        let fuse = found.as_ref().ok().and_then(|found| found.facts.fuse_server);
        let fuse = fuse.filter(|_| response == Response::Freeze);
        match attempt(held, &wanted, &mark, found) {
            Step::Spared(detail) => {
                let said = (Outcome::Refused, detail.as_str());
                self.record_outcome(&order, &held.subject, response, said, None);
                let said = (Outcome::Refused, detail);
                self.settle_with(order, said, Some(Remark::ServesFuse));
            }
            Step::Settled(outcome, detail) => {
                let detail = match fuse.filter(|_| outcome == Outcome::WouldDo) {
                    Some(pid) => format!("{detail}; {}", serves_fuse(pid)),
                    None => detail,
                };
                let timing = (outcome == Outcome::Done).then(|| Timing {
                    decided_boot_ns: wanted.decided.0,
                    written_us: micros(wanted.decided, clock::now()),
                    confirmed_us: None,
                });
                self.outcome(order, held.subject.clone(), response, (outcome, detail), timing);
            }
            Step::Written(written, until) => {
                let note = fuse.map(|pid| format!("; {}", serves_fuse(pid))).unwrap_or_default();
                self.await_kernel(order, held, &wanted, (written, until), note);
            }
        }
    }

    /// Announces a response. `processes`: how many there are, if they were counted.
    pub(super) fn intend(
        &mut self,
        order: &OrderId,
        guard: &Subject,
        wanted: &Containment,
        pids_max: Option<LimitChange>,
        processes: Option<usize>,
    ) {
        let lease_ms = (wanted.lease > Duration::ZERO)
            .then(|| u64::try_from(wanted.lease.as_millis()).unwrap_or(u64::MAX));
        self.audit.write(Record::Intent {
            incident: order.incident.clone(),
            guard: guard.clone(),
            response: wanted.response,
            mode: wanted.mode,
            cause: wanted.cause.clone(),
            lease_ms,
            pids_max,
            processes: processes.map(|processes| processes as u64),
            despite: wanted.despite,
        });
    }

    pub(super) fn refuse(
        &mut self,
        order: OrderId,
        held: &Held,
        (response, mode, cause): (Response, Mode, Cause),
        detail: String,
    ) {
        self.audit.write(Record::Intent {
            incident: order.incident.clone(),
            guard: held.subject.clone(),
            response,
            mode,
            cause,
            lease_ms: None,
            pids_max: None,
            processes: None,
            despite: None,
        });
        self.outcome(order, held.subject.clone(), response, (Outcome::Refused, detail), None);
    }

    pub(super) fn outcome(
        &mut self,
        order: OrderId,
        guard: Subject,
        response: Response,
        (outcome, detail): (Outcome, String),
        timing: Option<Timing>,
    ) {
        self.record_outcome(&order, &guard, response, (outcome, &detail), timing);
        self.settle(order, outcome, detail);
    }

    pub(super) fn record_outcome(
        &mut self,
        order: &OrderId,
        guard: &Subject,
        response: Response,
        (outcome, detail): (Outcome, &str),
        timing: Option<Timing>,
    ) {
        tracing::info!(name = guard.name, %response, ?outcome, detail);
        let (incident, guard) = (order.incident.clone(), guard.clone());
        let detail = detail.to_owned();
        self.audit.write(Record::Outcome { incident, guard, response, outcome, detail, timing });
    }
}

fn serves_fuse(pid: Pid) -> String {
    format!(
        "process {pid} has /dev/fuse open: all who use a file system that it serves wait while it is frozen"
    )
}

/// Returns the facts of a cgroup on which no rule forbids to act, or why nothing is done.
pub(super) fn allowed(
    found: FactsFound,
    despite: Option<Despite>,
) -> Result<LookFound, (Outcome, String)> {
    let found = found.map_err(|error| {
        let (outcome, what) = if is_gone(&error) {
            (Outcome::NotOurs, "the cgroup is gone or was replaced")
        } else {
            (Outcome::Failed, "the cgroup could not be checked completely")
        };
        (outcome, format!("{what} ({error}); nothing was done"))
    })?;
    match refusal_despite(&found.facts, despite) {
        Some(refusal) => Err((Outcome::Refused, refusal.to_string())),
        None => Ok(found),
    }
}

/// Makes the same checks in every mode, and then takes the step. In observe mode the step writes
/// nothing.
fn attempt(held: &Held, wanted: &Containment, mark: &Mark, found: FactsFound) -> Step {
    let LookFound { facts, sharing } = match allowed(found, wanted.despite) {
        Ok(found) => found,
        Err((outcome, why)) => return Step::Settled(outcome, why),
    };
    if let Some(pid) = facts.fuse_server.filter(|_| wanted.spares_fuse) {
        return Step::Spared(format!("{}; it is clamped instead", serves_fuse(pid)));
    }
    match wanted.response {
        Response::Record => Step::Settled(Outcome::Done, "recorded".to_owned()),
        Response::Clamp => {
            steps::clamp(&held.cgroup, (wanted.headroom, sharing), wanted.mode, mark.clone())
        }
        Response::Freeze => steps::freeze(&held.cgroup, held.paused, wanted.mode, mark),
        Response::Kill => steps::kill(&held.cgroup, wanted.mode),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use mcp_guard_core::{Time, id::Incident};

    use super::{
        super::check::tests::{containment, held_at},
        *,
    };
    use crate::executor::steps::Holder;

    /// Only a cgroup that is gone is none of ours.
    #[test]
    fn nothing_is_done_in_a_cgroup_that_cannot_be_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let held = held_at(folder.path());
        for response in [Response::Record, Response::Clamp, Response::Freeze, Response::Kill] {
            let wanted = containment(response);
            let mark = Holder::this_process().mark(&Incident::from("a-1"), &wanted.cause, Time(0));
            for (errno, expected) in [
                (libc::EMFILE, Outcome::Failed),
                (libc::EACCES, Outcome::Failed),
                (libc::ENODEV, Outcome::NotOurs),
            ] {
                let found = Err(io::Error::from_raw_os_error(errno));
                let Step::Settled(outcome, detail) = attempt(&held, &wanted, &mark, found) else {
                    panic!("{response} was written")
                };
                assert_eq!(outcome, expected, "{detail}");
                assert!(detail.ends_with("nothing was done"), "{detail}");
            }
        }
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
    }
}
