//! Runs the detectors of one guard, and decides what follows from their detections.

use std::time::Duration;

use mcp_guard_common::Totals;

use super::{Guard, Lease, episodes::Follows};
use crate::{
    Time,
    detect::{self, Detection, burning, disconnected, forecast::Room, raw, sooner},
    effect::{Action, Effect, Outbox},
    evidence::{ServerSeen, Unreaped},
    id::Pid,
    incident::{Detector, Hold},
    policy::{Applied, Policy, Response, ServerResponse},
    registry::TreeId,
};

/// How long a detector waits at least for an order that is under way.
const ORDER_ENDS: Duration = Duration::from_secs(1);
const SIGABRT: u32 = 6;
/// A look is believed for this many times the interval between two looks.
pub const FRESH: u32 = 4;

impl Guard {
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
        self.reaps.is_due = true;
        self.suspends.looked();
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

    pub(super) fn search_left_behind(&mut self, now: Time, policy: &Policy) {
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
    pub(super) fn note_left_behind(&mut self, now: Time, policy: &Policy, out: &mut Outbox<'_>) {
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

    /// Notes a detection of a detector that counts tasks. A response that has to wait follows when it may.
    pub(super) fn note_tasks(
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

    /// Runs the detectors of one identity.
    pub(super) fn look_at(&mut self, now: Time, name: &str, policy: &Policy, out: &mut Outbox<'_>) {
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
        let (servers, may_suspend) = (applied.respond.servers, self.suspends.relieve(name));
        for mut detection in detections {
            let is_of_copies = detection.cause.detector == Some(Detector::Duplicates);
            if is_of_copies && servers >= ServerResponse::Suspend && may_suspend {
                detection.act = None;
            }
            next = sooner(next, self.note(now, detection, policy, out));
        }
        self.schedule.set(name, next);
    }

    /// Warns about a detection, and orders the response that it asks for. Returns when it will ask for
    /// one, if that is later.
    pub(super) fn note(
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

    /// Names the detectors whose findings have not ended.
    pub fn findings(&self) -> impl Iterator<Item = Detector> {
        self.episodes.detectors()
    }

    pub(super) fn look_at_all_again(&mut self) {
        self.again = self.registry.identities().map(|(name, _)| name.into()).collect();
    }

    /// Takes note of the end of a suspend of the host.
    pub fn woke(&mut self, now: Time) {
        self.woke = Some(now);
        self.look_at_all_again();
    }
}
