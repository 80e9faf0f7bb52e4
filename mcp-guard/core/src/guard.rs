//! One guarded cgroup: what is known of it, and what is decided about it.

mod episodes;

use std::{collections::BTreeMap, time::Duration};

use mcp_guard_common::Totals;

use self::episodes::{Episodes, Follows};
use crate::{
    Time,
    detect::{Detection, burst, duplicates, emergency::Aged, raw, sooner},
    diagnose::facts::Facts,
    effect::{Action, Containment, Effect, OperatorRequest, Outbox, SeenLimit, Settled},
    id::{GuardId, Pid, RequestId, Ticket},
    incident::{Cause, Detector, End, Hold, Outcome},
    limit::room_for,
    limits::{Limits, Rules},
    policy::{Mode, Policy, Respond, Response, Terms, Workload},
    rates::Rates,
    refusal::Refusal,
    registry::Registry,
};

/// A clamp that had nothing to lower, or was somebody else's, is decided again after this time.
const LEFT_ALONE: Duration = Duration::from_secs(600);
/// What could not be given back is tried again after this time.
const GIVE_BACK_AGAIN: Duration = Duration::from_secs(10);
/// For so long after a clamp its effect on the processes inside is watched.
const CLAMP_WATCH: Duration = Duration::from_secs(30);
const SIGABRT: u32 = 6;

/// For how long a hold is ours.
#[derive(Clone, Copy, Debug)]
pub struct Lease {
    pub since: Time,
    pub until: Time,
}

/// An order whose outcome matters.
#[derive(Clone, Copy, Debug)]
enum Expected {
    Contain { response: Response, lease: Duration },
    Release(Hold),
}

#[derive(Clone, Copy, Debug, Default)]
struct ClampWatch {
    denials_before: Option<u64>,
    denials: u64,
    aborts: u64,
    loosened: bool,
}

#[derive(Clone, Debug)]
pub struct Guard {
    pub id: GuardId,
    pub name: String,
    pub terms: Terms,
    /// What the rules of a policy are matched against; None where no policy set the terms.
    workload: Option<Box<Workload>>,
    pub limits: Limits,
    /// The policy no longer names it.
    leaves: bool,
    pub refusal: Option<Refusal>,
    pub registry: Registry,
    pub rates: Rates,
    /// Processes that came in from outside, and that were moved out.
    pub arrivals: u64,
    pub departures: u64,
    pub clamp: Option<Lease>,
    pub freeze: Option<Lease>,
    /// Orders that are not answered yet.
    under_way: BTreeMap<Ticket, Expected>,
    /// When to try again to give back what could not be.
    give_back_again: BTreeMap<Hold, Time>,
    aged: Aged,
    episodes: Episodes,
    clamp_watch: ClampWatch,
    seen_changes: u64,
    next: Option<Time>,
}

impl Guard {
    #[must_use]
    pub fn new(
        id: GuardId,
        name: String,
        terms: Terms,
        workload: Option<Box<Workload>>,
        refusal: Option<Refusal>,
    ) -> Self {
        Self {
            id,
            name,
            terms,
            workload,
            limits: Limits::new(id),
            leaves: false,
            refusal,
            registry: Registry::default(),
            rates: Rates::default(),
            arrivals: 0,
            departures: 0,
            clamp: None,
            freeze: None,
            under_way: BTreeMap::new(),
            give_back_again: BTreeMap::new(),
            aged: Aged::default(),
            episodes: Episodes::default(),
            clamp_watch: ClampWatch::default(),
            seen_changes: u64::MAX,
            next: None,
        }
    }

    /// Takes the kernel's totals; a grown `dropped` means that records are missing.
    pub fn totals(&mut self, now: Time, totals: Totals, policy: &Policy, out: &mut Outbox<'_>) {
        if totals.dropped > self.rates.totals().dropped {
            out.push(Effect::Rescan { guard: self.id });
        }
        if !self.rates.add(now, totals) {
            return;
        }
        let detections = [
            self.aged.look(now, &self.registry, &policy.detect.emergency),
            raw::look(&self.rates, &policy.detect.raw),
        ];
        let detections = detections.into_iter().flatten().collect();
        self.note(now, &[Detector::Emergency, Detector::Raw], detections, &policy.respond, out);
        self.next = Some(now); // Episodes end by silence, which nothing else announces.
    }

