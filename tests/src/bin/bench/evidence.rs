//! A look at a server: the CPU time of the thread that looks.

use crate::numbers::quantile;
use crate::report::Report;
use crate::tell;
use anyhow::{Context, Result};
use mcp_guard::host::evidence::{self, Freezers};
use mcp_guard::host::layout::Layout;
use mcp_guard::host::process::OpenProcess;
use mcp_guard_core::evidence::Contact;
use mcp_guard_core::id::Pid;
use mcp_guard_core::registry::{Member, ToLookAt, TreeId};
use rustix::time::{ClockId, clock_gettime};
use std::process::{Child, Command, Stdio};

const SERVERS: u32 = 200;
const ROUNDS: usize = 9;

/// Servers of one process each. Killed and reaped on drop.
struct Servers(Vec<Child>);

impl Drop for Servers {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub fn measure(report: &mut Report) -> Result<()> {
    tell(&format!("looks at {SERVERS} servers"));
    let mut servers = Servers(Vec::new());
    for _ in 0..SERVERS {
        let mut command = Command::new("sleep");
        command.arg("600").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        servers.0.push(command.spawn().context("sleep")?);
    }
    report.section(&format!("a look at each of {SERVERS} servers, {ROUNDS} rounds, CPU time"));
    let looked = servers.0.iter().zip(1..).map(|(child, number)| to_look_at(child.id(), number));
    let mut looked = looked.collect::<Result<Vec<_>>>()?;
    report.add_goal("connected", rounds(&looked, Contact::Connected)?, "us", 500.0);
    let freezers = Freezers::of(&Layout::read()?);
    for server in &mut looked {
        server.activity = evidence::survey(server, &freezers).activity;
    }
    report.add_goal("connected, idle", rounds(&looked, Contact::Connected)?, "us", 1000.0);
    for child in &mut servers.0 {
        drop((child.stdin.take(), child.stdout.take()));
    }
    report.add_goal("disconnected", rounds(&looked, Contact::Disconnected)?, "us", 1000.0);
    Ok(())
}

fn to_look_at(pid: u32, number: u64) -> Result<ToLookAt> {
    let pid = Pid(pid);
    let (_, stdio) = evidence::stdio(pid)?;
    let start_ticks = OpenProcess::open(pid)?.start_ticks()?;
    let members = vec![Member { pid, start_ticks, is_launcher: false }];
    Ok(ToLookAt { server: TreeId(number), stdio, activity: None, members })
}

/// Returns the median round, in microseconds a server.
fn rounds(servers: &[ToLookAt], expected: Contact) -> Result<f64> {
    let freezers = Freezers::of(&Layout::read()?);
    let mut took = Vec::new();
    for _ in 0..ROUNDS {
        let began = cpu_time();
        for server in servers {
            let found = evidence::survey(server, &freezers).contact;
            anyhow::ensure!(found == expected, "{found} instead of {expected}");
        }
        took.push((cpu_time() - began) * 1e6 / f64::from(SERVERS));
    }
    Ok(quantile(&took, 0.5))
}

fn cpu_time() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
