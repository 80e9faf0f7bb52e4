//! One guarded cgroup: what is known of it, and what is decided about it.

use std::{collections::BTreeMap, time::Duration};

use mcp_guard_common::Totals;

use crate::{
    Time,
    detect::{Finding, burst, duplicates, emergency::Aged, raw, sooner},
    diagnose::sizing::room_for,
    effect::{Cause, Containment, Detector, Effect, End, GuardId, Outcome, Request},
    policy::{Mode, Policy, Respond, Response, Terms},
    rates::Rates,
    refusal::Refusal,
    registry::Registry,
    warnings::Budget,
};

/// An episode is over when its detector has been silent for so long; then it may warn again.
const EPISODE_QUIET: Duration = Duration::from_secs(30);
/// A clamp that had nothing to lower, or was somebody else's, is decided anew after this time.
const LEFT_ALONE: Duration = Duration::from_secs(600);
/// For so long after a clamp its effect on the processes inside is watched.
const CLAMP_WATCH: Duration = Duration::from_secs(30);
const SIGABRT: u32 = 6;

#[derive(Clone, Debug)]
struct Episode {
    last_seen: Time,
    /// Its warning was told; a guard may tell so many in an hour.
    told: bool,
    /// What it asked for when it acted.
    acted: Option<Response>,
    /// It asks for action at this moment.
    acting: bool,
    /// What came to nothing is not tried again before.
    not_before: Time,
}

/// A state of the host that we own.
#[derive(Clone, Copy, Debug)]
pub struct Hold {
    pub since: Time,
    pub until: Time,
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
    pub refusal: Option<Refusal>,
    pub registry: Registry,
    pub rates: Rates,
    /// Processes that came in from outside, and that were moved out.
    pub arrivals: u64,
    pub departures: u64,
    pub clamp: Option<Hold>,
    pub freeze: Option<Hold>,
    aged: Aged,
    episodes: BTreeMap<(Detector, Option<String>), Episode>,
    warnings: Budget,
    clamp_watch: ClampWatch,
    /// Somebody gave back what we held: nothing is done until then.
    not_before: Time,
    /// What failed is not tried before, and stands in no other's way: a clamp may fail for ever.
    recovers: BTreeMap<Response, Time>,
    seen_changes: u64,
    next: Option<Time>,
}

impl Guard {
    #[must_use]
    pub fn new(id: GuardId, name: String, terms: Terms, refusal: Option<Refusal>) -> Self {
        Self {
            id,
            name,
            terms,
            refusal,
            registry: Registry::default(),
            rates: Rates::default(),
            arrivals: 0,
            departures: 0,
            clamp: None,
            freeze: None,
            aged: Aged::default(),
            episodes: BTreeMap::new(),
            warnings: Budget::default(),
            clamp_watch: ClampWatch::default(),
            not_before: Time::default(),
            recovers: BTreeMap::new(),
            seen_changes: u64::MAX,
            next: None,
        }
    }

    /// Takes the kernel's totals; a grown `dropped` means that records are missing.
    pub fn totals(&mut self, now: Time, totals: Totals, policy: &Policy, out: &mut Vec<Effect>) {
        if totals.dropped > self.rates.totals().dropped {
            out.push(Effect::Rescan { guard: self.id });
        }
        if !self.rates.add(now, totals) {
            return;
        }
        let findings = [
            self.aged.look(now, &self.registry, &policy.detect.emergency),
            raw::look(&self.rates, &policy.detect.raw),
        ];
        let findings = findings.into_iter().flatten().collect();
        self.note(now, &[Detector::Emergency, Detector::Raw], findings, &policy.respond, out);
        self.next = Some(now); // Episodes end by silence, which nothing else announces.
    }

    pub fn exited(&mut self, pid: u32, code: u32) {
        self.registry.exit(pid);
        if code & 0x7f == SIGABRT {
            self.clamp_watch.aborts += 1;
        }
    }

    pub fn denials(&mut self, count: u64) {
        let before = *self.clamp_watch.denials_before.get_or_insert(count);
        self.clamp_watch.denials = count.saturating_sub(before);
    }

    /// The executor tells what became of an action; `lease` is the one it marked.
    pub fn settled(
        &mut self,
        now: Time,
        response: Response,
        outcome: Outcome,
        lease: Duration,
        respond: &Respond,
    ) {
        let hold = Some(Hold { since: now, until: now.after(lease) });
        match (response, outcome) {
            (Response::Freeze, Outcome::Done) => self.freeze = hold,
            (Response::Clamp, Outcome::Done) => {
                self.clamp = hold;
                self.clamp_watch = ClampWatch::default();
            }
            (_, Outcome::Failed) => {
                self.recovers.insert(response, now.after(respond.cool_down));
                self.decide_anew(|acted| acted == response);
            }
            // Not by a rule that stands against this guard, whose end is heard of: by what ran there then.
            (_, Outcome::Refused) if self.refusal.is_none() && !self.holds(response) => {
                self.try_again(now, response, respond.cool_down);
            }
            // A freeze is somebody's own, or ours and not confirmed yet.
            (Response::Clamp, Outcome::NotOurs) if self.clamp.is_none() => {
                self.try_again(now, response, LEFT_ALONE);
            }
            (_, Outcome::Done | Outcome::WouldDo | Outcome::Refused | Outcome::NotOurs) => {}
        }
    }