    pub fn exited(&mut self, pid: Pid, code: u32) {
        self.registry.exit(pid);
        if code & 0x7f == SIGABRT {
            self.clamp_watch.aborts += 1;
        }
    }

    pub fn denials(&mut self, count: u64) {
        let before = *self.clamp_watch.denials_before.get_or_insert(count);
        self.clamp_watch.denials = count.saturating_sub(before);
    }

    /// What became of an order.
    pub fn settled(
        &mut self,
        now: Time,
        settled: &Settled,
        respond: &Respond,
        out: &mut Outbox<'_>,
    ) {
        self.limits.settled(now, settled, out);
        match self.under_way.remove(&settled.ticket) {
            Some(Expected::Contain { response, lease }) => {
                self.contained(now, response, settled.outcome, lease, respond, out);
            }
            Some(Expected::Release(hold)) if settled.outcome == Outcome::Failed => {
                self.give_back_again.insert(hold, now.after(GIVE_BACK_AGAIN));
            }
            Some(Expected::Release(hold)) => {
                self.give_back_again.remove(&hold);
            }
            None => {}
        }
    }

    fn contained(
        &mut self,
        now: Time,
        response: Response,
        outcome: Outcome,
        lease: Duration,
        respond: &Respond,
        out: &mut Outbox<'_>,
    ) {
        let lease = Some(Lease { since: now, until: now.after(lease) });
        match (Hold::of(response), outcome) {
            (Some(Hold::Freeze), Outcome::Done) => self.freeze = lease,
            (Some(Hold::Clamp), Outcome::Done) => {
                self.clamp = lease;
                self.clamp_watch = ClampWatch::default();
                // What is refused from here on is the clamp's doing.
                out.push(Effect::ReadDenials { guard: self.id });
            }
            (_, Outcome::Failed) => {
                self.episodes.failed(response, now.after(respond.cool_down));
            }
            // By what ran there at that moment: a rule that stands against this guard is heard of when it
            // ends.
            (_, Outcome::Refused) if self.refusal.is_none() && !self.holds(response) => {
                self.episodes.ask_again_at(now.after(respond.cool_down), response);
            }
            // A freeze is somebody's own, or ours and not confirmed yet.
            (Some(Hold::Clamp), Outcome::NotOurs) if self.clamp.is_none() => {
                self.episodes.ask_again_at(now.after(LEFT_ALONE), response);
            }
            (_, Outcome::Done | Outcome::WouldDo | Outcome::Refused | Outcome::NotOurs) => {}
        }
    }

    fn holds(&self, response: Response) -> bool {
        Hold::of(response).is_some_and(|hold| self.lease(hold).is_some())
    }

    fn lease(&self, hold: Hold) -> Option<Lease> {
        match hold {
            Hold::Freeze => self.freeze,
            Hold::Clamp => self.clamp,
        }
    }

    /// What was refused is decided again once nothing stands against it.
    pub fn standing(&mut self, refusal: Option<Refusal>) {
        if self.refusal.is_some() && refusal.is_none() {
            self.episodes.act_again(|_| true);
            self.seen_changes = u64::MAX;
        }
        self.refusal = refusal;
    }

    pub fn thawed_by_other(&mut self, now: Time, respond: &Respond, out: &mut Outbox<'_>) {
        if self.freeze.take().is_some() {
            self.episodes.wait_until(now.after(respond.cool_down));
            let end = End::ThawedByOther;
            out.act(self.id, Action::Disown { hold: Hold::Freeze, end });
        }
    }

    /// Unlike a thaw this is nobody's word on the leak: systemd and engines write the limit whenever
    /// they apply their own settings. So a detector that still asks may clamp again, and freeze at once.
    pub fn unclamped_by_other(&mut self, now: Time, respond: &Respond, out: &mut Outbox<'_>) {
        if self.clamp.take().is_some() {
            self.episodes.failed(Response::Clamp, now.after(respond.cool_down));
            let end = End::UnclampedByOther;
            out.act(self.id, Action::Disown { hold: Hold::Clamp, end });
        }
    }

