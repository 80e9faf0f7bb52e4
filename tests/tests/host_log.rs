//! A blocked audit log prevents neither containment nor the end of leases, and is complete afterwards.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]
#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "a test looks for one record and ignores the rest"
)]

use std::{fs, path::Path, process::Stdio, time::Duration};

use mcp_guard::host::process::OpenProcess;
use mcp_guard_core::{
    audit::{Line, Record},
    id::Pid,
    incident::Outcome,
    policy::Response,
};
use mcp_guard_tests::{
    agent::{Agent, DEADLINE, command},
    cgroup::FixtureCgroup,
    leak::{Leak, LeakPolicy},
    log_disk::LogDisk,
    log_server::{LogServer, LogService},
    sleeper::Sleeper,
    wait,
};

/// A policy by which detector D freezes at once, for two seconds.
fn freezing(cgroup: &FixtureCgroup) -> String {
    LeakPolicy { lease: "2s", ..LeakPolicy::enforcing(cgroup, "freeze") }.toml()
}

fn lines(log: &Path) -> Vec<Line> {
    parsed(&fs::read_to_string(log).unwrap())
}

fn parsed(log: &str) -> Vec<Line> {
    log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn has_ended(line: &Line) -> bool {
    matches!(&line.record, Record::Release { outcome: Some(Outcome::Done), .. })
}

#[test]
fn a_frozen_file_system_delays_the_log_and_nothing_else() {
    let disk = LogDisk::new().unwrap();
    let log = disk.path().join("audit.jsonl");
    let cgroup = FixtureCgroup::new("log").unwrap();
    cgroup.set_pids_max(200).unwrap();
    let audit = ["--audit", log.to_str().unwrap()];
    let mut agent = Agent::start_with(&freezing(&cgroup), "/nonexistent", &audit).unwrap();
    disk.freeze().unwrap();
    let leak = Leak::start(&cgroup, 4).unwrap();
    agent.wait_until("it is frozen", |_| cgroup.is_frozen()).unwrap();
    assert!(agent.guard(cgroup.id()).is_ok(), "status answers");
    agent.wait_until("its lease ends", |_| Ok(!cgroup.is_frozen()?)).unwrap();
    let before = lines(&log);
    assert!(!before.iter().any(has_ended), "the log hangs: {before:?}");
    disk.thaw().unwrap();
    agent.wait_until("the log is written", |_| Ok(lines(&log).iter().any(has_ended))).unwrap();
    let lines = lines(&log);
    let numbers: Vec<u64> = lines.iter().map(|line| line.seq).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "nothing is lost");
    let freezes =
        |line: &&Line| matches!(&line.record, Record::Intent { response: Response::Freeze, .. });
    let freeze = lines.iter().find(freezes).unwrap();
    assert!(freeze.late_ms.is_some_and(|late| late >= 1000), "{freeze:?}");
    assert_eq!(agent.status().unwrap().audit_lost, 0);
    assert!(leak.end().unwrap().success());
}

#[test]
fn an_agent_ends_though_its_log_hangs_and_gives_back_what_it_holds() {
    let disk = LogDisk::new().unwrap();
    let log = disk.path().join("audit.jsonl");
    let cgroup = FixtureCgroup::new("log").unwrap();
    cgroup.set_pids_max(200).unwrap();
    let policy = LeakPolicy::enforcing(&cgroup, "freeze").toml();
    let audit = ["--audit", log.to_str().unwrap()];
    let mut agent = Agent::start_with(&policy, "/nonexistent", &audit).unwrap();
    disk.freeze().unwrap();
    let leak = Leak::start(&cgroup, 4).unwrap();
    agent.wait_until("it is frozen", |_| cgroup.is_frozen()).unwrap();
    agent.signal(rustix::process::Signal::TERM).unwrap();
    cgroup
        .wait_until("it is thawed", Duration::from_secs(30), || {
            cgroup.is_frozen().is_ok_and(|frozen| !frozen)
        })
        .unwrap();
    // The writer is blocked in the kernel until then, and a process cannot end before its threads.
    disk.thaw().unwrap();
    agent.ended().unwrap();
    assert!(leak.end().unwrap().success());
}

