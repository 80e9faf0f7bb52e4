//! The search for the clients of servers, on a host with many processes.

use crate::numbers::median;
use crate::report::Report;
use crate::tell;
use anyhow::{Context, Result, ensure};
use mcp_guard::host::evidence::{self, GuardSearch, SEARCH, holders};
use mcp_guard::host::process::OpenProcess;
use mcp_guard_core::evidence::{Channel, StdioAtExec};
use mcp_guard_core::id::{Pid, Started};
use mcp_guard_core::registry::{FarEnd, SoughtClient};
use mcp_guard_tests::cgroup::FixtureCgroup;
use mcp_guard_tests::wait;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PROCESSES: usize = 20_000;
/// The shells that fork them.
const CROWDS: usize = 100;
/// Servers, each with a client of its own.
const SERVERS: usize = 200;
const ROUNDS: usize = 9;
/// Enough to go through all processes, however slow the machine is.
const ENOUGH: Duration = Duration::from_secs(60);
const DEADLINE: Duration = Duration::from_secs(300);

/// Programs that are killed and reaped on drop.
struct Programs(Vec<Child>);

impl Drop for Programs {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
        }
        for child in &mut self.0 {
            let _ = child.wait();
        }
    }
}

/// A server, and the process that writes to it.
struct Pair {
    server: Channel,
    client: Started,
}

pub fn measure(report: &mut Report) -> Result<()> {
    tell(&format!("clients of {SERVERS} servers among {PROCESSES} processes"));
    let crowd = FixtureCgroup::new("bench-clients")?;
    let mut programs = Programs(Vec::new());
    for _ in 0..CROWDS {
        programs.0.push(fork(&crowd, PROCESSES / CROWDS)?);
    }
    let is_there = wait::until(DEADLINE, || Ok(crowd.procs()?.len() >= PROCESSES))?;
    ensure!(is_there, "{} of {PROCESSES} processes", crowd.procs()?.len());
    // Their clients are the youngest processes, and so the last that are compared.
    let pairs = (0..SERVERS).map(|_| pair(&mut programs)).collect::<Result<Vec<_>>>()?;
    let sought = |end: Channel, starter| SoughtClient {
        holds: Some(FarEnd::WritesTo(end)),
        members: Vec::new(),
        starter,
    };
    let all = |starts: bool| {
        let one = |pair: &Pair| sought(pair.server, starts.then_some(pair.client));
        pairs.iter().map(one).collect::<Vec<_>>()
    };
    let nowhere = vec![sought(Channel::Pipe(u64::MAX), None)];
    let outside = GuardSearch { servers: Vec::new(), processes: Vec::new() };
    let processes = crowd.procs()?.into_iter().filter_map(|pid| Some(Pid(pid.try_into().ok()?)));
    let guarded = GuardSearch { servers: Vec::new(), processes: processes.collect() };
    report.section(&format!(
        "the clients of {SERVERS} servers, {PROCESSES} processes, {ROUNDS} rounds, time of the search"
    ));
    for (name, servers, others, found) in [
        ("they started the servers", all(true), &outside, SERVERS),
        ("others started the servers", all(false), &outside, SERVERS),
        ("the same, all other processes in a guard", all(false), &guarded, SERVERS),
        ("one that is not found", nowhere, &outside, 0),
    ] {
        let guard = GuardSearch { servers, processes: Vec::new() };
        let took = rounds(&[guard, others.clone()], found)?;
        report.add_goal(&format!("{name}, median"), took, "ms", SEARCH.as_secs_f64() * 1e3);
    }
    Ok(())
}

/// Returns the median round, in milliseconds.
fn rounds(guards: &[GuardSearch], expected: usize) -> Result<f64> {
    let mut took = Vec::new();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let found = holders(guards, ENOUGH);
        took.push(began.elapsed().as_secs_f64() * 1e3);
        let found = found.iter().flatten().flatten().count();
        ensure!(found == expected, "{found} of {expected} clients were found");
    }
    Ok(median(&took))
}

/// Starts a shell with so many processes, itself included, that wait until it is killed. They are forked only, because
/// execs take long.
fn fork(cgroup: &FixtureCgroup, count: usize) -> Result<Child> {
    let script = format!(
        "exec 3<&0; i=1; while [ $i -lt {count} ]; do read x <&3 & i=$((i+1)); done; read x <&3"
    );
    let mut shell = Command::new("bash");
    shell.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::null());
    cgroup.spawn(shell)
}

fn pair(programs: &mut Programs) -> Result<Pair> {
    let mut server = Command::new("cat");
    server.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut server = server.spawn().context("cat")?;
    let stdin = server.stdin.take().context("it has a stdin")?;
    let mut client = Command::new("sleep");
    client.arg("3600").stdin(Stdio::null()).stdout(stdin);
    let client = client.spawn().context("sleep")?;
    let (server_pid, pid) = (Pid(server.id()), Pid(client.id()));
    programs.0.extend([server, client]);
    let (_, StdioAtExec::Are(channels)) = evidence::stdio(server_pid)? else {
        anyhow::bail!("the stdio of process {server_pid} is no pipe");
    };
    Ok(Pair { server: channels.stdin, client: (pid, OpenProcess::open(pid)?.start_ticks()?) })
}
