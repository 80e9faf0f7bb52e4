//! Answers the calls of the control socket.

use std::time::Duration;

use mcp_guard_core::{
    container::container_in,
    effect::{Input, OperatorRequest},
    id::GuardId,
    server_order::{MOST, ServersRequest},
};

use super::{
    Agent,
    askers::{ReplyTo, send, send_reply},
};
use crate::{
    control::{
        server::Waiting,
        wire::{Call, Reap, Resume, Suspend, TargetCgroup, failed},
    },
    guards::Held,
    host::{cgroup::Cgroup, clock},
};

/// Allowed leases in milliseconds: one second to one day.
const LEASES_MS: std::ops::RangeInclusive<u64> = 1_000..=86_400_000;

impl Agent {
    pub(super) fn answer(&mut self, waiting: Waiting) {
        let Waiting { call, reply, parts } = waiting;
        match call {
            Call::Status => self.begin_status(reply),
            Call::Servers(asked) => self.begin_servers(asked, reply),
            Call::ReloadPolicy => self.reload(Some(reply)),
            Call::PolicyInForce => send(reply, self.reloads.in_force(clock::now())),
            Call::Record(asked) => self.record(&asked, reply, parts),
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
            Call::Suspend(Suspend { target, servers, dry_run }) => {
                let request = ServersRequest { servers, dry_run };
                self.on_servers(&target, request, OperatorRequest::Suspend, reply);
            }
            Call::Resume(Resume { target, servers }) => {
                let request = ServersRequest { servers, dry_run: false };
                self.on_servers(&target, request, OperatorRequest::Resume, reply);
            }
            Call::Reap(Reap { target, servers, dry_run }) => {
                let request = ServersRequest { servers, dry_run };
                self.on_servers(&target, request, OperatorRequest::Reap, reply);
            }
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
            OperatorRequest::Freeze { .. }
            | OperatorRequest::Kill { .. }
            | OperatorRequest::Suspend(_)
            | OperatorRequest::Resume(_)
            | OperatorRequest::Reap(_) => {
                self.judge_now(guard);
                "the guard is gone; try again"
            }
        };
        self.request(guard, request, nothing, reply);
    }

    /// Acts on single servers. Only those of a guard that the policy names are known.
    fn on_servers(
        &mut self,
        target: &TargetCgroup,
        request: ServersRequest,
        wanted: fn(ServersRequest) -> OperatorRequest,
        reply: ReplyTo,
    ) {
        let guard = self.guards.of_cgroup(target.cgroup_id);
        let Some(guard) = guard.filter(|guard| !self.guards.is_by_hand(*guard)) else {
            let reason = "no rule of the policy names this container, so its servers are not known";
            return send_reply(reply, failed(reason));
        };
        if request.servers.len() > MOST {
            return send_reply(reply, failed(&format!("more than {MOST} servers at a time")));
        }
        self.judge_now(guard);
        let nothing =
            "none of these servers is as it was listed: it has ended, or has done something since";
        self.request(guard, wanted(request), nothing, reply);
    }

    fn request(&mut self, guard: GuardId, request: OperatorRequest, nothing: &str, reply: ReplyTo) {
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
}
