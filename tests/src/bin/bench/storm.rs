//! A leaking gateway in its own cgroup. The cgroup is below one that the whole bench shares, so that
//! the policy can name it before it exists.

use anyhow::{Context, Result};
use mcp_guard_core::audit::{Record, Timing};
use mcp_guard_core::policy::Response;
use mcp_guard_tests::agent::Agent;
use mcp_guard_tests::cgroup::FixtureCgroup;
use mcp_guard_tests::workload;
use std::fmt::Write as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long a freeze may take. It takes milliseconds; a slow machine needs longer.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Storm {
    /// Declared before the gateway, so that it is thawed and emptied before the gateway is reaped.
    pub cgroup: FixtureCgroup,
    gateway: Option<Gateway>,
}

struct Gateway(Child);

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Storm {
    pub fn new(parent: &FixtureCgroup, run: u64) -> Result<Self> {
        Ok(Self { cgroup: parent.child(&name(run))?, gateway: None })
    }

    /// Starts a gateway that starts `trees` launchers one after another, as fast as it can.
    pub fn rage(&mut self, trees: u64) -> Result<()> {
        let mut command = Command::new(workload("launcher-lookalike")?);
        command.args(["leak", "--package", "@bench/storm@1.0.0", "--count", &trees.to_string()]);
        // The pipe stays open: EOF would end the gateway.
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        self.gateway = Some(Gateway(self.cgroup.spawn(command)?));
        Ok(())
    }

    pub fn await_frozen(&self) -> Result<()> {
        self.cgroup.wait_until("frozen", PATIENCE, || self.cgroup.is_frozen().unwrap_or(false))
    }
}

/// Returns the guard rules for all runs.
pub fn rules(parent: &FixtureCgroup, runs: u64) -> String {
    (0..runs).fold(String::new(), |mut rules, run| {
        let path = format!("{}/{}", parent.path(), name(run));
        let _ = writeln!(rules, "[[guard]]\ncgroup = \"{path}\"\nhighest = \"freeze\"");
        rules
    })
}

fn name(run: u64) -> String {
    format!("run-{run}")
}

/// Waits until the agent guards the cgroups of all storms.
pub fn await_guarded(agent: &mut Agent, storms: &[Storm]) -> Result<()> {
    agent.wait_until("the cgroups are guarded", |agent| {
        let audit = agent.audit()?;
        let guarded = |id| {
            let is = |record: &Record| matches!(record, Record::GuardStart { guard, .. } if guard.cgroup_id.0 == id);
            audit.iter().any(is)
        };
        Ok(storms.iter().all(|storm| guarded(storm.cgroup.id())))
    })
}

/// Returns the timing of a cgroup's freeze, from the agent's audit.
pub fn freeze_of(agent: &mut Agent, cgroup: u64) -> Result<Timing> {
    let timing = agent.await_record("the outcome of the freeze", |record| {
        let Record::Outcome { guard, response: Response::Freeze, timing, .. } = record else {
            return None;
        };
        (guard.cgroup_id.0 == cgroup).then_some(*timing)
    })?;
    timing.context("the outcome has no timing: nothing was written")
}
