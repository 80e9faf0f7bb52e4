//! Runs a recorded trace through the core, without a host: what would have been detected and done.
//!
//! The core learns only what the trace has. A trace of births, execs and ends alone says nothing about which servers
//! are used.

use std::collections::{BTreeMap, BTreeSet};

use mcp_guard_common::Totals;
use serde::{Deserialize, Serialize};

pub use crate::trace::MalformedTrace;
use crate::{
    Core, Time,
    effect::{Action, Effect, Input, Order, Remark, SeenLimit, Settled},
    evidence::{Contact, ServerSeen},
    id::GuardId,
    incident::{Detector, Outcome},
    limit::Limit,
    policy::{Mode, Policy, Response, Terms, Workload},
    registry::{Observed, TreeId},
    server_order::ServersOrder,
    trace::{EndOfTrace, SeenServer, TraceEvent, TraceHeader, TracedGuard, parse, unreaped},
};

/// How long time continues after the last event, without exits: a leak shows in what stays alive.
const AFTERWARDS_NS: u64 = 120_000_000_000;
const SECOND_NS: u64 = 1_000_000_000;
/// When nothing happened for this long, all windows of the detectors that are shorter than an hour are past it.
const SETTLED_NS: u64 = 130 * SECOND_NS;
/// How long each step is from then on: less than the silence that ends an episode.
const STRIDE_NS: u64 = 20 * SECOND_NS;
const GUARD: GuardId = GuardId(0);

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayReport {
    pub events: u64,
    pub processes: u64,
    pub execs: u64,
    pub live_at_end: usize,
    pub identities: BTreeMap<String, IdentityReport>,
    pub warnings: Vec<Warning>,
    pub actions: Vec<ReplayAction>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reaps: Vec<ReplayServers>,
    /// Orders to suspend servers. In a replay, each is taken to succeed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub suspends: Vec<ReplayServers>,
    /// Lines that are missing in the trace.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lost: u64,
    /// Why the recording ended, if the trace says it. One of an agent always does, unless it was cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<EndOfTrace>,
    /// The policy has rules, and none matches the guard of the trace. So nothing is decided.
    #[serde(default, skip_serializing_if = "is_false")]
    pub not_guarded: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(value: &bool) -> bool {
    !*value
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityReport {
    pub starts: u64,
    pub live_at_end: usize,
    pub live_peak: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    pub t_ns: u64,
    pub detector: Detector,
    pub identity: Option<String>,
    /// The numbers that led to it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub numbers: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayAction {
    pub t_ns: u64,
    pub detector: Detector,
    pub response: Response,
    pub identity: Option<String>,
    /// The numbers that led to it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub numbers: BTreeMap<String, u64>,
}

/// An order about single servers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayServers {
    pub t_ns: u64,
    /// The identity of each.
    pub servers: Vec<String>,
}

impl ReplayServers {
    fn of(t_ns: u64, order: &ServersOrder) -> Self {
        let servers = order.servers.iter().map(|one| one.identity.clone()).collect();
        Self { t_ns, servers }
    }
}

/// Replays a whole trace.
///
/// # Errors
/// If a line does not match the format. The error names the first one; nothing of the trace is
/// reported.
pub fn replay(trace: &str, policy: Policy) -> Result<ReplayReport, MalformedTrace> {
    let (header, events) = parse(trace)?;
    let tells_use =
        header.evidence || events.iter().any(|one| matches!(one, TraceEvent::Use { .. }));
    let mut run = Run::new(policy, &header);
    for event in &events {
        run.advance(run.at(event.time()));
        run.feed(event);
    }
    if header.evidence {
        run.report.ended.get_or_insert(EndOfTrace::Cut);
    }
    run.sum_up();
    // Nothing says what is used afterwards.
    if !tells_use {
        run.advance(Time(run.now.0.saturating_add(AFTERWARDS_NS)));
    }
    Ok(run.report)
}

struct Run {
    core: Core,
    /// When the trace began.
    start: Time,
    now: Time,
    /// How the guard's orders end.
    outcome: Outcome,
    /// When the kernel's totals are due next. They come each second, as on a live host.
    next_totals: u64,
    last_event: u64,
    totals: Totals,
    /// The limit in force and the tasks, if the trace says them.
    limit: Option<(Limit, Option<u64>)>,
    is_counted: bool,
    /// Processes of the next baseline.
    seen: Vec<Observed>,
    /// Servers to which nobody can write any more.
    closing: BTreeSet<TreeId>,
    last_look: Time,
    report: ReplayReport,
}

impl Run {
    fn new(policy: Policy, header: &TraceHeader) -> Self {
        let mode = header.mode.unwrap_or(Mode::Enforce);
        // A guard without a workload is one that no policy names.
        let named = header.guard.clone().filter(|guard| *guard != TracedGuard::default());
        let workload = named.map(Workload::from);
        let terms = workload.as_ref().and_then(|workload| policy.terms(workload));
        let not_guarded = workload.is_some() && terms.is_none();
        let terms = terms.unwrap_or_else(|| Terms::new(mode, highest(&policy)));
        // Nobody could write a limit.
        let terms = Terms { mode, pids_limit: None, ..terms };
        let now = Time(header.boot_ns);
        let mut core = Core::new(policy);
        let (name, workload, refusal) = ("trace".to_owned(), None, None);
        let guarded = Input::Guarded { guard: GUARD, name, terms, workload, refusal };
        core.step(now, guarded, &mut Vec::new());
        if let Some(most) = header.host_tasks {
            core.step(now, Input::HostTasks { most }, &mut Vec::new());
        }
        let outcome = match mode {
            Mode::Enforce => Outcome::Done,
            Mode::Observe => Outcome::WouldDo,
        };
        Self {
            core,
            start: now,
            now,
            outcome,
            next_totals: now.0,
            last_event: now.0,
            totals: Totals::default(),
            limit: None,
            is_counted: !header.totals,
            seen: Vec::new(),
            closing: BTreeSet::new(),
            last_look: now,
            report: ReplayReport { not_guarded, ..ReplayReport::default() },
        }
    }

    /// Returns the time of an event.
    fn at(&self, t: u64) -> Time {
        Time(self.start.0.saturating_add(t))
    }

    /// Advances time to `until`, and stops at each deadline of the core.
    fn advance(&mut self, until: Time) {
        loop {
            let totals = Time(self.next_totals);
            let deadline = self.core.next_deadline().map_or(totals, |next| next.min(totals));
            if deadline > until {
                break;
            }
            self.now = self.now.max(deadline);
            if deadline == totals {
                let quiet = self.next_totals.saturating_sub(self.last_event);
                self.next_totals += if quiet < SETTLED_NS { SECOND_NS } else { STRIDE_NS };
                self.count();
                if self.now.since(self.last_look) >= self.core.policy().evidence.every {
                    self.look();
                }
            } else {
                self.step(Input::Tick);
            }
        }
        self.now = self.now.max(until);
    }

    /// Passes on what is counted here, as the agent does each second. A trace that has the totals has all of them:
    /// in these moments episodes end.
    fn count(&mut self) {
        if self.is_counted {
            self.step(Input::Totals { guard: GUARD, totals: self.totals });
            self.see_limit();
        }
    }

    fn see_limit(&mut self) {
        if let Some(seen) = self.seen_limit() {
            self.step(Input::LimitSeen { guard: GUARD, seen });
        }
    }

    /// Looks at the servers to which nobody can write. A trace says nothing more about them.
    fn look(&mut self) {
        self.last_look = self.now;
        let Some(guard) = self.core.guard(GUARD) else { return };
        self.closing.retain(|server| guard.registry.has(*server));
        if self.closing.is_empty() {
            return;
        }
        let seen = ServerSeen { contact: Contact::Closing, ..ServerSeen::default() };
        let servers = self.closing.iter().map(|server| (*server, self.now, seen)).collect();
        self.step(Input::Looked { guard: GUARD, servers });
    }

    /// Returns the tasks. A trace that is counted has no limits.
    fn seen_limit(&self) -> Option<SeenLimit> {
        let (in_force, tasks) = if self.is_counted {
            let Totals { process_forks, thread_forks, process_exits, thread_exits, .. } =
                self.totals;
            let born = process_forks + thread_forks;
            (Limit::Max, Some(born.saturating_sub(process_exits + thread_exits)))
        } else {
            self.limit?
        };
        let (request, agent_goes_on, clamped) = (None, false, false);
        Some(SeenLimit { in_force, tasks, request, agent_goes_on, clamped })
    }

    fn feed(&mut self, event: &TraceEvent) {
        self.report.events += 1;
        self.last_event = self.now.0;
        self.next_totals = self.next_totals.min(self.now.0 + SECOND_NS);
        self.count_event(event);
        // Records from two CPUs may be slightly out of order; time does not go back.
        let (guard, now) = (GUARD, self.now);
        match event {
            TraceEvent::Fork { thread: true, .. } | TraceEvent::Exit { thread: true, .. } => {}
            TraceEvent::Fork { p, c, .. } => {
                self.step(Input::Fork { guard, born: now, child: *c, parent: *p });
            }
            TraceEvent::Exec { p, command, born, .. } => {
                let born = born.map_or(now, |born| self.born(born));
                self.step(Input::Exec { guard, born, pid: *p, command: command.into() });
            }
            TraceEvent::Exit { p, code, .. } => {
                self.step(Input::Exit { guard, pid: *p, code: *code });
            }
            TraceEvent::Use { p, .. } => self.step(Input::Used { guard, pid: *p }),
            TraceEvent::Hup { p, .. } => {
                let registry = self.core.guard(GUARD).map(|guard| &guard.registry);
                self.closing.extend(registry.and_then(|registry| registry.server_of(*p)));
                self.look();
            }
            TraceEvent::Join { p, born, seen, .. } => {
                let (born, seen) = (self.born(*born), seen.as_ref().map(Observed::from));
                self.step(Input::Attach { guard: Some(guard), born, pid: *p, seen });
            }
            TraceEvent::Leave { p, .. } => {
                self.step(Input::Attach { guard: None, born: now, pid: *p, seen: None });
            }
            TraceEvent::Seen { process, .. } => self.seen.push(process.into()),
            TraceEvent::Baseline { .. } => {
                let processes = std::mem::take(&mut self.seen);
                self.step(Input::Baseline { guard, processes });
            }
            TraceEvent::Totals { .. } | TraceEvent::Limit { .. } => self.take_count(event),
            TraceEvent::Look { servers, .. } => self.looked(servers),
            TraceEvent::Zombies { count, reaper, .. } => {
                let found = unreaped(*count, reaper.as_ref());
                self.step(Input::Unreaped { guard, found });
            }
            TraceEvent::Woke { .. } => self.step(Input::Woke),
            TraceEvent::Lost { lines, .. } => {
                self.report.lost = self.report.lost.saturating_add(*lines);
            }
            TraceEvent::End { why, .. } => self.report.ended = Some(*why),
        }
    }

    /// Counts what a trace has without the kernel's totals, and what the report says.
    fn count_event(&mut self, event: &TraceEvent) {
        let mut new = Totals::default();
        match event {
            TraceEvent::Fork { thread: true, .. } => new.thread_forks = 1,
            TraceEvent::Exit { thread: true, .. } => new.thread_exits = 1,
            TraceEvent::Fork { .. } => new.process_forks = 1,
            TraceEvent::Exec { .. } => new.execs = 1,
            TraceEvent::Exit { .. } => new.process_exits = 1,
            TraceEvent::Use { .. }
            | TraceEvent::Hup { .. }
            | TraceEvent::Join { .. }
            | TraceEvent::Leave { .. }
            | TraceEvent::Seen { .. }
            | TraceEvent::Baseline { .. }
            | TraceEvent::Totals { .. }
            | TraceEvent::Limit { .. }
            | TraceEvent::Look { .. }
            | TraceEvent::Zombies { .. }
            | TraceEvent::Woke { .. }
            | TraceEvent::Lost { .. }
            | TraceEvent::End { .. } => return,
        }
        self.report.processes += new.process_forks;
        self.report.execs += new.execs;
        if self.is_counted {
            let totals = &mut self.totals;
            totals.process_forks += new.process_forks;
            totals.thread_forks += new.thread_forks;
            totals.execs += new.execs;
            totals.process_exits += new.process_exits;
            totals.thread_exits += new.thread_exits;
        }
    }

    /// Takes counts that the trace has. A limit holds until it has another.
    fn take_count(&mut self, event: &TraceEvent) {
        if let TraceEvent::Totals { forks, threads, execs, exits, thread_exits, .. } = event {
            let totals = Totals {
                process_forks: *forks,
                thread_forks: *threads,
                execs: *execs,
                process_exits: *exits,
                thread_exits: *thread_exits,
                ..Totals::default()
            };
            self.is_counted = false;
            self.step(Input::Totals { guard: GUARD, totals });
            self.see_limit();
        }
        if let TraceEvent::Limit { max, tasks, .. } = event {
            self.limit = Some((max.map_or(Limit::Max, Limit::Tasks), *tasks));
            self.see_limit();
        }
    }

    /// Passes on the looks at servers. One that has no live process has ended meanwhile.
    fn looked(&mut self, looked: &[SeenServer]) {
        let Some(state) = self.core.guard(GUARD) else { return };
        let server = |seen: &SeenServer| {
            let began = Time(self.now.0.saturating_sub(seen.took));
            Some((state.registry.server_of(seen.p)?, began, seen.into()))
        };
        let servers = looked.iter().filter_map(server).collect();
        self.step(Input::Looked { guard: GUARD, servers });
    }

    fn born(&self, offset: i64) -> Time {
        Time(self.start.0.saturating_add_signed(offset))
    }

    fn step(&mut self, input: Input) {
        let mut effects = Vec::new();
        self.core.step(self.now, input, &mut effects);
        for effect in effects {
            match effect {
                Effect::Act(order) if !self.report.not_guarded => self.carry_out(order),
                // A trace has nothing more to read, and no limits.
                Effect::Act(_)
                | Effect::Rescan { .. }
                | Effect::WarnOfHerd(_)
                | Effect::ReadStdio { .. }
                | Effect::ReadDenials { .. }
                | Effect::ReadFacts { .. }
                | Effect::ForgetRequest { .. }
                | Effect::Unguard { .. }
                | Effect::Log { .. } => {}
            }
        }
    }

    /// Reports each order as done, or as what would be done, because a trace cannot react.
    fn carry_out(&mut self, order: Order) {
        let t_ns = self.now.0.saturating_sub(self.start.0);
        let mut remark = None;
        match order.action {
            Action::Warn { cause } => {
                if let Some(detector) = cause.detector {
                    let (identity, numbers) = (cause.identity, cause.numbers);
                    self.report.warnings.push(Warning { t_ns, detector, identity, numbers });
                }
                return;
            }
            Action::RefusalBegins { .. } | Action::RefusalEnds => return,
            Action::Contain(done) => {
                if let Some(detector) = done.cause.detector {
                    let (response, identity) = (done.response, done.cause.identity);
                    let numbers = done.cause.numbers;
                    let action = ReplayAction { t_ns, detector, response, identity, numbers };
                    self.report.actions.push(action);
                }
            }
            Action::Reap(reap) => self.report.reaps.push(ReplayServers::of(t_ns, &reap)),
            Action::Suspend(suspend) => {
                self.report.suspends.push(ReplayServers::of(t_ns, &suspend));
                let ids = suspend.servers.iter().map(|one| one.server).collect();
                remark = (self.outcome == Outcome::Done).then_some(Remark::Suspended(ids));
            }
            Action::Resume { servers, .. } => remark = Some(Remark::Resumed(servers)),
            Action::Refuse { .. }
            | Action::GiveUpServers { .. }
            | Action::Renew { .. }
            | Action::Loosen { .. }
            | Action::Release { .. }
            | Action::Disown { .. }
            | Action::WriteLimit { .. }
            | Action::GiveUpLimit { .. }
            | Action::LeaveLimit { .. } => {}
        }
        let Order { ticket, guard, .. } = order;
        let (outcome, detail) = (self.outcome, String::new());
        let settled = Settled { ticket, guard, outcome, detail, remark };
        self.step(Input::Settled(settled));
    }

    /// Records what is alive at the last event.
    fn sum_up(&mut self) {
        let Some(guard) = self.core.guard(GUARD) else { return };
        self.report.live_at_end = guard.registry.processes();
        self.report.identities = guard
            .registry
            .identities()
            .filter(|(_, identity)| identity.is_package() || identity.live() > 0)
            .map(|(name, identity)| {
                let report = IdentityReport {
                    starts: identity.starts,
                    live_at_end: identity.live(),
                    live_peak: identity.live_peak,
                };
                (name.to_owned(), report)
            })
            .collect();
    }
}

/// Returns the strongest response for a trace that no rule names. The policy's first rule applies.
fn highest(policy: &Policy) -> Response {
    match policy.guard.first() {
        Some(rule) => rule.highest,
        None => policy.terms(&Workload::default()).map_or(Response::Freeze, |terms| terms.highest),
    }
}
