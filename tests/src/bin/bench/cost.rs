//! Nanoseconds per event, for our programs and for their peers, under the same load.

use crate::load::{self, BIRTHS};
use crate::numbers::median;
use crate::observer::Observer;
use crate::peer::Peer;
use crate::report::Report;
use crate::{stats, tell};
use anyhow::{Context, Result};
use aya::Btf;
use aya::sys::{Stats, enable_stats};
use mcp_guard_tests::cgroup::FixtureCgroup;
use std::time::Duration;

/// How often the agent reads its ring if no record wakes it.
const TICK: Duration = Duration::from_millis(250);
/// The share of other programs' events that a reading may have, because they distort the average. A
/// reading with more is repeated.
const FOREIGN: f64 = 0.03;
const ATTEMPTS: usize = 4;

#[derive(Clone, Copy)]
enum Subject {
    Ours { program: &'static str, tracepoint: &'static str, guarded: bool, events: bool },
    Peer(&'static [&'static str]),
}

struct Case {
    name: &'static str,
    load: &'static str,
    subject: Subject,
}

const FORK: &str = "sched_process_fork";
const EXEC: &str = "sched_process_exec";
const COUNT_FORKS: [&str; 3] =
    ["bpftrace", "-e", "tracepoint:sched:sched_process_fork { @[cgroup] = count(); }"];
const COUNT_EXECS: [&str; 3] =
    ["bpftrace", "-e", "tracepoint:sched:sched_process_exec { @[cgroup] = count(); }"];

const fn ours(
    program: &'static str,
    tracepoint: &'static str,
    guarded: bool,
    events: bool,
) -> Subject {
    Subject::Ours { program, tracepoint, guarded, events }
}

/// The cases. Each round measures them one at a time, in this order.
const CASES: [Case; 10] = [
    Case { name: "empty program", load: "fork", subject: ours("empty", FORK, false, false) },
    Case {
        name: "fork, outside every guard",
        load: "fork",
        subject: ours("fork", FORK, false, true),
    },
    Case { name: "fork, counted", load: "fork", subject: ours("fork", FORK, true, false) },
    Case { name: "fork, counted and told", load: "fork", subject: ours("fork", FORK, true, true) },
    Case {
        name: "bpftrace count() of forks by cgroup",
        load: "fork",
        subject: Subject::Peer(&COUNT_FORKS),
    },
    Case {
        name: "exec, outside every guard",
        load: "exec",
        subject: ours("exec", EXEC, false, true),
    },
    Case { name: "exec, told with argv", load: "exec", subject: ours("exec", EXEC, true, true) },
    Case {
        name: "exec, told with argv, every second one wakes the agent",
        load: "launchers",
        subject: ours("exec", EXEC, true, true),
    },
    Case {
        name: "bpftrace count() of execs by cgroup",
        load: "exec",
        subject: Subject::Peer(&COUNT_EXECS),
    },
    Case {
        name: "execsnoop, enter and exit",
        load: "exec",
        subject: Subject::Peer(&["execsnoop"]),
    },
];

struct Bench {
    btf: Btf,
    cgroup: FixtureCgroup,
    other: FixtureCgroup,
}

pub fn measure(rounds: u64, report: &mut Report) -> Result<()> {
    let _stats = enable_stats(Stats::RunTime).context("cannot enable BPF statistics")?;
    let bench = Bench {
        btf: Btf::from_sys_fs().context("cannot read the kernel's BTF")?,
        cgroup: FixtureCgroup::new("bench-load")?,
        other: FixtureCgroup::new("bench-other")?,
    };
    let mut costs = CASES.map(|_| Vec::new());
    for round in 0..rounds {
        tell(&format!("cost per event: round {} of {rounds}", round + 1));
        for (case, costs) in CASES.iter().zip(&mut costs) {
            costs.push(bench.quiet_reading(case).with_context(|| case.name)?);
        }
    }
    add(report, &costs.map(|costs| median(&costs)));
    Ok(())
}

fn add(report: &mut Report, medians: &[f64; CASES.len()]) {
    report.section("Cost per event (median of rounds, as the kernel accounts it)");
    for (case, cost) in CASES.iter().zip(medians) {
        report.add(case.name, *cost, "ns");
    }
    let [empty, outside, counted, told, forks, exec_outside, exec, _, execs, snoop] = *medians;
    let forks = forks - empty;
    let share = |cost: f64, of: f64| (cost - empty) / of;
    report.section("The same without the empty program's cost, as a share of the peer's");
    report.add_goal("fork outside every guard / bpftrace", share(outside, forks), "", 0.5);
    report.add_goal("fork counted / bpftrace", share(counted, forks), "", 1.0);
    report.add_goal("fork counted and told / bpftrace", share(told, forks), "", 2.0);
    report.add_goal(
        "exec outside every guard / bpftrace",
        share(exec_outside, execs - empty),
        "",
        0.5,
    );
    // execsnoop runs twice per exec, so the cost of an empty program is subtracted twice.
    report.add_goal("exec told with argv / execsnoop", share(exec, snoop - 2.0 * empty), "", 0.35);
}

impl Bench {
    /// Returns the reading with the fewest events of other programs. Stops at the first that is within
    /// [`FOREIGN`].
    fn quiet_reading(&self, case: &Case) -> Result<f64> {
        let mut best = (f64::MAX, 0.0);
        for _ in 0..ATTEMPTS {
            let (cost, events) = self.reading(case)?;
            // Only `spawn-workload` makes a number of events that is known in advance.
            let own = if case.load == "launchers" { events } else { BIRTHS };
            let foreign = events.saturating_sub(own) as f64 / own as f64;
            if foreign < best.0 {
                best = (foreign, cost);
            }
            if foreign <= FOREIGN {
                break;
            }
        }
        Ok(best.1)
    }

    fn reading(&self, case: &Case) -> Result<(f64, u64)> {
        match case.subject {
            Subject::Peer(words) => {
                let peer = Peer::start(words)?;
                let before = peer.runs()?;
                load::finish(load::start(case.load, &self.cgroup)?)?;
                stats::per_event(&before, &peer.runs()?)
            }
            Subject::Ours { program, tracepoint, guarded, events } => {
                let mut observer = Observer::start(&[(program, tracepoint)], events, &self.btf)?;
                let guard = if guarded { &self.cgroup } else { &self.other };
                observer.watch(guard.id())?;
                let before = stats::of_process("self")?;
                let mut child = load::start(case.load, &self.cgroup)?;
                while child.try_wait()?.is_none() {
                    observer.wait(TICK)?;
                    observer.records().for_each(drop);
                }
                load::finish(child)?;
                stats::per_event(&before, &stats::of_process("self")?)
            }
        }
    }
}