    pub fn operator(
        &mut self,
        now: Time,
        (id, request): (RequestId, OperatorRequest),
        respond: &Respond,
        out: &mut Outbox<'_>,
    ) {
        let (response, lease, dry_run) = match request {
            OperatorRequest::Freeze { lease, dry_run } => (Response::Freeze, lease, dry_run),
            OperatorRequest::Kill { dry_run } => (Response::Kill, Duration::ZERO, dry_run),
            OperatorRequest::Thaw => {
                self.episodes.wait_until(now.after(respond.cool_down));
                return self.release_all(End::Operator, Some(id), out);
            }
        };
        let mode = if dry_run { Mode::Observe } else { Mode::Enforce };
        let cause = Cause::operator();
        self.contain(now, (response, mode, Some(lease)), cause, Some(id), respond, out);
    }

    pub fn release_all(&mut self, end: End, asked_by: Option<RequestId>, out: &mut Outbox<'_>) {
        for hold in Hold::ALL {
            let lease = match hold {
                Hold::Freeze => &mut self.freeze,
                Hold::Clamp => &mut self.clamp,
            };
            if lease.take().is_some() {
                self.release(hold, end, asked_by, out);
            }
        }
    }

    fn release(&mut self, hold: Hold, end: End, asked_by: Option<RequestId>, out: &mut Outbox<'_>) {
        let ticket = out.act_for(self.id, asked_by, Action::Release { hold, end });
        self.under_way.insert(ticket, Expected::Release(hold));
    }

    /// The cgroup carries a mark whose time is over: it could not be given back, or its holder does not.
    pub fn overdue(&mut self, now: Time, hold: Hold, out: &mut Outbox<'_>) {
        let is_early = self.give_back_again.get(&hold).is_some_and(|at| now < *at);
        if self.lease(hold).is_none() && !is_early {
            self.release(hold, End::LeaseOver, None, out);
        }
    }

    /// Another policy holds. What is held stays held with the terms it began with. A guard that it does not
    /// name is let go once nothing of it is held or under way.
    pub fn apply_policy(&mut self, policy: &Policy) {
        let Some(workload) = &self.workload else { return };
        let terms = policy.terms(workload);
        self.leaves = terms.is_none();
        let nothing = Terms { mode: Mode::Observe, highest: Response::Record, pids_limit: None };
        let terms = terms.unwrap_or(nothing);
        self.limits.policy_changed(self.terms.mode != terms.mode);
        self.terms = terms;
        let is_held = Hold::ALL.map(|hold| (Response::from(hold), self.lease(hold).is_some()));
        self.episodes.act_again(|acted| !is_held.contains(&(acted, true)));
        self.seen_changes = u64::MAX;
    }

    /// Gives back what is held, also what the kernel has just confirmed, and lets the guard go in the end.
    fn leave(&mut self, out: &mut Outbox<'_>) {
        self.release_all(End::Unguarded, None, out);
        let is_busy = self.limits.is_writing() || !self.under_way.is_empty();
        if !is_busy && self.give_back_again.is_empty() {
            self.leaves = false;
            out.push(Effect::Unguard { guard: self.id });
        }
    }

    fn rules(&self, respond: &Respond) -> Rules {
        let Terms { mode, pids_limit, .. } = self.terms;
        Rules { mode, policy: pids_limit, headroom: respond.clamp_headroom }
    }

    /// No limit is written while a clamp is in force, or while nothing may be done here.
    fn may_write_limits(&self) -> bool {
        self.clamp.is_none() && self.refusal.is_none()
    }

    pub fn limit_seen(
        &mut self,
        now: Time,
        seen: &SeenLimit,
        respond: &Respond,
        out: &mut Outbox<'_>,
    ) {
        if self.may_write_limits() {
            let rules = self.rules(respond);
            self.limits.look(now, &rules, seen, out);
        }
    }

    pub fn limit_facts(
        &mut self,
        now: Time,
        answer: (Ticket, Result<Box<Facts>, String>),
        seen: Option<SeenLimit>,
        respond: &Respond,
        out: &mut Outbox<'_>,
    ) {
        let seen = seen.filter(|_| self.may_write_limits());
        let rules = self.rules(respond);
        self.limits.facts(now, &rules, answer, seen.as_ref(), out);
    }

