//! The CPU time and memory of an idle agent.

use crate::report::Report;
use crate::storm::{self, Storm};
use crate::tell;
use anyhow::{Context, Result};
use mcp_guard_tests::agent::Agent;
use mcp_guard_tests::cgroup::FixtureCgroup;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

const GUARDS: u64 = 8;
/// Launcher trees in each guard: fewer than any detector reports.
const TREES: u64 = 4;
const IDLE: Duration = Duration::from_secs(20);
/// How long the agent takes to finish its start.
const SETTLE: Duration = Duration::from_secs(3);

pub fn measure(report: &mut Report) -> Result<()> {
    tell(&format!("idle CPU: {} s", IDLE.as_secs()));
    let parent = FixtureCgroup::new("bench-idle")?;
    let mut agent = Agent::start(&storm::rules(&parent, GUARDS))?;
    let mut storms = (0..GUARDS).map(|run| Storm::new(&parent, run)).collect::<Result<Vec<_>>>()?;
    storm::await_guarded(&mut agent, &storms)?;
    for storm in &mut storms {
        storm.rage(TREES)?;
    }
    thread::sleep(SETTLE);
    let (began, before) = (Instant::now(), cpu_time(agent.pid())?);
    thread::sleep(IDLE);
    let used = cpu_time(agent.pid())?.saturating_sub(before);
    let percent = 100.0 * used.as_secs_f64() / began.elapsed().as_secs_f64();
    report.section(&format!("Idle: {GUARDS} guards with {TREES} live servers each"));
    report.add_goal("CPU of the agent, of one CPU", percent, "%", 0.2);
    report.add_goal("memory of the agent (VmRSS)", rss_mib(agent.pid())?, "MiB", 12.0);
    Ok(())
}

/// Returns the CPU time of all threads, in nanoseconds: clock ticks of 10 ms are too coarse for the
/// goal.
fn cpu_time(pid: u32) -> Result<Duration> {
    let mut sum = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(thread?.path().join("schedstat"));
        let text = text.context("cannot read schedstat")?;
        let first = text.split(' ').next().context("schedstat is empty")?;
        sum += first.parse::<u64>().with_context(|| format!("schedstat: {text}"))?;
    }
    Ok(Duration::from_nanos(sum))
}

pub fn rss_mib(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"));
    let text = text.context("cannot read the status of the agent")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("the status has no VmRSS")?;
    let kib: Result<f64, _> = line.trim().trim_end_matches(" kB").parse();
    let kib = kib.context("VmRSS is not a number")?;
    Ok(kib / 1024.0)
}
