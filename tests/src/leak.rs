//! A small leak in a scratch cgroup, and a policy under which detector D acts on it at once.

use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::{cgroup::FixtureCgroup, workload};

/// The package that the look-alike servers pretend to run.
pub const PACKAGE: &str = "demo-mcp";

/// A gateway with its look-alike servers. Killed and reaped on drop.
pub struct Leak {
    gateway: Child,
}

impl Leak {
    /// Starts `count` servers of [`PACKAGE`] and waits until each has its final argv: a leaf named
    /// `node`.
    pub fn start(cgroup: &FixtureCgroup, count: usize) -> Result<Self> {
        Self::of(PACKAGE, cgroup, count)
    }

    /// Like [`Leak::start`], for servers of another package.
    pub fn of(package: &str, cgroup: &FixtureCgroup, count: usize) -> Result<Self> {
        let before = leaves(cgroup)?;
        let leak = Self::begin(cgroup, package, &["--count", &count.to_string()])?;
        cgroup.wait_until("the servers are up", crate::agent::DEADLINE, || {
            leaves(cgroup).is_ok_and(|leaves| leaves == before + count)
        })?;
        Ok(leak)
    }

    /// Starts a gateway with these arguments, and does not wait for its servers.
    pub fn begin(cgroup: &FixtureCgroup, package: &str, more: &[&str]) -> Result<Self> {
        let mut command = Command::new(workload("launcher-lookalike")?);
        command.args(["leak", "--package", package]).args(more);
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        Ok(Self { gateway: cgroup.spawn(command)? })
    }

    /// Closes the gateway's stdin, which makes it end its servers, and waits until it has ended.
    pub fn end(mut self) -> Result<ExitStatus> {
        drop(self.gateway.stdin.take());
        self.gateway.wait().context("cannot wait for the gateway")
    }

    pub fn pid(&self) -> u32 {
        self.gateway.id()
    }
}

impl Drop for Leak {
    fn drop(&mut self) {
        if matches!(self.gateway.try_wait(), Ok(None)) {
            let _ = kill_process(Pid::from_child(&self.gateway), Signal::KILL);
        }
        let _ = self.gateway.wait();
    }
}

fn leaves(cgroup: &FixtureCgroup) -> Result<usize> {
    let command_lines =
        cgroup.procs()?.into_iter().map(|pid| std::fs::read(format!("/proc/{pid}/cmdline")));
    Ok(command_lines.flatten().filter(|line| line.starts_with(b"node\0")).count())
}

/// A policy that guards one cgroup: detector D warns at 2 duplicates and acts at 3.
pub struct LeakPolicy<'a> {
    pub cgroup: &'a str,
    pub mode: &'a str,
    pub response: &'a str,
    pub lease: &'a str,
    pub highest: &'a str,
}

impl<'a> LeakPolicy<'a> {
    pub fn enforcing(cgroup: &'a FixtureCgroup, response: &'a str) -> Self {
        let cgroup = cgroup.path();
        Self { cgroup, mode: "enforce", response, lease: "300s", highest: response }
    }

    pub fn toml(&self) -> String {
        let Self { cgroup, mode, response, lease, highest } = self;
        format!(
            r#"mode = "{mode}"
[detect.duplicates]
warn = 2
warn_age = "100ms"
act = 3
act_age = "200ms"
response = "{response}"
[detect.burst]
warn_10s = 1000
warn_60s = 1000
act_rate = 1000
[evidence]
every = "1s"
[respond]
freeze_lease = "{lease}"
clamp_lease = "{lease}"
[[guard]]
cgroup = "{cgroup}"
highest = "{highest}"
"#
        )
    }
}

/// Returns a policy that guards one cgroup in observe mode.
pub fn observing(cgroup: &FixtureCgroup) -> String {
    format!("[[guard]]\ncgroup = \"{}\"\n", cgroup.path())
}
