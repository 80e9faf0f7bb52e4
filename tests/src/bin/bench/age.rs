//! Responses that are due because time passes: the time from the deadline, when the fifth tree
//! reaches its age, to the write.

use crate::busy::Busy;
use crate::numbers::quantile;
use crate::observer::Observer;
use crate::report::Report;
use crate::storm::{self, Storm};
use crate::tell;
use anyhow::{Context, Result};
use aya::Btf;
use mcp_guard_common::Kind;
use mcp_guard_tests::agent::Agent;
use mcp_guard_tests::cgroup::FixtureCgroup;
use std::time::Duration;

const TREES: usize = 5;
const AGE: Duration = Duration::from_secs(1);

/// Only detector D acts, at five trees that are one second old.
const POLICY: &str = r#"
mode = "enforce"
[detect.duplicates]
warn = 5
warn_age = "1s"
act = 5
act_age = "1s"
response = "freeze"
[detect.burst]
warn_10s = 100000
warn_60s = 100000
survivors = 100000
act_rate = 100000
[detect.emergency]
warn = 100000
act = 100000
"#;

pub fn measure(runs: u64, report: &mut Report) -> Result<()> {
    tell(&format!("age: {runs} runs"));
    let btf = Btf::from_sys_fs().context("cannot read the kernel's BTF")?;
    let parent = FixtureCgroup::new("bench-age")?;
    let mut agent = Agent::start(&format!("{POLICY}{}", storm::rules(&parent, runs)))?;
    let mut observer = Observer::start(&[("exec", "sched_process_exec")], true, &btf)?;
    let storms = (0..runs).map(|run| Storm::new(&parent, run)).collect::<Result<Vec<_>>>()?;
    storm::await_guarded(&mut agent, &storms)?;
    let busy = Busy::start()?;
    let mut late_ms = Vec::new();
    for storm in storms {
        late_ms.push(lateness(storm, &mut agent, &mut observer)?.as_secs_f64() * 1000.0);
    }
    drop(busy);
    report.section(&format!("From the deadline of an action by age, {runs} runs, every CPU busy"));
    for (name, share) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
        report.add(&format!("cgroup.freeze written, {name}"), quantile(&late_ms, share), "ms");
    }
    Ok(())
}

fn lateness(mut storm: Storm, agent: &mut Agent, observer: &mut Observer) -> Result<Duration> {
    observer.watch(storm.cgroup.id())?;
    storm.rage(TREES as u64)?;
    storm.await_frozen()?;
    let timing = storm::freeze_of(agent, storm.cgroup.id())?;
    let written =
        Duration::from_nanos(timing.decided_boot_ns) + Duration::from_micros(timing.written_us);
    // Taken from the observer's own record of the start, so that the agent's deadline is tested too.
    let launchers = observer
        .records()
        .filter(|record| record.kind == Kind::Exec && record.argv.starts_with(b"npm\0exec\0"));
    let last = launchers.map(|record| record.event.time_ns).nth(TREES - 1);
    let deadline = Duration::from_nanos(last.context("fewer trees started than requested")?) + AGE;
    written.checked_sub(deadline).context("the agent acted before the deadline")
}
