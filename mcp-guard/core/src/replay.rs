//! A recorded trace through the core: what would have been seen and done, without a host.
//!
//! A trace is JSON lines: a header, then forks, execs and exits of one guard, oldest first. Exec
//! argv is what the caller gave.

use std::collections::BTreeMap;

use mcp_guard_common::Totals;
use serde::{Deserialize, Serialize};

use crate::{
    Core, Time,
    effect::{Action, Effect, Input, Order, Settled},
    id::{GuardId, Pid},
    incident::{Detector, Outcome},
    policy::{Mode, Policy, Response, Terms, Workload},
};

/// After the last event time runs on for so long and nothing dies: a leak shows by what stays.
const AFTERWARDS_NS: u64 = 120_000_000_000;
/// Every second of a trace is gone through; a damaged time must not make that endless.
const LONGEST_NS: u64 = 366 * 86_400 * SECOND_NS;
const SECOND_NS: u64 = 1_000_000_000;
const GUARD: GuardId = GuardId(0);

/// A line that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct MalformedTrace {
    pub line: usize,
    pub reason: String,
}

#[derive(Debug, Deserialize)]
struct Header {
    format: String,
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
    },
    Exit {
        t: u64,
        p: Pid,
        #[serde(default)]
        thread: bool,
    },
}

impl TraceEvent {
    fn time(&self) -> u64 {
        match self {
            Self::Fork { t, .. } | Self::Exec { t, .. } | Self::Exit { t, .. } => *t,
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
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayAction {
    pub t_ns: u64,
    pub detector: Detector,
    pub response: Response,
    pub identity: Option<String>,
}

/// Runs a whole trace.
///
/// # Errors
/// The first line that is not what the format says; nothing of the trace is reported then.
pub fn replay(trace: &str, policy: Policy) -> Result<ReplayReport, MalformedTrace> {
    let events = parse(trace)?;
    let mut run = Run::new(policy);
    for event in &events {
        run.advance(Time(event.time()));
        run.feed(event);
    }
    run.sum_up();
    run.advance(Time(run.now.0.saturating_add(AFTERWARDS_NS)));
    Ok(run.report)
}

fn parse(trace: &str) -> Result<Vec<TraceEvent>, MalformedTrace> {
    let mut lines = trace.lines().enumerate().map(|(at, line)| (at + 1, line));
    let malformed = |line, reason: String| MalformedTrace { line, reason };
    let (_, header) =
        lines.next().ok_or_else(|| malformed(1, "the file is empty; a header is due".into()))?;
    let header: Header = serde_json::from_str(header)
        .map_err(|error| malformed(1, format!("no header of a spawn trace: {error}")))?;
    if header.format != "spawn-trace/1" {
        let reason = format!("format {:?}; only \"spawn-trace/1\" is known", header.format);
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
            return Err(malformed(number, "its time is more than a year after the start".into()));
        }
        events.push(event);
    }
    Ok(events)
}

/// The parser sees one line at a time and calls each of them the first.
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
    /// When the kernel's totals are due again; they come each second, as from a live host.
    next_totals: u64,
    totals: Totals,
    report: ReplayReport,
}

impl Run {
    fn new(policy: Policy) -> Self {
        let terms = Terms { mode: Mode::Enforce, highest: highest(&policy), pids_limit: None };
        let mut core = Core::new(policy);
        let (name, workload) = ("trace".to_owned(), None);
        let guarded = Input::Guarded { guard: GUARD, name, terms, workload, refusal: None };
        core.step(Time(0), guarded, &mut Vec::new());
        let report = ReplayReport::default();
        Self { core, now: Time(0), next_totals: 0, totals: Totals::default(), report }
    }

    /// Lets time pass up to `until`, stopping wherever the core asked to be woken.
    fn advance(&mut self, until: Time) {
        loop {
            let totals = Time(self.next_totals);
            let deadline = self.core.next_deadline().map_or(totals, |next| next.min(totals));
            if deadline > until {
                break;
            }
            self.now = self.now.max(deadline);
            if deadline == totals {
                self.next_totals += SECOND_NS;
                self.step(Input::Totals { guard: GUARD, totals: self.totals });
            } else {
                self.step(Input::Tick);
            }
        }
        self.now = self.now.max(until);
    }

    fn feed(&mut self, event: &TraceEvent) {
        self.report.events += 1;
        // Records of two CPUs may stand in the wrong order by a little: time does not go back.
        let (guard, born) = (GUARD, self.now);
        match event {
            TraceEvent::Fork { thread: true, .. } => self.totals.thread_forks += 1,
            TraceEvent::Exit { thread: true, .. } => self.totals.thread_exits += 1,
            TraceEvent::Fork { p, c, .. } => {
                self.report.processes += 1;
                self.totals.process_forks += 1;
                self.step(Input::Fork { guard, born, child: *c, parent: *p });
            }
            TraceEvent::Exec { p, argv, .. } => {
                self.report.execs += 1;
                self.totals.execs += 1;
                let argv = argv.iter().flat_map(|word| word.bytes().chain([0])).collect();
                self.step(Input::Exec { guard, born, pid: *p, argv });
            }
            TraceEvent::Exit { p, .. } => {
                self.totals.process_exits += 1;
                self.step(Input::Exit { guard, pid: *p, code: 0 });
            }
        }
    }

    fn step(&mut self, input: Input) {
        let mut effects = Vec::new();
        self.core.step(self.now, input, &mut effects);
        for effect in effects {
            match effect {
                Effect::Act(order) => self.carry_out(order),
                // A trace has no more to read, and no limits.
                Effect::Rescan { .. }
                | Effect::ReadDenials { .. }
                | Effect::ReadFacts { .. }
                | Effect::ForgetRequest { .. }
                | Effect::Unguard { .. }
                | Effect::Log { .. } => {}
            }
        }
    }

    /// Whatever is ordered is done: a trace cannot react.
    fn carry_out(&mut self, order: Order) {
        let t_ns = self.now.0;
        match order.action {
            Action::Warn { cause } => {
                if let Some(detector) = cause.detector {
                    let identity = cause.identity;
                    self.report.warnings.push(Warning { t_ns, detector, identity });
                }
                return;
            }
            Action::Contain(done) => {
                if let Some(detector) = done.cause.detector {
                    let (response, identity) = (done.response, done.cause.identity);
                    self.report.actions.push(ReplayAction { t_ns, detector, response, identity });
                }
            }
            Action::Refuse { .. }
            | Action::Renew { .. }
            | Action::Loosen { .. }
            | Action::Release { .. }
            | Action::Disown { .. }
            | Action::WriteLimit { .. }
            | Action::LeaveLimit { .. } => {}
        }
        let Order { ticket, guard, .. } = order;
        let settled = Settled { ticket, guard, outcome: Outcome::Done, detail: String::new() };
        self.step(Input::Settled(settled));
    }

    /// What lives at the last event.
    fn sum_up(&mut self) {
        let Some(guard) = self.core.guard(GUARD) else { return };
        self.report.live_at_end = guard.registry.processes();
        self.report.identities = guard
            .registry
            .identities()
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

/// A trace has no name. It stands for whatever the policy's first rule guards.
fn highest(policy: &Policy) -> Response {
    match policy.guard.first() {
        Some(rule) => rule.highest,
        None => policy.terms(&Workload::default()).map_or(Response::Freeze, |terms| terms.highest),
    }
}