    fn holds(&self, response: Response) -> bool {
        match response {
            Response::Freeze => self.freeze.is_some(),
            Response::Clamp => self.clamp.is_some(),
            Response::Record | Response::Kill => false,
        }
    }

    /// Lets those who asked for it ask again after some time; nobody else has to wait for that.
    fn try_again(&mut self, now: Time, response: Response, after: Duration) {
        for episode in self.episodes.values_mut() {
            if episode.acted == Some(response) {
                episode.acted = None;
                episode.not_before = now.after(after);
            }
        }
    }

    /// What was refused is decided anew once nothing stands against it.
    pub fn standing(&mut self, refusal: Option<Refusal>) {
        if self.refusal.is_some() && refusal.is_none() {
            self.decide_anew(|_| true);
            self.seen_changes = u64::MAX;
        }
        self.refusal = refusal;
    }

    pub fn thawed_by_other(&mut self, now: Time, respond: &Respond, out: &mut Vec<Effect>) {
        if self.freeze.take().is_some() {
            self.not_before = now.after(respond.cool_down);
            let end = End::ThawedByOther;
            out.push(Effect::Disown { guard: self.id, response: Response::Freeze, end });
        }
    }

    /// Unlike a thaw this is nobody's word on the leak: systemd and engines write the limit whenever
    /// they apply their own settings. So a detector that still asks may clamp again, and freeze at once.
    pub fn unclamped_by_other(&mut self, now: Time, respond: &Respond, out: &mut Vec<Effect>) {
        if self.clamp.take().is_some() {
            self.recovers.insert(Response::Clamp, now.after(respond.cool_down));
            self.decide_anew(|response| response == Response::Clamp);
            let end = End::UnclampedByOther;
            out.push(Effect::Disown { guard: self.id, response: Response::Clamp, end });
        }
    }

    /// Lets episodes act again that acted by a response.
    fn decide_anew(&mut self, by: impl Fn(Response) -> bool) {
        for episode in self.episodes.values_mut() {
            episode.acted = episode.acted.filter(|response| !by(*response));
        }
    }

    pub fn operator(
        &mut self,
        now: Time,
        request: Request,
        respond: &Respond,
        out: &mut Vec<Effect>,
    ) {
        let cause = Cause { detector: None, identity: None, numbers: BTreeMap::new() };
        let (response, lease, dry_run) = match request {
            Request::Freeze { lease, dry_run } => (Response::Freeze, lease, dry_run),
            Request::Kill { dry_run } => (Response::Kill, Duration::ZERO, dry_run),
            Request::Thaw => {
                self.not_before = now.after(respond.cool_down);
                return self.release_all(End::Operator, out);
            }
        };
        let mode = if dry_run { Mode::Observe } else { Mode::Enforce };
        out.push(self.contain(now, response, mode, Some(lease), cause, respond));
    }

    pub fn release_all(&mut self, end: End, out: &mut Vec<Effect>) {
        for (response, hold) in
            [(Response::Freeze, &mut self.freeze), (Response::Clamp, &mut self.clamp)]
        {
            if hold.take().is_some() {
                out.push(Effect::Release { guard: self.id, response, end });
            }
        }
    }

