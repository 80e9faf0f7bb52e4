//! The load under which programs are measured: forks or execs one after another, by one worker.

use anyhow::{Context, Result, ensure};
use mcp_guard_tests::cgroup::FixtureCgroup;
use mcp_guard_tests::workload;
use std::process::{Child, Command, Stdio};

/// Births per reading: a third of a second or so, short enough to alternate.
pub const BIRTHS: u64 = 2000;

/// Starts `spawn-workload` inside the cgroup; it ends by itself.
pub fn start(case: &str, cgroup: &FixtureCgroup) -> Result<Child> {
    let mut command = Command::new(workload("spawn-workload")?);
    command.args(["--case", case, "--seconds", "30", "--max", &BIRTHS.to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    cgroup.spawn(command)
}

pub fn finish(mut child: Child) -> Result<()> {
    let status = child.wait().context("spawn-workload")?;
    ensure!(status.success(), "spawn-workload ended with {status}");
    Ok(())
}
