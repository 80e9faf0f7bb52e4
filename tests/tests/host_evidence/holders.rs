//! The search for the processes at the other ends of servers' stdio.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use mcp_guard::host::{
    evidence::{GuardSearch, SEARCH, holders},
    process::OpenProcess,
};
use mcp_guard_core::{
    evidence::Channel,
    id::{Pid, Started, Ticks},
    registry::{FarEnd, SoughtClient},
};
use mcp_guard_tests::{agent::DEADLINE, wait};

use crate::server::Server;

fn started(pid: Pid) -> Started {
    (pid, OpenProcess::open(pid).and_then(|process| process.start_ticks()).unwrap())
}

fn sought(holds: FarEnd, starter: Option<Started>) -> SoughtClient {
    SoughtClient { holds: Some(holds), members: Vec::new(), starter }
}

/// A server, and a process that holds the other end of its stdin and has not started it.
struct Held {
    server: Server,
    worker: Server,
}

impl Held {
    fn new() -> Self {
        let mut server = Server::start(&["cat"]);
        let stdin = server.stdin.take().unwrap();
        let mut worker = Command::new("sleep");
        worker.arg("600").stdin(Stdio::piped()).stdout(stdin).stderr(Stdio::null());
        Self { server, worker: Server::spawn(worker) }
    }

    fn search(&self) -> GuardSearch {
        let end = FarEnd::WritesTo(self.server.channels().stdin);
        GuardSearch { servers: vec![sought(end, None)], processes: vec![self.worker.pid()] }
    }
}

/// A process with four thousand open descriptors.
fn with_many_descriptors() -> Server {
    let script = "open(\\$all[\\$_], '<', '/dev/null') or die for (1 .. 4000); \
        \\$| = 1; print qq(ready\\n); <STDIN>";
    Server::start(&["sh", "-c", &format!("ulimit -n 4096 && exec perl -e \"{script}\"")])
        .once_ready()
}

/// Each of its processes has started servers whose clients are nowhere.
#[test]
fn a_guard_with_many_descriptors_uses_up_its_own_time_only() {
    let processes: Vec<Server> = (0..32).map(|_| with_many_descriptors()).collect();
    let nowhere = FarEnd::WritesTo(Channel::Pipe(u64::MAX));
    let starters = processes.iter().map(|one| started(one.pid()));
    let hostile = GuardSearch {
        servers: starters.map(|starter| sought(nowhere, Some(starter))).collect(),
        processes: processes.iter().map(Server::pid).collect(),
    };
    let began = Instant::now();
    assert_eq!(holders(std::slice::from_ref(&hostile), 10 * SEARCH), [vec![None; 32]]);
    // Not enough for the first guard.
    let time = began.elapsed() / 4;
    let held = Held::new();
    let guards = [hostile, held.search()];
    // On a busy host, the search may not run for most of its time.
    let mut found = Vec::new();
    let reached = wait::until(DEADLINE, || {
        found = holders(&guards, time).remove(1);
        Ok(found == [Some(started(held.worker.pid()))])
    });
    assert!(reached.unwrap(), "{found:?} within {time:?}");
}

/// A process of the server itself is no client, and is known by its start time.
#[test]
fn a_holder_is_told_from_a_member_that_had_its_pid() {
    let held = Held::new();
    let mut guard = held.search();
    let (pid, start) = started(held.worker.pid());
    let found = |guard: &GuardSearch| {
        holders(std::slice::from_ref(guard), Duration::from_secs(60)).remove(0).remove(0)
    };
    assert_eq!(found(&guard), Some((pid, start)));
    guard.servers[0].members = vec![(pid, Ticks(start.0 - 1))];
    assert_eq!(found(&guard), Some((pid, start)));
    guard.servers[0].members = vec![(pid, start)];
    assert_eq!(found(&guard), None);
}