/// The log's file system refuses writes, or its server stands still.
#[test]
fn a_log_that_takes_no_line_prevents_nothing_and_is_complete_afterwards() {
    for service in [LogService::RefusesWrites, LogService::StandsStill] {
        let server = LogServer::start().unwrap();
        let log = server.path();
        let cgroup = FixtureCgroup::new("log").unwrap();
        cgroup.set_pids_max(200).unwrap();
        let audit = ["--audit", log.to_str().unwrap()];
        let mut agent = Agent::start_with(&freezing(&cgroup), "/nonexistent", &audit).unwrap();
        server.set(service);
        let leak = Leak::start(&cgroup, 4).unwrap();
        agent.wait_until("it is frozen", |_| cgroup.is_frozen()).unwrap();
        assert!(agent.guard(cgroup.id()).is_ok(), "status answers");
        agent.wait_until("its lease ends", |_| Ok(!cgroup.is_frozen()?)).unwrap();
        assert!(!parsed(&server.log()).iter().any(has_ended), "{}", server.log());
        server.set(LogService::Answers);
        let is_written = || Ok(parsed(&server.log()).iter().any(has_ended));
        agent.wait_until("the log is written", |_| is_written()).unwrap();
        let lines = parsed(&server.log());
        let numbers: Vec<u64> = lines.iter().map(|line| line.seq).collect();
        assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "nothing is lost");
        assert_eq!(agent.status().unwrap().audit_lost, 0);
        let written = lines.iter().find_map(|line| match &line.record {
            Record::Outcome { response: Response::Freeze, timing: Some(timing), .. } => {
                Some(Duration::from_micros(timing.written_us))
            }
            _ => None,
        });
        assert!(written.is_some_and(|written| written < Duration::from_secs(1)), "{written:?}");
        assert!(leak.end().unwrap().success());
    }
}

/// Makes a server answer again at the end of a test, also if it fails.
struct Answering<'a>(&'a LogServer);

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        self.0.set(LogService::Answers);
    }
}

#[test]
fn what_a_killed_agent_held_is_given_back_though_the_log_takes_no_line() {
    for service in [LogService::RefusesWrites, LogService::StandsStill] {
        let server = LogServer::start().unwrap();
        let log = server.path();
        let audit = ["--audit", log.to_str().unwrap()];
        let cgroup = FixtureCgroup::new("log").unwrap();
        let _sleeper = Sleeper::start(&cgroup).unwrap();
        let agent = Agent::start_with("", "/nonexistent", &audit).unwrap();
        let target = format!("cgroup:{}", cgroup.path());
        assert!(agent.cli(&["freeze", "--for", "600s", &target]).unwrap().status.success());
        // An agent cannot end before its log is closed, and that waits for the server.
        let _answers = Answering(&server);
        server.set(service);
        let process = OpenProcess::open(Pid(agent.pid())).unwrap();
        agent.signal(rustix::process::Signal::KILL).unwrap();
        let ends = || Ok(process.stat()?.first_ends);
        assert!(wait::until(DEADLINE, ends).unwrap());
        assert!(cgroup.is_frozen().unwrap());
        // The last of two arguments is taken.
        let mut thaw = command(agent.folder(), "/nonexistent").unwrap();
        thaw.args(["thaw", "--owned"]).args(audit).stdout(Stdio::null()).stderr(Stdio::null());
        let mut thaw = thaw.spawn().unwrap();
        let ended = wait::until(DEADLINE, || Ok(thaw.try_wait()?.is_some())).unwrap();
        let _ = thaw.kill();
        let status = thaw.wait().unwrap();
        assert!(ended && status.success(), "{service:?}: {status}");
        assert!(!cgroup.is_frozen().unwrap());
    }
}

/// A host without room for another process has none for a thread either.
#[test]
fn a_release_needs_no_second_thread() {
    let cgroup = FixtureCgroup::new("log").unwrap();
    cgroup.set_pids_max(1).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut thaw = command(folder.path(), "/nonexistent").unwrap();
    thaw.args(["thaw", "--owned"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = cgroup.spawn(thaw).unwrap().wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(cgroup.refusals("pids.events").unwrap().is_none_or(|refused| refused > 0));
}