    /// When time alone changes something.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        let holds = [self.clamp, self.freeze].into_iter().flatten().map(|hold| hold.until).min();
        sooner(self.next, holds)
    }

    /// Looks again at what may have changed since the last time.
    pub fn evaluate(&mut self, now: Time, policy: &Policy, out: &mut Outbox<'_>) {
        let changed = self.seen_changes != self.registry.changes();
        if changed || self.next.is_some_and(|next| next <= now) {
            self.seen_changes = self.registry.changes();
            let detect = &policy.detect;
            let (mut detections, soon) = duplicates::look(now, &self.registry, &detect.duplicates);
            let (bursts, later) = burst::look(now, &self.registry, &detect.burst);
            detections.extend(bursts);
            self.next = sooner(soon, later);
            let detectors = [Detector::Duplicates, Detector::Burst];
            self.note(now, &detectors, detections, &policy.respond, out);
        }
        self.expire(now, &policy.respond, out);
        self.soften(now, &policy.respond, out);
        if self.leaves {
            self.leave(out);
        }
    }

    /// Warns of what `detectors` found, and orders what it asks for.
    fn note(
        &mut self,
        now: Time,
        detectors: &[Detector],
        detections: Vec<Detection>,
        respond: &Respond,
        out: &mut Outbox<'_>,
    ) {
        self.episodes.looked(detectors);
        for detection in detections {
            let Follows { warn, respond: asked, respond_at } =
                self.episodes.note(now, &detection, self.terms.highest);
            if let Some(cause) = warn {
                out.act(self.id, Action::Warn { cause });
            }
            if respond_at.is_some() {
                self.next = sooner(self.next, respond_at);
            }
            if let Some(response) = asked.filter(|response| *response > Response::Record) {
                let how = (response, self.terms.mode, None);
                self.contain(now, how, detection.cause, None, respond, out);
            }
        }
        self.episodes.forget_quiet(now);
    }

    /// Orders what was decided; or a refusal, where a bystander rule stands against it.
    fn contain(
        &mut self,
        now: Time,
        (response, mode, lease): (Response, Mode, Option<Duration>),
        cause: Cause,
        asked_by: Option<RequestId>,
        respond: &Respond,
        out: &mut Outbox<'_>,
    ) {
        let lease = lease.unwrap_or(match Hold::of(response) {
            Some(Hold::Clamp) => respond.clamp_lease,
            Some(Hold::Freeze) => respond.freeze_lease,
            None => Duration::ZERO,
        });
        let action = match self.refusal.clone() {
            Some(refusal) => Action::Refuse { response, mode, cause, refusal },
            None => Action::Contain(Containment {
                response,
                mode,
                lease,
                // Beside the tasks that the executor finds there.
                headroom: room_for(0, self.servers(), respond.clamp_headroom),
                cause,
                decided: now,
            }),
        };
        let ticket = out.act_for(self.id, asked_by, action);
        self.under_way.insert(ticket, Expected::Contain { response, lease });
    }

    /// Live servers, all packages together.
    fn servers(&self) -> u64 {
        let servers: usize = self.registry.identities().map(|(_, identity)| identity.live()).sum();
        u64::try_from(servers).unwrap_or(u64::MAX)
    }

    /// Ends holds whose lease is over. A clamp is held on while its detector still asks for it.
    fn expire(&mut self, now: Time, respond: &Respond, out: &mut Outbox<'_>) {
        if self.freeze.is_some_and(|hold| hold.until <= now) {
            self.freeze = None;
            self.release(Hold::Freeze, End::LeaseOver, None, out);
        }
        let Some(clamp) = self.clamp.filter(|hold| hold.until <= now) else { return };
        if self.episodes.still_ask() {
            let lease = respond.clamp_lease;
            self.clamp = Some(Lease { since: clamp.since, until: now.after(lease) });
            out.act(self.id, Action::Renew { lease });
        } else {
            self.clamp = None;
            self.release(Hold::Clamp, End::LeaseOver, None, out);
        }
    }

    /// A clamp can break what is inside: node aborts without its thread pool, an exec'd health check
    /// fails. The first sign of it, soon after the clamp, gives back one headroom.
    fn soften(&mut self, now: Time, respond: &Respond, out: &mut Outbox<'_>) {
        let ClampWatch { denials, aborts, loosened, .. } = self.clamp_watch;
        let young = self.clamp.is_some_and(|clamp| now.since(clamp.since) < CLAMP_WATCH);
        if young && !loosened && (denials > 0 || aborts > 0) {
            self.clamp_watch.loosened = true;
            let by = respond.clamp_headroom;
            out.act(self.id, Action::Loosen { by, aborts, denials });
        }
    }

    /// Whether pids.events is of interest now.
    #[must_use]
    pub fn clamp_is_young(&self, now: Time) -> bool {
        self.clamp.is_some_and(|clamp| now.since(clamp.since) < CLAMP_WATCH)
    }
}
