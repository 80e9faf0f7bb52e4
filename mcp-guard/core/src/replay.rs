//! Runs a recorded trace through the core, without a host: what would have been detected and done.
//!
//! A trace is JSON lines: a header, then the forks, execs and exits of one guard, oldest first. The
//! argv of an exec is what the caller passed. An exec may have the executable (`exe`) and the working directory
//! (`cwd`), and an exit its status (`code`). A trace
//! may say when a process did something (`use`), and since when nobody can write to its standard input (`hup`).

use std::collections::{BTreeMap, BTreeSet};

use mcp_guard_common::Totals;
use serde::{Deserialize, Serialize};

use crate::{
    Core, Time,
    effect::{Action, Effect, Input, Order, SeenLimit, Settled},
    evidence::{Contact, ServerSeen},
    id::{GuardId, Pid},
    incident::{Detector, Outcome},
    limit::Limit,
    policy::{Mode, Policy, Response, Terms, Workload},
    registry::TreeId,
    server::CommandLine,
};

/// How long time continues after the last event, without exits: a leak shows in what stays alive.
const AFTERWARDS_NS: u64 = 120_000_000_000;
/// Latest time in a trace. Replay steps through every second, so a damaged time must not make it
/// endless.
const LONGEST_NS: u64 = 366 * 86_400 * SECOND_NS;
const SECOND_NS: u64 = 1_000_000_000;
/// When nothing happened for this long, all windows of the detectors that are shorter than an hour are past it.
const SETTLED_NS: u64 = 130 * SECOND_NS;
/// How long each step is from then on: less than the silence that ends an episode.
const STRIDE_NS: u64 = 20 * SECOND_NS;
const GUARD: GuardId = GuardId(0);

/// A line of a trace that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct MalformedTrace {
    pub line: usize,
    pub reason: String,
}

#[derive(Debug, Deserialize)]
struct Header {
    format: String,
    /// The trace says when processes did something.
    #[serde(default)]
    evidence: bool,
}

/// Unknown keys are ignored, so that a recorder may add some.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "e", rename_all = "lowercase")]
enum TraceEvent {
    Fork {
        t: u64,
        p: Pid,
        c: Pid,
        #[serde(default)]
        thread: bool,
    },
    Exec {
        t: u64,
        p: Pid,
        argv: Vec<String>,
        #[serde(default)]
        exe: Option<String>,
        #[serde(default)]
        cwd: Option<String>,
    },
    Exit {
        t: u64,
        p: Pid,
        #[serde(default)]
        thread: bool,
        /// The status as `wait(2)` returns it.
        #[serde(default)]
        code: u32,
    },
    /// The process did something since the last look at it.
    Use { t: u64, p: Pid },
    /// Nobody can write to its standard input any more.
    Hup { t: u64, p: Pid },
}

