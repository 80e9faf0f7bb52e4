//! The load under which programs are measured: one worker that forks or execs one after another.

use anyhow::{Context, Result, ensure};
use mcp_guard_tests::cgroup::FixtureCgroup;
use mcp_guard_tests::workload;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

/// Processes created per reading. They take about a third of a second, short enough to alternate
/// between programs.
pub const BIRTHS: u64 = 2000;

/// Starts the load in the cgroup. It ends without being stopped.
///
/// `launchers` is a storm of launchers that each exec a server. Any other `case` is one of
/// `spawn-workload`.
pub fn start(case: &str, cgroup: &FixtureCgroup) -> Result<Child> {
    let births = BIRTHS.to_string();
    let (program, words) = match case {
        "launchers" => (
            "launcher-lookalike",
            ["leak", "--package", "@bench/load", "--count", "1000", "--crash", "--for", "1"]
                .to_vec(),
        ),
        case => ("spawn-workload", ["--case", case, "--seconds", "30", "--max", &births].to_vec()),
    };
    let mut command = Command::new(workload(program)?);
    // A pipe to which nothing is written: EOF would end the storm.
    command.args(words).stdin(Stdio::piped()).stdout(Stdio::null());
    cgroup.spawn(command)
}

pub fn finish(mut child: Child) -> Result<()> {
    // `wait()` alone would close the pipe first.
    while child.try_wait().context("cannot wait for the load")?.is_none() {
        thread::sleep(Duration::from_millis(5));
    }
    let status = child.wait().context("cannot wait for the load")?;
    ensure!(status.success(), "the load ended with {status}");
    Ok(())
}
