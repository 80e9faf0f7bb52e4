//! Answers the calls of the control socket.

use std::time::Duration;

use mcp_guard_core::{
    container::container_in,
    effect::{Input, OperatorRequest},
    id::GuardId,
    status::{GuardState, ServerStatus},
};

use super::{
    Agent,
    askers::{ReplyTo, send, send_reply},
};
use crate::{
    control::{
        server::Waiting,
        wire::{
            Call, GetServers, GuardServers, Servers, Status, TargetCgroup, WatchedStatus, failed,
        },
    },
    guards::Held,
    host::{cgroup::Cgroup, clock, process},
};

/// Allowed leases in milliseconds: one second to one day.
const LEASES_MS: std::ops::RangeInclusive<u64> = 1_000..=86_400_000;

/// Most servers in one answer. Reading them must not delay the loop, and a person cannot read more.
const MOST_SERVERS: usize = 10_000;

impl Agent {
    pub(super) fn answer(&mut self, waiting: Waiting) {
        let Waiting { call, reply } = waiting;
        match call {
            Call::Status => send(reply, self.status()),
            Call::Servers(asked) => send(reply, self.servers(&asked)),
            // The CLI checks this too, but other clients may call.
            Call::Freeze { lease_ms, .. } if !LEASES_MS.contains(&lease_ms) => {
                send_reply(reply, failed("lease_ms must be between 1000 and 86400000"));
            }
            Call::Freeze { target, lease_ms, dry_run, despite } => {
                let lease = Duration::from_millis(lease_ms);
                let request = OperatorRequest::Freeze { lease, dry_run, despite };
                self.operate(&target, request, reply);
            }
            Call::Kill { target, dry_run, despite } => {
                self.operate(&target, OperatorRequest::Kill { dry_run, despite }, reply);
            }
            Call::Thaw { target } => self.operate(&target, OperatorRequest::Thaw, reply),
            #[expect(clippy::panic, reason = "this is what the call is for; debug builds only")]
            Call::Panic => panic!("requested through the control socket"),
        }
    }

    fn operate(&mut self, target: &TargetCgroup, request: OperatorRequest, reply: ReplyTo) {
        let guard = match self.guard_for_hand(target) {
            Ok(guard) => guard,
            Err(reason) => return send_reply(reply, failed(&reason)),
        };
        let nothing = match request {
            OperatorRequest::Thaw => {
                "mcp-guard holds nothing here; it leaves the freeze of another tool alone"
            }
            OperatorRequest::Freeze { .. } | OperatorRequest::Kill { .. } => {
                self.judge_now(guard);
                "the guard is gone; try again"
            }
        };
        let id = self.askers.begin(guard, reply);
        self.step(Input::Operator { guard, id, request });
        self.askers.decided(id, nothing);
    }

    /// Returns the guard of a target. A cgroup that is not guarded is held for this request.
    fn guard_for_hand(&mut self, target: &TargetCgroup) -> Result<GuardId, String> {
        if let Some(guard) = self.guards.of_cgroup(target.cgroup_id) {
            return Ok(guard);
        }
        let cgroup =
            Cgroup::open(&self.layout, &target.cgroup).map_err(|error| error.to_string())?;
        if cgroup.id() != target.cgroup_id {
            return Err(format!(
                "cgroup {} was replaced in the meantime; try again",
                target.cgroup
            ));
        }
        // With its container, so that the engine's pauses are noticed.
        let container = container_in(cgroup.path()).map(|found| found.id.to_owned());
        let held = Held::new(cgroup, &target.name, container, target.paused);
        self.hold_by_hand(held).ok_or_else(|| "all guard slots are taken".to_owned())
    }

    /// Lists single servers.
    fn servers(&self, asked: &GetServers) -> Servers {
        let (now, mut room, mut left_out) = (clock::now(), MOST_SERVERS, 0);
        let every = self.core.policy().evidence.every;
        let mut guards = Vec::new();
        for guard in self.guards.watched() {
            let (Some(held), Some(state)) = (self.guards.get(guard), self.core.guard(guard)) else {
                continue;
            };
            let subject = &held.subject;
            if asked.cgroup_id.is_some_and(|id| id != subject.cgroup_id) {
                continue;
            }
            let mut servers = ServerStatus::all((now, every), state, asked.identity.as_deref());
            left_out += servers.len().saturating_sub(room);
            servers.truncate(room);
            room -= servers.len();
            guards.push(GuardServers {
                name: subject.name.clone(),
                cgroup: subject.cgroup.clone(),
                cgroup_id: subject.cgroup_id,
                servers,
            });
        }
        Servers { guards, left_out }
    }

    /// Reports the current state. It decides nothing and does not change the core.
    fn status(&mut self) -> Status {
        let now = clock::now();
        for held in self.guards.all_mut() {
            // For a guard that began empty: on a hybrid host, its pids cgroup is found through a process.
            held.cgroup.find_pids(&self.layout);
        }
        let guarded = self.core.status_with(now, |guard| self.counting.totals(guard));
        let guards = guarded.into_iter().filter_map(|guard| {
            let by_hand = self.guards.is_by_hand(guard.guard);
            let held = self.guards.get(guard.guard)?;
            let stopping = self.executor.stopping(held);
            if by_hand && guard.state == GuardState::Free && stopping.is_none() {
                return None;
            }
            let state = self.core.guard(guard.guard)?;
            let policy = state.terms.pids_limit;
            let request = held.container.as_deref().and_then(|id| self.upkeep.requests.get(id));
            Some(WatchedStatus {
                guard,
                cgroup: held.subject.cgroup.clone(),
                cgroup_id: held.subject.cgroup_id,
                container: held.container.clone(),
                paused: held.paused,
                stopping,
                by_hand,
                pids_max: held.cgroup.pids_max().ok().map(|limit| limit.to_string()),
                pids_current: held.cgroup.pids_current().ok(),
                pids_wanted: state.limits.wanted_now(policy, request),
                pids_policy: policy,
                pids_left: state.limits.is_left(),
            })
        });
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: process::this(),
            uptime_ms: u64::try_from(now.since(self.turns.started).as_millis()).unwrap_or(u64::MAX),
            mode: self.core.policy().mode,
            guards: guards.collect(),
            losses: self.counting.losses(),
            audit_lost: self.executor.audit.lost(),
            unguarded: self.unguarded(now),
            longest_turn_us: u64::try_from(self.turns.longest().as_micros()).unwrap_or(u64::MAX),
            engine: self.engines.state.clone(),
        }
    }
}
