//! Answers to the control socket.

use std::time::Duration;

use mcp_guard_core::{
    container::container_in,
    effect::{GuardId, Input, Outcome, Request},
    status::GuardState,
};

use super::{Agent, Asker};
use crate::{
    control::{
        server::Waiting,
        wire::{Answer, Call, Place, Reply, Status, WatchedStatus, failed},
    },
    executor::{Held, Settled, together},
    host::{cgroup::Cgroup, clock},
};

/// A second to a day.
const LEASES_MS: std::ops::RangeInclusive<u64> = 1_000..=86_400_000;

impl Agent {
    pub(super) fn answer(&mut self, waiting: Waiting) {
        let Waiting { call, reply } = waiting;
        // Detail up to this moment: what waits in the ring belongs into the answer.
        self.drain();
        match call {
            Call::Status => send(reply, self.status()),
            // The CLI checks it too; others may call.
            Call::Freeze { lease_ms, .. } if !LEASES_MS.contains(&lease_ms) => {
                send_reply(reply, failed("lease_ms must lie between 1000 and 86400000"));
            }
            Call::Freeze { target, lease_ms, dry_run } => {
                let lease = Duration::from_millis(lease_ms);
                let request = Request::Freeze { lease, dry_run };
                self.operate(&target, request, reply);
            }
            Call::Kill { target, dry_run } => {
                self.operate(&target, Request::Kill { dry_run }, reply);
            }
            Call::Thaw { target } => self.thaw(&target, reply),
            #[expect(clippy::panic, reason = "this is what the call is for; debug builds only")]
            Call::Panic => panic!("asked for through the control socket"),
        }
    }

    fn operate(
        &mut self,
        target: &Place,
        request: Request,
        reply: tokio::sync::oneshot::Sender<Reply>,
    ) {
        let guard = match self.guard_by_hand(target) {
            Ok(guard) => guard,
            Err(reason) => return send_reply(reply, failed(&reason)),
        };
        self.refresh_refusal(guard);
        // The request is the first thing that is done.
        let incident = self.executor.next_incident();
        self.askers.insert(incident.clone(), Asker { guard, reply });
        self.step(Input::Operator { guard, request });
        if incident == self.executor.next_incident()
            && let Some(asker) = self.askers.remove(&incident)
        {
            send_reply(asker.reply, failed("the guard is gone; try again"));
        }
    }

    fn thaw(&mut self, target: &Place, reply: tokio::sync::oneshot::Sender<Reply>) {
        let guard = match self.guard_by_hand(target) {
            Ok(guard) => guard,
            Err(reason) => return send_reply(reply, failed(&reason)),
        };
        self.step(Input::Operator { guard, request: Request::Thaw });
        let (outcome, detail) = together(self.executor.take_released()).unwrap_or_else(|| {
            let detail = "mcp-guard holds nothing here; a freeze that is not its own is left alone";
            (Outcome::NotOurs, detail.to_owned())
        });
        send(reply, Answer { outcome, detail });
    }

    /// The guard of a place; one that is not guarded is held for this request.
    fn guard_by_hand(&mut self, place: &Place) -> Result<GuardId, String> {
        if let Some(guard) = self.guard_of(place.cgroup_id) {
            return Ok(guard);
        }
        let cgroup =
            Cgroup::open(&self.layout, &place.cgroup).map_err(|error| error.to_string())?;
        if cgroup.id() != place.cgroup_id {
            return Err(format!("cgroup {} was replaced meanwhile; try again", place.cgroup));
        }
        // With its container, so that the engine's pauses are heard of.
        let container = container_in(cgroup.path()).map(|found| found.id.to_owned());
        let held = Held::new(cgroup, &place.name, container, place.paused);
        self.hold_by_hand(held).ok_or_else(|| "no guard slot is free".to_owned())
    }

    /// Answers whoever asked for what has just been settled.
    pub(super) fn tell_askers(&mut self) {
        for Settled { incident, outcome, detail } in self.executor.take_settled() {
            if let Some(asker) = self.askers.remove(&incident) {
                send(asker.reply, Answer { outcome, detail });
            }
        }
    }

    fn status(&mut self) -> Status {
        let now = clock::now();
        for held in self.executor.held_mut().values_mut() {
            // A guard that began empty: on a hybrid host the place is found through a process.
            held.cgroup.find_pids(&self.layout);
        }
        for guard in self.counted() {
            self.read_totals(guard, now);
        }
        let guarded = self.core.status(now).into_iter();
        let guarded = guarded.filter(|guard| {
            !self.by_hand.contains_key(&guard.guard) || guard.state != GuardState::Free
        });
        let guards = guarded.filter_map(|guard| {
            let held = self.executor.held().get(&guard.guard)?;
            let held_guard = guard.guard;
            Some(WatchedStatus {
                guard,
                cgroup: held.subject.cgroup.clone(),
                cgroup_id: held.subject.cgroup_id,
                container: held.container.clone(),
                paused: held.paused,
                pids_max: held.cgroup.pids_max().ok().map(|limit| limit.to_string()),
                pids_current: held.cgroup.pids_current().ok(),
                pids_wanted: self.wanted(held_guard),
                pids_policy: self.policy_limit(held_guard),
                pids_left: self.is_left(held_guard),
            })
        });
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_ms: u64::try_from(now.since(self.started).as_millis()).unwrap_or(u64::MAX),
            mode: self.core.policy().mode,
            guards: guards.collect(),
            losses: self.kernel.losses(),
            audit_lost: self.executor.audit.lost,
            engine: self.engine_state.clone(),
        }
    }
}

fn send(reply: tokio::sync::oneshot::Sender<Reply>, answer: impl serde::Serialize) {
    let answer = match serde_json::to_value(answer) {
        Ok(parameters) => Reply { error: None, parameters },
        Err(error) => failed(&error.to_string()),
    };
    send_reply(reply, answer);
}

/// Whoever asked may have gone; that is their loss.
fn send_reply(reply: tokio::sync::oneshot::Sender<Reply>, answer: Reply) {
    let _ = reply.send(answer);
}
