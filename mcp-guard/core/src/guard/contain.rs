//! Orders responses, and takes their outcomes.

use std::time::Duration;

use super::{CANNOT_CLAMP, ClampWatch, Expected, Guard, Lease};
use crate::{
    Time,
    effect::{Action, Containment, Effect, OperatorRequest, Outbox, Remark, Settled},
    id::RequestId,
    incident::{Cause, End, Hold, Outcome},
    limit::room_for,
    policy::{Mode, Policy, Respond, Response},
    refusal::Despite,
};

/// Delay before a clamp is decided again if it had nothing to lower, or if another process had
/// already clamped the cgroup.
const LEFT_ALONE: Duration = Duration::from_secs(600);
/// Delay before a failed release is retried.
const RELEASE_RETRY: Duration = Duration::from_secs(10);

impl Guard {
    pub fn operator(
        &mut self,
        now: Time,
        (id, request): (RequestId, OperatorRequest),
        policy: &Policy,
        out: &mut Outbox<'_>,
    ) {
        let (response, lease, dry_run, despite) = match request {
            OperatorRequest::Suspend(request) => {
                return self.suspend_for(now, (id, &request), policy, out);
            }
            OperatorRequest::Resume(request) => return self.resume_for((id, &request), out),
            OperatorRequest::Reap(request) => {
                return self.reap_for(now, (id, &request), policy, out);
            }
            OperatorRequest::Freeze { lease, dry_run, despite } => {
                (Response::Freeze, lease, dry_run, despite)
            }
            OperatorRequest::Kill { dry_run, despite } => {
                (Response::Kill, Duration::ZERO, dry_run, despite)
            }
            OperatorRequest::Thaw => {
                let respond = &policy.scope(self.terms.rule).all().respond;
                self.episodes.wait_until(now.after(respond.cool_down));
                for hold in Hold::ALL {
                    self.episodes.hold_ended(hold.into(), now.after(respond.cool_down));
                }
                return self.release_all(End::Operator, Some(id), out);
            }
        };
        let mode = if dry_run { Mode::Observe } else { Mode::Enforce };
        let cause = Cause::operator();
        self.contain(now, (response, mode, Some(lease)), cause, (Some(id), despite), policy, out);
    }

    /// Orders a response, or its refusal if a bystander rule forbids it.
    pub(super) fn contain(
        &mut self,
        now: Time,
        (response, mode, lease): (Response, Mode, Option<Duration>),
        cause: Cause,
        (asked_by, despite): (Option<RequestId>, Option<Despite>),
        policy: &Policy,
        out: &mut Outbox<'_>,
    ) {
        let respond = self.respond(policy, &cause);
        let lease = lease.unwrap_or(match Hold::of(response) {
            Some(Hold::Clamp) => respond.clamp_lease,
            Some(Hold::Freeze) => respond.freeze_lease,
            None => Duration::ZERO,
        });
        let refusal = self.refusal.clone().filter(|refusal| !refusal.is_overridden(despite));
        let action = match refusal {
            Some(refusal) => Action::Refuse { response, mode, cause: cause.clone(), refusal },
            None => Action::Contain(Containment {
                response,
                mode,
                lease,
                // On top of the tasks that the executor finds there.
                headroom: room_for(0, self.servers(), respond.clamp_headroom),
                cause: cause.clone(),
                despite,
                spares_fuse: response == Response::Freeze
                    && asked_by.is_none()
                    && self.cannot_clamp.is_none_or(|until| until <= now),
                decided: now,
            }),
        };
        let refused = matches!(action, Action::Refuse { .. });
        let acts = !refused && (mode == Mode::Enforce || asked_by.is_none());
        let is_ordered = !refused && mode == Mode::Enforce;
        let freezes = is_ordered && response == Response::Freeze && self.freeze.is_none();
        let lease = Lease { since: now, until: now.after(lease), is_operators: asked_by.is_some() };
        if freezes {
            self.freeze = Some(lease);
            self.frozen_for = cause.clone();
        }
        if response == Response::Clamp {
            self.clamped_for = cause.clone();
            if is_ordered {
                self.limits.give_up(now, out);
            }
        }
        let ticket = out.act_for(self.id, asked_by, action);
        self.under_way.insert(ticket, Expected::Contain { response, lease, freezes, acts, cause });
    }

