//! One guarded cgroup: its state, and the decisions about it.

mod episodes;
mod standing;
mod variants;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use mcp_guard_common::Totals;

use self::{
    episodes::{Count, Episodes, Follows},
    variants::Variants,
};
use crate::{
    Time,
    detect::{
        self, Detection, burning, crash::Crashes, disconnected, emergency::Aged, forecast::Room,
        headroom::Shortage, raw, schedule::Schedule, sooner, tasks::Floors, zombies::Pile,
    },
    diagnose::facts::Facts,
    effect::{Action, Containment, Effect, OperatorRequest, Outbox, Remark, SeenLimit, Settled},
    evidence::{ServerSeen, Unreaped},
    id::{GuardId, Pid, RequestId, Ticket},
    incident::{Cause, Detector, End, Hold, Outcome},
    limit::{Limit, room_for},
    limits::{Limits, Rules},
    policy::{Applied, Mode, Policy, Respond, Response, Terms, Workload},
    rates::Rates,
    refusal::{Despite, Refusal},
    registry::{Registry, TreeId},
};

/// Delay before a clamp is decided again if it had nothing to lower, or if another process had
/// already clamped the cgroup.
const LEFT_ALONE: Duration = Duration::from_secs(600);
/// How long a freeze spares nothing after a clamp that could not be made or did not last. It is longer than the
/// detectors wait before they ask again.
const CANNOT_CLAMP: Duration = Duration::from_secs(1200);
/// How long a detector waits at least for an order that is under way.
const ORDER_ENDS: Duration = Duration::from_secs(1);
/// Delay before a failed release is retried.
const RELEASE_RETRY: Duration = Duration::from_secs(10);
/// How long the processes inside are watched after a clamp.
const CLAMP_WATCH: Duration = Duration::from_secs(30);
/// Longest silence about further departures.
const DEPARTURES_LOGGED: Duration = Duration::from_secs(600);
const SIGABRT: u32 = 6;
/// A look is believed for this many times the interval between two looks.
const FRESH: u32 = 4;

/// The period for which a hold is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    pub since: Time,
    pub until: Time,
    /// An operator asked for it.
    pub is_operators: bool,
}

/// An order whose outcome the guard needs.
#[derive(Clone, Debug)]
enum Expected {
    Contain {
        response: Response,
        lease: Lease,
        /// The guard counts as frozen since the order: the write comes first, the outcome later.
        freezes: bool,
        /// It is not refused, and no dry run of an operator.
        acts: bool,
        cause: Cause,
    },
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
    /// Matched against the rules of a new policy; `None` if no policy set the terms.
    workload: Option<Box<Workload>>,
    pub limits: Limits,
    /// The policy no longer names this guard.
    leaves: bool,
    pub refusal: Option<Refusal>,
    /// When the reason for the refusal was last found.
    refused_at: Time,
    pub registry: Registry,
    pub rates: Rates,
    /// Processes that were moved in from outside.
    pub arrivals: u64,
    /// Processes that were moved out.
    pub departures: u64,
    /// When a departure was last logged.
    departure_logged: Option<Time>,
    clamp: Option<Lease>,
    /// The cause of the last clamp that was ordered.
    clamped_for: Cause,
    /// The cause of the last freeze.
    frozen_for: Cause,
    /// Until then, a clamp is taken to be impossible: one could not be made, or did not last.
    cannot_clamp: Option<Time>,
    freeze: Option<Lease>,
    /// Orders without an outcome so far.
    under_way: BTreeMap<Ticket, Expected>,
    /// Earliest retry per failed release.
    release_again: BTreeMap<Hold, Time>,
    aged: Aged,
    /// When the host last woke from a suspend.
    woke: Option<Time>,
    episodes: Episodes,
    clamp_watch: ClampWatch,
    floors: Floors,
    /// When detector T asks again for a response that had to wait. It looks only every ten seconds.
    tasks_wait: Option<(Time, Detection)>,
    shortage: Shortage,
    /// Servers that nobody can reach.
    left_behind: Vec<Detection>,
    pile: Pile,
    /// When they were last searched for, and how many servers had ended until then. `None` after a look.
    searched: Option<(Time, u64)>,
    crashes: Crashes,
    /// The limit in force and the tasks, when they were last read; `None` if there is no limit.
    filled: Option<(u64, u64)>,
    /// When the detectors of each identity must run again without a change.
    schedule: Schedule,
    /// Identities for which the detectors must run although nothing has changed.
    again: BTreeSet<Arc<str>>,
    variants: Variants,
}

