//! The load under which programs are measured: forks or execs one after another, by one worker.

use anyhow::{Context, Result, ensure};
use mcp_guard_tests::cgroup::FixtureCgroup;
use mcp_guard_tests::workload;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

/// Births per reading: a third of a second or so, short enough to alternate.
pub const BIRTHS: u64 = 2000;

/// Starts the load inside the cgroup; it ends by itself. `launchers` is a storm of launchers that
/// each exec a server, all else a case of `spawn-workload`.
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
    // A pipe that nobody writes to: its end would end the storm.
    command.args(words).stdin(Stdio::piped()).stdout(Stdio::null());
    cgroup.spawn(command)
}

pub fn finish(mut child: Child) -> Result<()> {
    // Not `wait()` alone, which closes the pipe first.
    while child.try_wait().context("the load")?.is_none() {
        thread::sleep(Duration::from_millis(5));
    }
    let status = child.wait().context("the load")?;
    ensure!(status.success(), "the load ended with {status}");
    Ok(())
}
