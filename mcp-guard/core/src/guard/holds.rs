//! The holds of one guard: how long they last, and how they end.

use std::time::Duration;

use super::{CANNOT_CLAMP, ClampWatch, Expected, Guard, Lease};
use crate::{
    Time,
    effect::{Action, Outbox},
    id::RequestId,
    incident::{End, Hold},
    limit::Limit,
    policy::{Policy, Response},
};

/// How long the processes inside are watched after a clamp.
const CLAMP_WATCH: Duration = Duration::from_secs(30);

impl Guard {
    /// Returns the lease of a hold. A freeze has one from the moment it is ordered, also while tasks
    /// have not stopped yet.
    #[must_use]
    pub fn lease(&self, hold: Hold) -> Option<Lease> {
        match hold {
            Hold::Freeze => self.freeze,
            Hold::Clamp => self.clamp,
        }
    }

    pub(super) fn holds(&self, response: Response) -> bool {
        Hold::of(response).is_some_and(|hold| self.lease(hold).is_some())
    }

    pub(super) fn is_held(&self) -> bool {
        let is_clamped = self.clamp.is_some() || self.is_ordered(Hold::Clamp);
        is_clamped || self.freeze.is_some()
    }

    /// Whether a hold was ordered whose outcome is not known yet. The executor may still check the cgroup.
    pub(super) fn is_ordered(&self, hold: Hold) -> bool {
        self.is_under_way(hold.into())
    }

    pub(super) fn is_under_way(&self, wanted: Response) -> bool {
        self.under_way.values().any(|expected| match expected {
            Expected::Contain { response, acts, .. } => *acts && *response == wanted,
            Expected::Release(_) => false,
        })
    }

    pub fn release_all(&mut self, end: End, asked_by: Option<RequestId>, out: &mut Outbox<'_>) {
        for hold in Hold::ALL {
            self.give_back(hold, end, asked_by, out);
        }
    }

    /// Releases a hold that is in force or ordered.
    pub(super) fn give_back(
        &mut self,
        hold: Hold,
        end: End,
        asked_by: Option<RequestId>,
        out: &mut Outbox<'_>,
    ) {
        let lease = match hold {
            Hold::Freeze => &mut self.freeze,
            Hold::Clamp => &mut self.clamp,
        };
        if lease.take().is_some() || self.is_ordered(hold) {
            self.release(hold, end, asked_by, out);
        }
    }

    pub(super) fn is_being_released(&self, wanted: Hold) -> bool {
        let is_it = |one: &Expected| matches!(one, Expected::Release(hold) if *hold == wanted);
        self.under_way.values().any(is_it)
    }

    pub(super) fn release(
        &mut self,
        hold: Hold,
        end: End,
        asked_by: Option<RequestId>,
        out: &mut Outbox<'_>,
    ) {
        let ticket = out.act_for(self.id, asked_by, Action::Release { hold, end });
        self.under_way.insert(ticket, Expected::Release(hold));
    }

    /// Releases a hold with an expired mark: an earlier release failed, or the holder did not
    /// release it.
    pub fn overdue(&mut self, now: Time, hold: Hold, out: &mut Outbox<'_>) {
        let is_early = self.release_again.get(&hold).is_some_and(|at| now < *at);
        if self.lease(hold).is_none() && !self.is_ordered(hold) && !is_early {
            self.release(hold, End::LeaseOver, None, out);
        }
    }

    pub fn thawed_by_other(&mut self, now: Time, policy: &Policy, out: &mut Outbox<'_>) {
        if self.freeze.take().is_some() {
            let respond = self.respond(policy, &self.frozen_for);
            self.episodes.wait_until(now.after(respond.cool_down));
            self.episodes.hold_ended(Response::Freeze, now.after(respond.cool_down));
            let end = End::ThawedByOther;
            out.act(self.id, Action::Disown { hold: Hold::Freeze, end });
        }
    }

    /// Disowns the clamp, because `found` is in force. Unlike a thaw, this says nothing about the leak:
    /// systemd and engines write the limit whenever they apply their own settings. A detector that still
    /// asks may clamp again after the cool-down, and may freeze at once. If a write of ours has arrived late,
    /// the clamp is repeated now: nobody wanted it to end.
    pub fn unclamped(&mut self, now: Time, found: Limit, policy: &Policy, out: &mut Outbox<'_>) {
        if self.clamp.take().is_none() {
            return;
        }
        if !self.limits.has_arrived(now, found) {
            let respond = self.respond(policy, &self.clamped_for);
            self.episodes.failed(Response::Clamp, now.after(respond.cool_down));
            // It does not last here, so nothing is to be spared for it.
            self.cannot_clamp = Some(now.after(CANNOT_CLAMP));
            let end = End::UnclampedByOther;
            out.act(self.id, Action::Disown { hold: Hold::Clamp, end });
            return;
        }
        out.act(self.id, Action::Disown { hold: Hold::Clamp, end: End::LateWrite });
        if self.terms.highest >= Response::Clamp && !self.is_under_way(Response::Clamp) {
            let how = (Response::Clamp, self.terms.mode, None);
            self.contain(now, how, self.clamped_for.clone(), (None, None), policy, out);
        }
    }

    /// Releases holds whose lease has ended. A clamp is renewed while a detector still asks for it,
    /// and lasts at least as long as a freeze beside it.
    pub(super) fn expire(&mut self, now: Time, policy: &Policy, out: &mut Outbox<'_>) {
        if self.freeze.is_some_and(|hold| hold.until <= now) {
            self.freeze = None;
            self.release(Hold::Freeze, End::LeaseOver, None, out);
            let respond = self.respond(policy, &self.frozen_for);
            // A leak that outlasts the freeze may be frozen again, after some time of service.
            self.episodes.hold_ended(Response::Freeze, now.after(respond.cool_down));
        }
        let is_over = |clamp: &Lease| clamp.until <= now && self.freeze.is_none();
        let Some(clamp) = self.clamp.filter(is_over) else { return };
        let respond = self.respond(policy, &self.clamped_for);
        if self.episodes.still_ask() {
            let lease = respond.clamp_lease;
            self.clamp = Some(Lease { until: now.after(lease), ..clamp });
            out.act(self.id, Action::Renew { lease });
        } else {
            self.clamp = None;
            self.release(Hold::Clamp, End::LeaseOver, None, out);
            self.episodes.hold_ended(Response::Clamp, now.after(respond.cool_down));
        }
    }

    pub fn denials(&mut self, count: u64) {
        let before = *self.clamp_watch.denials_before.get_or_insert(count);
        self.clamp_watch.denials = count.saturating_sub(before);
    }

    /// Loosens a new clamp once, by one headroom, at the first sign that it breaks something
    /// inside: node aborts without its thread pool, and an exec'd health check fails.
    pub(super) fn soften(&mut self, now: Time, policy: &Policy, out: &mut Outbox<'_>) {
        let ClampWatch { denials, aborts, loosened, .. } = self.clamp_watch;
        if self.clamp_is_young(now) && !loosened && (denials > 0 || aborts > 0) {
            self.clamp_watch.loosened = true;
            let by = self.respond(policy, &self.clamped_for).clamp_headroom;
            out.act(self.id, Action::Loosen { by, aborts, denials });
        }
    }

    /// Returns whether the clamp is so new that pids.events matters. During a freeze it does not: the
    /// freeze refuses forks itself.
    #[must_use]
    pub fn clamp_is_young(&self, now: Time) -> bool {
        let is_young = |clamp: Lease| now.since(clamp.since) < CLAMP_WATCH;
        self.freeze.is_none() && self.clamp.is_some_and(is_young)
    }
}
