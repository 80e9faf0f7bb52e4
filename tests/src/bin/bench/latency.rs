//! The time from the kernel's record of the deciding launcher start to the frozen container.

use crate::busy::Busy;
use crate::numbers::quantile;
use crate::observer::Observer;
use crate::report::Report;
use crate::storm::{self, Storm};
use crate::{tell, weight};
use anyhow::{Context, Result};
use aya::Btf;
use mcp_guard_common::Kind;
use mcp_guard_tests::agent::Agent;
use mcp_guard_tests::cgroup::FixtureCgroup;

/// How many cgroups are guarded at a time: a host has a few containers, not a hundred.
const AT_A_TIME: u64 = 10;
/// More than the threshold, so that the storm still runs when the container is frozen.
const TREES: u64 = 200;

/// Only detector B acts, at the 20th launcher start within a second.
const POLICY: &str = r#"
mode = "enforce"
[detect.duplicates]
warn = 100000
act = 100000
[detect.burst]
warn_10s = 100000
warn_60s = 100000
survivors = 100000
act_rate = 20
act_for = "1s"
response = "freeze"
[detect.emergency]
warn = 100000
act = 100000
[detect.raw]
warn = 1000000
"#;

#[derive(Default)]
struct Found {
    written_us: Vec<f64>,
    frozen_us: Vec<f64>,
    /// Processes forked between the deciding record and `frozen 1`.
    born: Vec<f64>,
}

pub fn measure(runs: u64, report: &mut Report) -> Result<()> {
    let btf = Btf::from_sys_fs().context("cannot read the kernel's BTF")?;
    let parent = FixtureCgroup::new("bench-latency")?;
    let mut agent = Agent::start(&format!("{POLICY}{}", storm::rules(&parent, runs)))?;
    let rss_before = weight::rss_mib(agent.pid())?;
    let mut observer = Observer::start(&[("fork", "sched_process_fork")], true, &btf)?;
    let busy = Busy::start()?;
    let mut found = Found::default();
    for first in (0..runs).step_by(usize::try_from(AT_A_TIME)?) {
        tell(&format!("latency: run {} of {runs}", first + 1));
        let range = first..runs.min(first + AT_A_TIME);
        let storms = range.map(|run| Storm::new(&parent, run)).collect::<Result<Vec<_>>>()?;
        storm::await_guarded(&mut agent, &storms)?;
        for mut storm in storms {
            found.add(&mut storm, &mut agent, &mut observer)?;
        }
    }
    drop(busy);
    found.add_to(report);
    report.section("Memory of the agent (VmRSS)");
    report.add_goal("after its start", rss_before, "MiB", 12.0);
    report.add_goal("after all storms", weight::rss_mib(agent.pid())?, "MiB", 12.0);
    Ok(())
}

impl Found {
    fn add(&mut self, storm: &mut Storm, agent: &mut Agent, observer: &mut Observer) -> Result<()> {
        observer.watch(storm.cgroup.id())?;
        storm.rage(TREES)?;
        storm.await_frozen()?;
        let timing = storm::freeze_of(agent, storm.cgroup.id())?;
        // A frozen cgroup forks nothing, so every later fork happened before `frozen 1`.
        let born = observer.records().filter(|record| {
            record.kind == Kind::Fork && record.event.time_ns > timing.decided_boot_ns
        });
        self.born.push(born.count() as f64);
        self.written_us.push(timing.written_us as f64);
        self.frozen_us.push(timing.confirmed_us.context("the freeze was not confirmed")? as f64);
        Ok(())
    }

    fn add_to(&self, report: &mut Report) {
        let count = self.written_us.len();
        report.section(&format!("From the deciding record, {count} storms, every CPU busy"));
        let written = |share| quantile(&self.written_us, share) / 1000.0;
        report.add_goal("cgroup.freeze written, p50", written(0.5), "ms", 1.0);
        report.add_goal("cgroup.freeze written, p99", written(0.99), "ms", 10.0);
        report.add("cgroup.freeze written, max", written(1.0), "ms");
        for (name, share) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
            let frozen = quantile(&self.frozen_us, share) / 1000.0;
            report.add(&format!("frozen 1 read, {name}"), frozen, "ms");
        }
        for (name, share) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
            let born = quantile(&self.born, share);
            report.add(&format!("processes born until frozen, {name}"), born, "");
        }
    }
}
