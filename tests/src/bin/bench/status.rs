//! How long `status` takes with many guards and processes, and the longest turn of the agent's loop meanwhile.

use crate::numbers::quantile;
use crate::report::Report;
use crate::storm::{self, Storm};
use crate::tell;
use anyhow::Result;
use mcp_guard::control::client;
use mcp_guard::control::wire::GetServers;
use mcp_guard_tests::agent::Agent;
use mcp_guard_tests::cgroup::FixtureCgroup;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const GUARDS: u64 = 1000;
/// Processes in each guard.
const PROCESSES: u64 = 20;
const CALLS: usize = 9;
/// Longer than the loop remembers its longest turn.
const FORGETS: Duration = Duration::from_secs(125);

/// Killed and reaped on drop. Its children are killed with its cgroup.
struct Parent(Child);

impl Drop for Parent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn measure(report: &mut Report) -> Result<()> {
    tell(&format!("status of {GUARDS} guards with {PROCESSES} processes each"));
    let parent = FixtureCgroup::new("bench-status")?;
    let rules = format!("[evidence]\nevery = \"5s\"\n{}", storm::rules(&parent, GUARDS));
    let storms = (0..GUARDS).map(|run| Storm::new(&parent, run)).collect::<Result<Vec<_>>>()?;
    let parents = storms.iter().map(start).collect::<Result<Vec<_>>>()?;
    let mut agent = Agent::start(&rules)?;
    let socket = agent.socket();
    agent.wait_until("all processes are known", |_| {
        let status = client::status(&socket)?;
        let known: usize = status.guards.iter().map(|one| one.guard.processes).sum();
        Ok(u64::try_from(known)? >= GUARDS * PROCESSES)
    })?;
    // The first turns find all guards, and are no sign of trouble.
    std::thread::sleep(FORGETS);
    let [mut status, mut servers] = [Vec::new(), Vec::new()];
    for _ in 0..CALLS {
        let began = Instant::now();
        client::status(&socket)?;
        status.push(began.elapsed().as_secs_f64() * 1e3);
        let began = Instant::now();
        client::call(&socket, &GetServers { cgroup_id: None, identity: None })?;
        servers.push(began.elapsed().as_secs_f64() * 1e3);
    }
    let longest = client::status(&socket)?.longest_turn_us;
    report.section(&format!("{GUARDS} guards with {PROCESSES} processes each"));
    report.add_goal("status, median of the calls", quantile(&status, 0.5), "ms", 100.0);
    report.add("status --servers, median", quantile(&servers, 0.5), "ms");
    report.add_goal("longest turn of the loop", longest as f64 / 1e3, "ms", 100.0);
    drop(parents);
    Ok(())
}

fn start(storm: &Storm) -> Result<Parent> {
    let script = format!(
        "i=1; while [ $i -lt {PROCESSES} ]; do sleep 3600 & i=$((i+1)); done; exec sleep 3600"
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script]).stdin(Stdio::null()).stdout(Stdio::null());
    Ok(Parent(storm.cgroup.spawn(command)?))
}