impl TraceEvent {
    fn time(&self) -> u64 {
        match self {
            Self::Fork { t, .. }
            | Self::Exec { t, .. }
            | Self::Exit { t, .. }
            | Self::Use { t, .. }
            | Self::Hup { t, .. } => *t,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayReport {
    pub events: u64,
    pub processes: u64,
    pub execs: u64,
    pub live_at_end: usize,
    pub identities: BTreeMap<String, IdentityReport>,
    pub warnings: Vec<Warning>,
    pub actions: Vec<ReplayAction>,
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

/// Replays a whole trace.
///
/// # Errors
/// If a line does not match the format. The error names the first one; nothing of the trace is
/// reported.
pub fn replay(trace: &str, policy: Policy) -> Result<ReplayReport, MalformedTrace> {
    let (header, events) = parse(trace)?;
    let mut run = Run::new(policy);
    for event in &events {
        run.advance(Time(event.time()));
        run.feed(event);
    }
    run.sum_up();
    let tells_use =
        header.evidence || events.iter().any(|one| matches!(one, TraceEvent::Use { .. }));
    // Nothing says what is used afterwards.
    if !tells_use {
        run.advance(Time(run.now.0.saturating_add(AFTERWARDS_NS)));
    }
    Ok(run.report)
}

fn parse(trace: &str) -> Result<(Header, Vec<TraceEvent>), MalformedTrace> {
    let mut lines = trace.lines().enumerate().map(|(at, line)| (at + 1, line));
    let malformed = |line, reason: String| MalformedTrace { line, reason };
    let (_, header) =
        lines.next().ok_or_else(|| malformed(1, "the file is empty; it needs a header".into()))?;
    let header: Header = serde_json::from_str(header)
        .map_err(|error| malformed(1, format!("not the header of a spawn trace: {error}")))?;
    if header.format != "spawn-trace/1" {
        let reason = format!("unknown format {:?}; expected \"spawn-trace/1\"", header.format);
        return Err(malformed(1, reason));
    }
    let mut events: Vec<TraceEvent> = Vec::new();
    for (number, line) in lines {
        if line.trim().is_empty() {
            continue;
        }
        let event: TraceEvent =
            serde_json::from_str(line).map_err(|error| malformed(number, in_line(&error)))?;
        if event.time() > LONGEST_NS {
            return Err(malformed(number, "the time is more than a year after the start".into()));
        }
        events.push(event);
    }
    Ok((header, events))
}

/// Returns the error without its line number: the parser sees one line at a time and calls each one
/// line 1.
fn in_line(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.split_once(" at line ") {
        Some((what, _)) => format!("column {}: {what}", error.column()),
        None => text,
    }
}

struct Run {
    core: Core,
    now: Time,
    /// When the kernel's totals are due next. They come each second, as on a live host.
    next_totals: u64,
    last_event: u64,
    totals: Totals,
    /// Servers to which nobody can write any more.
    closing: BTreeSet<TreeId>,
    last_look: Time,
    report: ReplayReport,
}

impl Run {
    fn new(policy: Policy) -> Self {
        let terms = Terms::new(Mode::Enforce, highest(&policy));
        let mut core = Core::new(policy);
        let (name, workload) = ("trace".to_owned(), None);
        let guarded = Input::Guarded { guard: GUARD, name, terms, workload, refusal: None };
        core.step(Time(0), guarded, &mut Vec::new());
        let report = ReplayReport::default();
        let (now, totals, closing) = (Time(0), Totals::default(), BTreeSet::new());
        Self { core, now, next_totals: 0, last_event: 0, totals, closing, last_look: now, report }
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
                self.step(Input::Totals { guard: GUARD, totals: self.totals });
                self.step(Input::LimitSeen { guard: GUARD, seen: self.seen() });
                if self.now.since(self.last_look) >= self.core.policy().evidence.every {
                    self.look();
                }
            } else {
                self.step(Input::Tick);
            }
        }
        self.now = self.now.max(until);
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

    /// Returns the tasks of the trace, which has no limits.
    fn seen(&self) -> SeenLimit {
        let Totals { process_forks, thread_forks, process_exits, thread_exits, .. } = self.totals;
        let tasks = (process_forks + thread_forks).saturating_sub(process_exits + thread_exits);
        let (in_force, tasks) = (Limit::Max, Some(tasks));
        SeenLimit { in_force, tasks, request: None, agent_goes_on: false, clamped: false }
    }

    fn feed(&mut self, event: &TraceEvent) {
        self.report.events += 1;
        self.last_event = self.now.0;
        self.next_totals = self.next_totals.min(self.now.0 + SECOND_NS);
        // Records from two CPUs may be slightly out of order; time does not go back.
        let (guard, born) = (GUARD, self.now);
        match event {
            TraceEvent::Fork { thread: true, .. } => self.totals.thread_forks += 1,
            TraceEvent::Exit { thread: true, .. } => self.totals.thread_exits += 1,
            TraceEvent::Fork { p, c, .. } => {
                self.report.processes += 1;
                self.totals.process_forks += 1;
                self.step(Input::Fork { guard, born, child: *c, parent: *p });
            }
            TraceEvent::Exec { p, argv, exe, cwd, .. } => {
                self.report.execs += 1;
                self.totals.execs += 1;
                let argv = argv.iter().flat_map(|word| word.bytes().chain([0])).collect();
                let [exe, cwd] = [exe, cwd].map(|text| text.clone().map(String::into_bytes));
                let command = CommandLine { argv, exe, cwd };
                self.step(Input::Exec { guard, born, pid: *p, command });
            }
            TraceEvent::Exit { p, code, .. } => {
                self.totals.process_exits += 1;
                self.step(Input::Exit { guard, pid: *p, code: *code });
            }
            TraceEvent::Use { p, .. } => self.step(Input::Used { guard, pid: *p }),
            TraceEvent::Hup { p, .. } => {
                let registry = self.core.guard(GUARD).map(|guard| &guard.registry);
                self.closing.extend(registry.and_then(|registry| registry.server_of(*p)));
                self.look();
            }
        }
    }

    fn step(&mut self, input: Input) {
        let mut effects = Vec::new();
        self.core.step(self.now, input, &mut effects);
        for effect in effects {
            match effect {
                Effect::Act(order) => self.carry_out(order),
                // A trace has nothing more to read, and no limits.
                Effect::Rescan { .. }
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

    /// Reports each order as done, because a trace cannot react.
    fn carry_out(&mut self, order: Order) {
        let t_ns = self.now.0;
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
            Action::Refuse { .. }
            | Action::Renew { .. }
            | Action::Loosen { .. }
            | Action::Release { .. }
            | Action::Disown { .. }
            | Action::WriteLimit { .. }
            | Action::GiveUpLimit { .. }
            | Action::LeaveLimit { .. } => {}
        }
        let Order { ticket, guard, .. } = order;
        let settled =
            Settled { ticket, guard, outcome: Outcome::Done, detail: String::new(), remark: None };
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

/// Returns the strongest response for the trace. A trace has no name, so the policy's first rule
/// applies.
fn highest(policy: &Policy) -> Response {
    match policy.guard.first() {
        Some(rule) => rule.highest,
        None => policy.terms(&Workload::default()).map_or(Response::Freeze, |terms| terms.highest),
    }
}
