//! What the agent takes of the machine while nothing happens.

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
/// Launcher trees in each guard: fewer than any detector minds.
const TREES: u64 = 4;
const IDLE: Duration = Duration::from_secs(20);
/// What the start left to do is done by then.
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

/// Nanoseconds on a CPU of all threads: clock ticks of 10 ms would be half of what is allowed.
fn cpu_time(pid: u32) -> Result<Duration> {
    let mut sum = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(thread?.path().join("schedstat")).context("schedstat")?;
        let first = text.split(' ').next().context("schedstat is empty")?;
        sum += first.parse::<u64>().with_context(|| format!("schedstat: {text}"))?;
    }
    Ok(Duration::from_nanos(sum))
}

pub fn rss_mib(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).context("status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().context("VmRSS")?;
    Ok(kib / 1024.0)
}