    /// When time alone changes something.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        let holds = [self.clamp, self.freeze].into_iter().flatten().map(|hold| hold.until).min();
        sooner(self.next, holds)
    }

    /// Looks again at what may have changed since the last time.
    pub fn evaluate(&mut self, now: Time, policy: &Policy, out: &mut Vec<Effect>) {
        let changed = self.seen_changes != self.registry.changes();
        if changed || self.next.is_some_and(|next| next <= now) {
            self.seen_changes = self.registry.changes();
            let detect = &policy.detect;
            let (mut findings, soon) = duplicates::look(now, &self.registry, &detect.duplicates);
            let (bursts, later) = burst::look(now, &self.registry, &detect.burst);
            findings.extend(bursts);
            self.next = sooner(soon, later);
            let detectors = [Detector::Duplicates, Detector::Burst];
            self.note(now, &detectors, findings, &policy.respond, out);
        }
        self.expire(now, &policy.respond, out);
        self.soften(now, &policy.respond, out);
    }

    /// Keeps the episodes of `detectors`; each warns once and acts once.
    fn note(
        &mut self,
        now: Time,
        detectors: &[Detector],
        findings: Vec<Finding>,
        respond: &Respond,
        out: &mut Vec<Effect>,
    ) {
        for ((detector, _), episode) in &mut self.episodes {
            episode.acting &= !detectors.contains(detector);
        }
        for Finding { cause, act } in findings {
            let Some(detector) = cause.detector else { continue };
            let key = (detector, cause.identity.clone());
            let new = Episode {
                last_seen: now,
                told: false,
                acted: None,
                acting: false,
                not_before: now,
            };
            let episode = self.episodes.entry(key).or_insert(new);
            if !episode.told
                && let Some(cause) = self.warnings.spend(now, &cause)
            {
                episode.told = true;
                out.push(Effect::Warn { guard: self.id, cause });
            }
            episode.last_seen = now;
            episode.acting = act.is_some();
            let Some(response) = act.filter(|_| episode.acted.is_none()) else { continue };
            let response = response.min(self.terms.highest);
            let recovers = self.recovers.get(&response).copied().unwrap_or_default();
            let earliest = recovers.max(self.not_before).max(episode.not_before);
            if now < earliest {
                self.next = sooner(self.next, Some(earliest));
                continue;
            }
            episode.acted = Some(response);
            if response > Response::Record {
                out.push(self.contain(now, response, self.terms.mode, None, cause, respond));
            }
        }
        self.episodes.retain(|_, episode| {
            let lasts = now.since(episode.last_seen) < EPISODE_QUIET;
            if !lasts && !episode.told {
                self.warnings.withhold();
            }
            lasts
        });
    }

    /// The effect for a decision; a refusal where a bystander rule stands against it.
    fn contain(
        &self,
        now: Time,
        response: Response,
        mode: Mode,
        lease: Option<Duration>,
        cause: Cause,
        respond: &Respond,
    ) -> Effect {
        if let Some(refusal) = &self.refusal {
            let refusal = refusal.clone();
            return Effect::Refuse { guard: self.id, response, mode, cause, refusal };
        }
        let lease = lease.unwrap_or(match response {
            Response::Clamp => respond.clamp_lease,
            Response::Freeze => respond.freeze_lease,
            Response::Record | Response::Kill => Duration::ZERO,
        });
        Effect::Contain(Containment {
            guard: self.id,
            response,
            mode,
            lease,
            // Beside the tasks that the executor finds there.
            headroom: room_for(0, self.servers(), respond.clamp_headroom),
            cause,
            decided: now,
        })
    }

    /// Live servers, all packages together.
    fn servers(&self) -> u64 {
        let servers: usize = self.registry.identities().map(|(_, identity)| identity.live()).sum();
        u64::try_from(servers).unwrap_or(u64::MAX)
    }

    /// Ends holds whose lease is over. A clamp is held on while its detector still asks for it.
    fn expire(&mut self, now: Time, respond: &Respond, out: &mut Vec<Effect>) {
        let guard = self.id;
        if self.freeze.is_some_and(|hold| hold.until <= now) {
            self.freeze = None;
            out.push(Effect::Release { guard, response: Response::Freeze, end: End::LeaseOver });
        }
        let Some(clamp) = self.clamp.filter(|hold| hold.until <= now) else { return };
        if self.episodes.values().any(|episode| episode.acting && episode.acted.is_some()) {
            let lease = respond.clamp_lease;
            self.clamp = Some(Hold { since: clamp.since, until: now.after(lease) });
            out.push(Effect::Renew { guard, lease });
        } else {
            self.clamp = None;
            out.push(Effect::Release { guard, response: Response::Clamp, end: End::LeaseOver });
        }
    }

    /// A clamp can break what is inside: node aborts without its thread pool, an exec'd health check
    /// fails. The first sign of it, soon after the clamp, gives back one headroom.
    fn soften(&mut self, now: Time, respond: &Respond, out: &mut Vec<Effect>) {
        let ClampWatch { denials, aborts, loosened, .. } = self.clamp_watch;
        let young = self.clamp.is_some_and(|clamp| now.since(clamp.since) < CLAMP_WATCH);
        if young && !loosened && (denials > 0 || aborts > 0) {
            self.clamp_watch.loosened = true;
            let by = respond.clamp_headroom;
            out.push(Effect::Loosen { guard: self.id, by, aborts, denials });
        }
    }

    /// Whether pids.events is of interest now.
    #[must_use]
    pub fn clamp_is_young(&self, now: Time) -> bool {
        self.clamp.is_some_and(|clamp| now.since(clamp.since) < CLAMP_WATCH)
    }
}
