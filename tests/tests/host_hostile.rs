//! What a container may do to blind the agent: a process hangs in the kernel with its memory locked, or
//! cgroups use up the map of members. Neither holds up or hides anybody else.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]

use std::{
    fs,
    process::{Output, Stdio},
    thread,
    time::Duration,
};

use mcp_guard_common::MAX_CGROUPS;
use mcp_guard_core::{audit::Record, id::Pid};
use mcp_guard_tests::{
    agent::{Agent, command},
    cgroup::FixtureCgroup,
    dead_mount::DeadMount,
    leak::{Leak, PACKAGE, observing},
    sleeper::Sleeper,
    wait,
};
use serde_json::json;

/// What `mcp-guard` says, which must not take for ever.
fn said(agent: &Agent, arguments: &[&str]) -> Output {
    let mut command = command(agent.folder(), "/nonexistent").unwrap();
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let ended = wait::until(Duration::from_secs(30), || Ok(child.try_wait()?.is_some())).unwrap();
    if !ended {
        child.kill().unwrap();
    }
    let output = child.wait_with_output().unwrap();
    assert!(ended, "{arguments:?} hangs: {output:?}");
    output
}

#[test]
fn the_others_in_its_cgroup_are_recognised_and_diagnosed() {
    let cgroup = FixtureCgroup::new("hang").unwrap();
    cgroup.set_pids_max(200).unwrap();
    let leak = Leak::start(&cgroup, 4).unwrap();
    let dead = DeadMount::mapped_in(&cgroup).unwrap();
    let agent = Agent::start(&observing(&cgroup)).unwrap();
    let guard = agent.guard(cgroup.id()).unwrap().guard;
    assert!(guard.pids.contains(&Pid(dead.pid())), "it is counted: {:?}", guard.pids);
    assert_eq!(guard.identities[PACKAGE].live, 4);
    let diagnosis = said(&agent, &["diagnose", &format!("cgroup:{}", cgroup.path()), "--json"]);
    assert!(matches!(diagnosis.status.code(), Some(0 | 1)), "{diagnosis:?}");
    let warning = String::from_utf8(diagnosis.stderr).unwrap();
    assert!(warning.contains("command line cannot be read"), "{warning}");
    // Who comes later is looked at by another thread, and nobody waits for the one that hangs.
    let sleeper = Sleeper::start(&cgroup).unwrap();
    assert!(agent.guard(cgroup.id()).unwrap().guard.pids.contains(&Pid(sleeper.pid())));
    let log = agent.log();
    let told = log.lines().filter(|line| line.contains("command line cannot be read"));
    let of_it = format!("pid={}", dead.pid());
    assert_eq!(told.filter(|line| line.contains(&of_it)).count(), 1, "{log}");
    assert!(leak.end().unwrap().success());
}

/// It cannot be frozen, and while that is waited for another asks.
#[test]
fn each_request_gets_its_own_answer() {
    let cgroup = FixtureCgroup::new("hang").unwrap();
    cgroup.set_pids_max(200).unwrap();
    let _dead = DeadMount::mapped_in(&cgroup).unwrap();
    let mut agent = Agent::start(&observing(&cgroup)).unwrap();
    let target = format!("cgroup:{}", cgroup.path());
    let mut first = command(agent.folder(), "/nonexistent").unwrap();
    first.args(["freeze", &target]).stdout(Stdio::piped());
    let first = thread::spawn(move || first.output().unwrap());
    let begun = |record: &Record| matches!(record, Record::Intent { .. }).then_some(());
    agent.await_record("the first freeze", begun).unwrap();
    // Within the two seconds of the first, so by no program that has to start.
    let place = json!({ "cgroup": cgroup.path(), "cgroup_id": cgroup.id(), "name": "it",
        "paused": false, "lease_ms": 60_000, "dry_run": false });
    let second = agent.call("io.mcpguard.Freeze", &place).unwrap().to_string();
    let first = String::from_utf8(first.join().unwrap().stdout).unwrap();
    assert!(first.contains("frozen 1 not seen within 2s"), "{first}");
    assert!(second.contains("already frozen by mcp-guard"), "{second}");
}

#[test]
fn cgroups_without_room_in_the_map_hide_no_server() {
    let [greedy, other, above] =
        ["greedy", "other", "above"].map(|what| FixtureCgroup::new(what).unwrap());
    let rule = |path: &str| format!("[[guard]]\ncgroup = \"{path}\"\n");
    let policy =
        [greedy.path(), other.path(), &format!("{}/later", above.path())].map(rule).concat();
    let mut agent = Agent::start(&policy).unwrap();
    for number in 0..MAX_CGROUPS {
        fs::create_dir(greedy.unified_dir().join(format!("c{number}"))).unwrap();
    }
    // Below a guard, and one that is to be guarded.
    let inside = other.child("inside").unwrap();
    let later = above.child("later").unwrap();
    let leaks = [&inside, &later].map(|cgroup| Leak::start(cgroup, 4).unwrap());
    for guard in [other.id(), later.id()] {
        let is_seen = |agent: &mut Agent| {
            let servers = agent.guard(guard).map(|one| one.guard.identities);
            Ok(servers.is_ok_and(|all| all.get(PACKAGE).is_some_and(|one| one.live == 4)))
        };
        agent.wait_until("its servers are recognised", is_seen).unwrap();
    }
    assert!(agent.status().unwrap().losses["cgroups-full"] > 0);
    assert!(leaks.into_iter().all(|leak| leak.end().unwrap().success()));
}
