//! Growth without a package, as traces: threads, processes that replace each other, a slow leak.

use std::fmt::Write as _;

use mcp_guard_core::{
    incident::Detector,
    policy::{Policy, Response},
    replay::{ReplayReport, replay},
};

const SECOND: u64 = 1_000_000_000;

/// A trace of one container. Its first process is 1.
struct Trace(String);

impl Trace {
    fn new() -> Self {
        Self("{\"format\":\"spawn-trace/1\"}\n".to_owned())
    }

    fn event(&mut self, event: &str, t: u64, rest: &str) {
        let _ = writeln!(self.0, "{{\"t\":{t},\"e\":\"{event}\",\"p\":{rest}}}");
    }

    fn report(&self) -> ReplayReport {
        replay(&self.0, Policy::default()).expect("well-formed")
    }
}

/// Returns when T first warned and first clamped, in seconds.
fn by_tasks(report: &ReplayReport) -> (Option<u64>, Option<u64>) {
    let warned = report.warnings.iter().find(|one| one.detector == Detector::Tasks);
    let clamps = |one: &&_| {
        let one: &mcp_guard_core::replay::ReplayAction = one;
        one.detector == Detector::Tasks && one.response == Response::Clamp
    };
    let acted = report.actions.iter().find(clamps);
    (warned.map(|one| one.t_ns / SECOND), acted.map(|one| one.t_ns / SECOND))
}

#[test]
fn threads_count() {
    let mut trace = Trace::new();
    for thread in 0..20_000_u64 {
        let t = 60 * SECOND + thread * SECOND / 1000;
        trace.event("fork", t, &format!("1,\"c\":{},\"thread\":true", 100 + thread));
    }
    let (warned, acted) = by_tasks(&trace.report());
    assert!(warned.is_some_and(|at| at <= 90) && acted.is_some_and(|at| at <= 90));
}

#[test]
fn processes_that_are_replaced_count_as_those_that_stay() {
    const ALIVE: u64 = 2000;
    let mut trace = Trace::new();
    let lives = 8 * SECOND;
    let born = |child: u64| child * lives / ALIVE;
    // Each is replaced after eight seconds, so that none comes of the age that E counts.
    for child in 0..15 * ALIVE {
        if let Some(old) = child.checked_sub(ALIVE) {
            trace.event("exit", born(child), &(100 + old).to_string());
        }
        trace.event("fork", born(child), &format!("1,\"c\":{}", 100 + child));
    }
    let (warned, acted) = by_tasks(&trace.report());
    assert!(warned.is_some_and(|at| at <= 40) && acted.is_some_and(|at| at <= 40));
}

#[test]
fn a_slow_drip_is_noticed_within_the_hour() {
    let mut trace = Trace::new();
    for child in 0..2 * 60 * 95_u64 {
        trace.event("fork", child * 60 * SECOND / 95, &format!("1,\"c\":{}", 100 + child));
    }
    let report = trace.report();
    let (warned, acted) = by_tasks(&report);
    assert!(warned.is_some_and(|at| at < 30 * 60), "{warned:?}");
    assert!(acted.is_some_and(|at| at < 50 * 60), "{acted:?}");
}

#[test]
fn what_ends_is_no_growth() {
    let mut trace = Trace::new();
    // 50 starts a second that live for six seconds each: 300 at a time, 180,000 in an hour.
    for child in 0..180_000_u64 {
        let t = child * SECOND / 50;
        if let Some(old) = child.checked_sub(300) {
            trace.event("exit", t, &(100 + old).to_string());
        }
        trace.event("fork", t, &format!("1,\"c\":{}", 100 + child));
    }
    assert_eq!(by_tasks(&trace.report()), (None, None));
}