    /// Clamps what is not frozen, because a process in it serves a FUSE file system.
    pub(super) fn clamp_instead(
        &mut self,
        now: Time,
        cause: Cause,
        policy: &Policy,
        out: &mut Outbox<'_>,
    ) {
        self.episodes.replaced(Response::Freeze, Response::Clamp);
        if self.clamp.is_none() && !self.is_under_way(Response::Clamp) {
            let how = (Response::Clamp, self.terms.mode, None);
            self.contain(now, how, cause, (None, None), policy, out);
        }
    }

    /// Returns how responses to a cause are carried out.
    pub(super) fn respond<'a>(&self, policy: &'a Policy, cause: &Cause) -> &'a Respond {
        let scope = policy.scope(self.terms.rule);
        let variant = cause.identity.as_deref().map(|identity| scope.variant(identity));
        &scope.of(variant.unwrap_or_default()).respond
    }

    /// Counts the live servers.
    pub(super) fn servers(&self) -> u64 {
        u64::try_from(self.registry.live_servers()).unwrap_or(u64::MAX)
    }

    /// Takes the outcome of an order.
    pub fn settled(&mut self, now: Time, settled: &Settled, policy: &Policy, out: &mut Outbox<'_>) {
        if !self.may_write_limits() {
            // A clamp or a rule came after the first of two writes.
            self.limits.drop_waiting();
        }
        self.limits.settled(now, settled, out);
        let _ = self.reaps.settled(now, settled);
        self.suspend_settled(now, settled);
        match self.under_way.remove(&settled.ticket) {
            Some(Expected::Contain { lease, cause, .. })
                if settled.remark == Some(Remark::ServesFuse) =>
            {
                self.freeze = self.freeze.filter(|freeze| *freeze != lease);
                self.clamp_instead(now, cause, policy, out);
            }
            Some(Expected::Contain { response, lease, freezes, cause, .. }) => {
                if response == Response::Clamp {
                    let cannot = matches!(
                        settled.outcome,
                        Outcome::Failed | Outcome::Refused | Outcome::NotOurs
                    );
                    self.cannot_clamp = cannot.then(|| now.after(CANNOT_CLAMP));
                }
                let ours = matches!(settled.outcome, Outcome::Done | Outcome::Requested);
                match Hold::of(response) {
                    Some(Hold::Freeze) if ours && !freezes => self.freeze = Some(lease),
                    Some(Hold::Freeze) if !ours && freezes && self.freeze == Some(lease) => {
                        self.freeze = None;
                    }
                    Some(Hold::Clamp) if ours => self.begin_clamp(lease, out),
                    Some(Hold::Freeze | Hold::Clamp) | None => {}
                }
                let respond = self.respond(policy, &cause);
                self.contained(now, response, settled.outcome, respond);
            }
            Some(Expected::Release(hold)) if settled.outcome == Outcome::Failed => {
                self.release_again.insert(hold, now.after(RELEASE_RETRY));
            }
            Some(Expected::Release(hold)) => {
                self.release_again.remove(&hold);
            }
            None => {}
        }
    }

    /// Decides when an order that did not succeed may be repeated.
    pub(super) fn contained(
        &mut self,
        now: Time,
        response: Response,
        outcome: Outcome,
        respond: &Respond,
    ) {
        match (Hold::of(response), outcome) {
            (_, Outcome::Failed) => {
                self.episodes.failed(response, now.after(respond.cool_down));
            }
            // Refused because of a process that ran there at that moment. If a rule forbids this
            // guard, `standing` reports when that ends.
            (_, Outcome::Refused) if self.refusal.is_none() && !self.holds(response) => {
                self.episodes.ask_again_at(now.after(respond.cool_down), response);
            }
            // Not for a freeze: another process froze the cgroup, or we did and have no
            // confirmation yet.
            (Some(Hold::Clamp), Outcome::NotOurs) if self.clamp.is_none() => {
                self.episodes.ask_again_at(now.after(LEFT_ALONE), response);
            }
            (
                _,
                Outcome::Done
                | Outcome::Requested
                | Outcome::NotNeeded
                | Outcome::WouldDo
                | Outcome::Refused
                | Outcome::NotOurs,
            ) => {}
        }
    }

    pub(super) fn begin_clamp(&mut self, lease: Lease, out: &mut Outbox<'_>) {
        self.clamp = Some(lease);
        self.clamp_watch = ClampWatch::default();
        // From here on, refused forks are due to the clamp.
        out.push(Effect::ReadDenials { guard: self.id });
    }
}
