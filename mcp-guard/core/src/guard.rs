//! One guarded cgroup: its state, and the decisions about it.

mod attempts;
mod contain;
mod episodes;
mod findings;
mod holds;
mod limit;
mod reaps;
mod standing;
mod suspends;
mod terms;
mod variants;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

pub use self::findings::FRESH;
use self::{attempts::Attempts, episodes::Episodes, suspends::Suspends, variants::Variants};
use crate::{
    Time,
    detect::{
        Detection, crash::Crashes, emergency::Aged, headroom::Shortage, schedule::Schedule, sooner,
        tasks::Floors, zombies::Pile,
    },
    effect::{Effect, Outbox},
    id::{GuardId, Pid, Ticket},
    incident::{Cause, Hold},
    limits::Limits,
    policy::{Policy, Response, Terms, Workload},
    rates::Rates,
    refusal::Refusal,
    registry::Registry,
};

/// How long a freeze spares nothing after a clamp that could not be made or did not last. It is longer than the
/// detectors wait before they ask again.
const CANNOT_CLAMP: Duration = Duration::from_secs(1200);
/// Longest silence about further departures.
const DEPARTURES_LOGGED: Duration = Duration::from_secs(600);

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
    reaps: Attempts,
    suspends: Suspends,
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
            reaps: Attempts::default(),
            suspends: Suspends::default(),
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
        self.registry.doubt_old_looks(now);
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
        self.suspend(now, policy, out);
        self.reap(now, policy, out);
        self.expire(now, policy, out);
        self.soften(now, policy, out);
        if self.leaves {
            self.leave(out);
        }
    }
}