impl Guard {
    #[must_use]
    pub fn new(
        now: Time,
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
            refused_at: now,
            registry: Registry::default(),
            rates: Rates::default(),
            arrivals: 0,
            departures: 0,
            departure_logged: None,
            clamp: None,
            clamped_for: Cause::default(),
            frozen_for: Cause::default(),
            cannot_clamp: None,
            freeze: None,
            under_way: BTreeMap::new(),
            release_again: BTreeMap::new(),
            aged: Aged::default(),
            woke: None,
            episodes: Episodes::default(),
            clamp_watch: ClampWatch::default(),
            floors: Floors::default(),
            tasks_wait: None,
            shortage: Shortage::default(),
            left_behind: Vec::new(),
            pile: Pile::default(),
            searched: Some((now, 0)),
            crashes: Crashes::default(),
            filled: None,
            schedule: Schedule::default(),
            again: BTreeSet::new(),
            variants: Variants::default(),
        }
    }

    /// Counts a process that was moved out. One that leaves for a cgroup without a guard escapes what is
    /// done to this one, so it is logged, though not each time: a process may move to and fro.
    pub fn departed(&mut self, now: Time, pid: Pid, is_outside: bool, out: &mut Outbox<'_>) {
        self.departures += 1;
        let is_told = |at: Time| now.since(at) < DEPARTURES_LOGGED;
        if !is_outside || self.departure_logged.is_some_and(is_told) {
            return;
        }
        self.departure_logged = Some(now);
        let total = self.departures;
        let message = format!(
            "process {pid} was moved to a cgroup without a guard; {total} were moved out so far"
        );
        out.push(Effect::Log { guard: self.id, message });
    }

    /// Takes the kernel's totals. If `dropped` has grown, records are missing and the processes are
    /// read again.
    pub fn totals(&mut self, now: Time, totals: Totals, policy: &Policy, out: &mut Outbox<'_>) {
        if totals.dropped > self.rates.totals().dropped {
            out.push(Effect::Rescan { guard: self.id });
        }
        if !self.rates.add(now, totals) {
            return;
        }
        self.episodes.looked(&[Detector::Emergency, Detector::Raw], None);
        let detect = &policy.scope(self.terms.rule).all().detect;
        let detections = [
            self.aged.look((now, self.woke), &self.registry, &detect.emergency),
            raw::look(&self.rates, &detect.raw),
        ];
        for detection in detections.into_iter().flatten() {
            self.note(now, detection, policy, out);
        }
        self.note_left_behind(now, policy, out);
        // Episodes end after a silence, which no other input reports.
        self.episodes.forget_quiet(now);
        self.again = self.episodes.identities();
    }

    pub fn exited(
        &mut self,
        now: Time,
        (pid, code): (Pid, u32),
        policy: &Policy,
        out: &mut Outbox<'_>,
    ) {
        let exited = self.registry.exit(pid);
        if code & 0x7f == SIGABRT {
            self.clamp_watch.aborts += 1;
        }
        let Some(end) = exited.and_then(|exited| exited.server) else { return };
        let applied = self.variants.applied(policy.scope(self.terms.rule), &end.identity);
        if applied.ignore {
            return;
        }
        if let Some(found) = self.crashes.look(now, &end, code, &applied.detect.crash) {
            self.note(now, found, policy, out);
        }
    }

    /// Takes the looks at some servers.
    pub fn looked(&mut self, now: Time, servers: &[(TreeId, Time, ServerSeen)], policy: &Policy) {
        self.registry.looked(now, policy.evidence.every, servers);
        // With the next totals: the servers of a large guard come in many parts.
        self.searched = None;
    }

    /// Whether the last look found zombies that matter.
    #[must_use]
    pub fn had_zombies(&self) -> bool {
        self.pile.had_some()
    }

    /// Takes the number of zombies.
    pub fn unreaped(&mut self, now: Time, found: Unreaped, policy: &Policy) {
        self.pile.take(now, FRESH * policy.evidence.every, found);
        self.searched = None;
    }

    fn search_left_behind(&mut self, now: Time, policy: &Policy) {
        self.searched = Some((now, self.registry.ended()));
        let (woke, scope) = (self.woke.unwrap_or_default(), policy.scope(self.terms.rule));
        let fresh = FRESH * policy.evidence.every;
        self.left_behind.clear();
        for (applied, servers) in self.variants.groups(scope, self.registry.unreachable()) {
            let Applied { detect, .. } = applied;
            let all = || servers.iter().copied();
            let left = disconnected::look((now, woke), fresh, all(), &detect.disconnected);
            self.left_behind.extend(left);
            self.left_behind.extend(burning::look(now, fresh, all(), &detect.burning));
        }
        // A limit of ours is close on purpose.
        let limit = self.filled.map(|(limit, _)| limit).filter(|_| !self.is_held());
        let zombies = &scope.all().detect.zombies;
        self.left_behind.extend(self.pile.look(now, fresh, limit, zombies));
    }

    /// Between two looks, the episodes of the last one go on, while their servers live and the looks are not old.
    fn note_left_behind(&mut self, now: Time, policy: &Policy, out: &mut Outbox<'_>) {
        let has_none = self.left_behind.is_empty();
        let is_new = self.searched.is_some_and(|(since, ended)| {
            let is_young = now.since(since) < policy.evidence.every;
            has_none || (is_young && ended == self.registry.ended())
        });
        if !is_new {
            self.search_left_behind(now, policy);
        }
        for detection in self.left_behind.clone() {
            self.note(now, detection, policy, out);
        }
    }

    pub fn denials(&mut self, count: u64) {
        let before = *self.clamp_watch.denials_before.get_or_insert(count);
        self.clamp_watch.denials = count.saturating_sub(before);
    }

    /// Takes the outcome of an order.
    pub fn settled(&mut self, now: Time, settled: &Settled, policy: &Policy, out: &mut Outbox<'_>) {
        if !self.may_write_limits() {
            // A clamp or a rule came after the first of two writes.
            self.limits.drop_waiting();
        }
        self.limits.settled(now, settled, out);
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

    /// Clamps what is not frozen, because a process in it serves a FUSE file system.
    fn clamp_instead(&mut self, now: Time, cause: Cause, policy: &Policy, out: &mut Outbox<'_>) {
        self.episodes.replaced(Response::Freeze, Response::Clamp);
        if self.clamp.is_none() && !self.is_under_way(Response::Clamp) {
            let how = (Response::Clamp, self.terms.mode, None);
            self.contain(now, how, cause, (None, None), policy, out);
        }
    }

    fn begin_clamp(&mut self, lease: Lease, out: &mut Outbox<'_>) {
        self.clamp = Some(lease);
        self.clamp_watch = ClampWatch::default();
        // From here on, refused forks are due to the clamp.
        out.push(Effect::ReadDenials { guard: self.id });
    }

    /// Takes note of the end of a suspend of the host.
    pub fn woke(&mut self, now: Time) {
        self.woke = Some(now);
        self.look_at_all_again();
    }

    /// Decides when an order that did not succeed may be repeated.
    fn contained(&mut self, now: Time, response: Response, outcome: Outcome, respond: &Respond) {
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

    fn holds(&self, response: Response) -> bool {
        Hold::of(response).is_some_and(|hold| self.lease(hold).is_some())
    }

    /// Returns the lease of a hold. A freeze has one from the moment it is ordered, also while tasks
    /// have not stopped yet.
    #[must_use]
    pub fn lease(&self, hold: Hold) -> Option<Lease> {
        match hold {
            Hold::Freeze => self.freeze,
            Hold::Clamp => self.clamp,
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

    pub fn operator(
        &mut self,
        now: Time,
        (id, request): (RequestId, OperatorRequest),
        policy: &Policy,
        out: &mut Outbox<'_>,
    ) {
        let (response, lease, dry_run, despite) = match request {
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

    pub fn release_all(&mut self, end: End, asked_by: Option<RequestId>, out: &mut Outbox<'_>) {
        for hold in Hold::ALL {
            let lease = match hold {
                Hold::Freeze => &mut self.freeze,
                Hold::Clamp => &mut self.clamp,
            };
            if lease.take().is_some() || self.is_ordered(hold) {
                self.release(hold, end, asked_by, out);
            }
        }
    }

    /// Whether a hold was ordered whose outcome is not known yet. The executor may still check the cgroup.
    fn is_ordered(&self, hold: Hold) -> bool {
        self.is_under_way(hold.into())
    }

    fn is_under_way(&self, wanted: Response) -> bool {
        self.under_way.values().any(|expected| match expected {
            Expected::Contain { response, acts, .. } => *acts && *response == wanted,
            Expected::Release(_) => false,
        })
    }

    fn release(&mut self, hold: Hold, end: End, asked_by: Option<RequestId>, out: &mut Outbox<'_>) {
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

    /// Applies a new policy. Existing holds keep the terms that they began with. A guard that the
    /// policy does not name is unguarded once it has no holds and no orders in progress. `before`: the
    /// policy until now.
    pub fn apply_policy(&mut self, before: &Policy, policy: &Policy) {
        self.registry.expect_looks(policy.evidence.every);
        self.variants.clear();
        let Some(workload) = &self.workload else { return };
        let terms = policy.terms(workload);
        self.take_terms(terms, before, policy);
    }

    /// Takes the words in which its engine describes it. Another rule may match them.
    pub fn described(&mut self, name: String, workload: Box<Workload>, policy: &Policy) {
        let terms = policy.terms(&workload);
        self.name = name;
        self.workload = Some(workload);
        self.variants.clear();
        self.take_terms(terms, policy, policy);
    }

    /// Returns how it was last described, if the policy names it.
    #[must_use]
    pub fn workload(&self) -> Option<&Workload> {
        self.workload.as_deref()
    }

    /// Takes terms. `before` and `policy`: the policies of the terms until now, and of the new ones.
    fn take_terms(&mut self, terms: Option<Terms>, before: &Policy, policy: &Policy) {
        self.leaves = terms.is_none();
        let terms = terms.unwrap_or(Terms::nothing());
        let of_no_rule = |terms: Terms| Terms { rule: None, ..terms };
        let has_other_terms = of_no_rule(self.terms) != of_no_rule(terms);
        let has_other_keys = before.scope(self.terms.rule) != policy.scope(terms.rule);
        let is_other_mode = self.terms.mode != terms.mode;
        self.terms = terms;
        if !has_other_terms && !has_other_keys {
            // A response is not repeated because the policy was read again.
            return;
        }
        self.limits.policy_changed(is_other_mode);
        let is_held = Hold::ALL.map(|hold| (Response::from(hold), self.lease(hold).is_some()));
        // The keys may have changed for another identity only. They do not let a detector act more often.
        let count = if has_other_terms { Count::BeginsAgain } else { Count::GoesOn };
        self.episodes.act_again(count, |acted| !is_held.contains(&(acted, true)));
        self.look_at_all_again();
    }

    fn look_at_all_again(&mut self) {
        self.again = self.registry.identities().map(|(name, _)| name.into()).collect();
    }

    /// Releases all holds, including one that the kernel has only just confirmed, and finally
    /// unguards the cgroup.
    fn leave(&mut self, out: &mut Outbox<'_>) {
        self.release_all(End::Unguarded, None, out);
        let is_busy = self.limits.is_writing() || !self.under_way.is_empty();
        if !is_busy && self.release_again.is_empty() {
            self.leaves = false;
            out.push(Effect::Unguard { guard: self.id });
        }
    }

    fn rules(&self, policy: &Policy) -> Rules {
        let respond = &policy.scope(self.terms.rule).all().respond;
        let Terms { mode, pids_limit, .. } = self.terms;
        Rules { mode, policy: pids_limit, headroom: respond.clamp_headroom }
    }

    /// Returns false while a hold is in force or a clamp is ordered, or while a bystander rule forbids
    /// acting on this guard. A freeze lowers the limit as well.
    fn may_write_limits(&self) -> bool {
        !self.is_held() && self.refusal.is_none()
    }

    fn is_held(&self) -> bool {
        let is_clamped = self.clamp.is_some() || self.is_ordered(Hold::Clamp);
        is_clamped || self.freeze.is_some()
    }

    /// `host`: the maximum number of tasks on the host.
    pub fn limit_seen(
        &mut self,
        now: Time,
        seen: &SeenLimit,
        host: Option<u64>,
        policy: &Policy,
        out: &mut Outbox<'_>,
    ) {
        let detect = &policy.scope(self.terms.rule).all().detect;
        self.filled = seen.in_force.tasks().zip(seen.tasks);
        if let Some(tasks) = seen.tasks
            && let Some(found) = self.floors.look(now, tasks, host, &detect.tasks)
        {
            self.episodes.looked(&[Detector::Tasks, Detector::Headroom], None);
            self.tasks_wait = None;
            // A limit of ours is close on purpose.
            let limit = seen.in_force.tasks().filter(|_| !self.is_held());
            let limits = &detect.headroom;
            let short =
                limit.and_then(|limit| self.shortage.look(now, &self.floors, limit, limits));
            for detection in found.into_iter().chain(short) {
                self.note_tasks(now, detection, policy, out);
            }
        }
        if self.may_write_limits() {
            let rules = self.rules(policy);
            self.limits.look(now, &rules, seen, out);
        }
    }

    /// Notes a detection of a detector that counts tasks. A response that has to wait follows when it may.
    fn note_tasks(
        &mut self,
        now: Time,
        detection: Detection,
        policy: &Policy,
        out: &mut Outbox<'_>,
    ) {
        if let Some(at) = self.note(now, detection.clone(), policy, out) {
            self.tasks_wait = Some((at, detection));
        }
    }

    pub fn limit_facts(
        &mut self,
        now: Time,
        answer: (Ticket, Result<Box<Facts>, String>),
        seen: Option<SeenLimit>,
        policy: &Policy,
        out: &mut Outbox<'_>,
    ) {
        let seen = seen.filter(|_| self.may_write_limits());
        let rules = self.rules(policy);
        self.limits.facts(now, &rules, answer, seen.as_ref(), out);
    }

    /// Returns when the passing of time alone changes something.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        // A clamp does not end during a freeze.
        let hold = self.freeze.or(self.clamp).map(|hold| hold.until);
        let tasks = self.tasks_wait.as_ref().map(|(at, _)| *at);
        sooner(sooner(self.schedule.next(), tasks), hold)
    }

    /// Runs the detectors if something may have changed, and handles expired leases.
    pub fn evaluate(&mut self, now: Time, policy: &Policy, out: &mut Outbox<'_>) {
        for pid in self.registry.take_begun() {
            out.push(Effect::ReadStdio { guard: self.id, pid });
        }
        let mut names = self.registry.take_changed();
        names.append(&mut self.again);
        names.extend(self.schedule.due(now));
        for name in names {
            self.look_at(now, &name, policy, out);
        }
        if let Some((_, detection)) = self.tasks_wait.take_if(|(at, _)| *at <= now) {
            self.note_tasks(now, detection, policy, out);
        }
        self.expire(now, policy, out);
        self.soften(now, policy, out);
        if self.leaves {
            self.leave(out);
        }
    }

    /// Names the detectors whose findings have not ended.
    pub fn findings(&self) -> impl Iterator<Item = Detector> {
        self.episodes.detectors()
    }

    /// Runs the detectors of one identity.
    fn look_at(&mut self, now: Time, name: &str, policy: &Policy, out: &mut Outbox<'_>) {
        let detectors = [Detector::Duplicates, Detector::Burst, Detector::Growth];
        self.episodes.looked(&detectors, Some(name));
        let Some(identity) = self.registry.identity(name) else {
            self.variants.forget(name);
            return self.schedule.set(name, None);
        };
        let applied = self.variants.applied(policy.scope(self.terms.rule), name);
        if applied.ignore {
            return self.schedule.set(name, None);
        }
        let processes = self.registry.processes();
        let room = self.filled.map(|(limit, tasks)| Room { limit, tasks, processes });
        let (detections, mut next) = detect::look(
            (now, self.woke.unwrap_or_default()),
            name,
            identity,
            &applied.detect,
            room,
        );
        for detection in detections {
            next = sooner(next, self.note(now, detection, policy, out));
        }
        self.schedule.set(name, next);
    }

    /// Warns about a detection, and orders the response that it asks for. Returns when it will ask for
    /// one, if that is later.
    fn note(
        &mut self,
        now: Time,
        detection: Detection,
        policy: &Policy,
        out: &mut Outbox<'_>,
    ) -> Option<Time> {
        // A container chooses the names of its packages, and each order has the whole cgroup checked. So the
        // others wait for the end of one.
        for response in [Response::Clamp, Response::Freeze, Response::Kill] {
            if self.is_under_way(response) {
                self.episodes.delay(response, now.after(ORDER_ENDS));
            }
        }
        if let Some(until) = self.limits.clamp_waits_until() {
            // Its owner may write at any time, and would overwrite the clamp.
            self.episodes.delay(Response::Clamp, now.after(ORDER_ENDS).min(until));
        }
        let is_operators = |lease: Option<Lease>| lease.is_some_and(|lease| lease.is_operators);
        let operators =
            Hold::ALL.map(|hold| (Response::from(hold), is_operators(self.lease(hold))));
        let Follows { warn, respond: asked, respond_at } =
            self.episodes.note(now, &detection, self.terms.highest, |response| {
                operators.contains(&(response, true))
            });
        if let Some(cause) = warn {
            out.act(self.id, Action::Warn { cause });
        }
        // A hold of ours answers this detector too.
        let asked = asked.filter(|response| *response > Response::Record && !self.holds(*response));
        if let Some(response) = asked {
            let how = (response, self.terms.mode, None);
            self.contain(now, how, detection.cause, (None, None), policy, out);
        }
        respond_at
    }

    /// Orders a response, or its refusal if a bystander rule forbids it.
    fn contain(
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

    /// Returns how responses to a cause are carried out.
    fn respond<'a>(&self, policy: &'a Policy, cause: &Cause) -> &'a Respond {
        let scope = policy.scope(self.terms.rule);
        let variant = cause.identity.as_deref().map(|identity| scope.variant(identity));
        &scope.of(variant.unwrap_or_default()).respond
    }

    /// Counts the live servers.
    fn servers(&self) -> u64 {
        u64::try_from(self.registry.live_servers()).unwrap_or(u64::MAX)
    }

    /// Releases holds whose lease has ended. A clamp is renewed while a detector still asks for it,
    /// and lasts at least as long as a freeze beside it.
    fn expire(&mut self, now: Time, policy: &Policy, out: &mut Outbox<'_>) {
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

    /// Loosens a new clamp once, by one headroom, at the first sign that it breaks something
    /// inside: node aborts without its thread pool, and an exec'd health check fails.
    fn soften(&mut self, now: Time, policy: &Policy, out: &mut Outbox<'_>) {
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
