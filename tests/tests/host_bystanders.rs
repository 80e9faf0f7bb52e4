//! The agent and bystanders: refused in the core, refused again in the executor on facts read anew,
//! and never misled by a path that was made again.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]
#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "a test looks for one record and steps over the rest"
)]

use std::fs;

use mcp_guard_core::{audit::Record, id::Pid, incident::Outcome};
use mcp_guard_tests::{
    agent::Agent,
    cgroup::FixtureCgroup,
    holds::Holds,
    leak::{Leak, LeakPolicy, observing},
    sleeper::Sleeper,
};
use serde_json::{Value, json};

const FOUND: u64 = 200;

fn cgroup(what: &str) -> FixtureCgroup {
    let cgroup = FixtureCgroup::new(what).unwrap();
    cgroup.set_pids_max(FOUND).unwrap();
    cgroup
}

/// How the first action in the log ended, and what was said.
fn first_outcome(agent: &mut Agent) -> (Outcome, String) {
    let outcome = |record: &Record| match record {
        Record::Outcome { outcome, detail, .. } => Some((*outcome, detail.clone())),
        _ => None,
    };
    agent.await_record("a decision", outcome).unwrap()
}

#[test]
fn a_detector_is_refused_in_the_core() {
    for response in ["clamp", "freeze", "kill"] {
        let guarded = cgroup("core");
        let _session = guarded.child("session-1.scope").unwrap();
        let leak = Leak::start(&guarded, 4).unwrap();
        let mut agent = Agent::start(&LeakPolicy::enforcing(&guarded, response).toml()).unwrap();
        let (outcome, said) = first_outcome(&mut agent);
        assert_eq!(outcome, Outcome::Refused, "{said}");
        assert!(said.contains("session-1.scope"), "{said}");
        let looked = agent.audit().unwrap().into_iter().find_map(|record| match record {
            Record::Intent { processes, .. } => Some(processes.is_some()),
            _ => None,
        });
        assert_eq!(looked, Some(false), "the executor was not asked to look at the cgroup");
        let status = agent.guard(guarded.id()).unwrap().guard;
        assert!(status.refused.unwrap().contains("session-1.scope"));
        let shown = String::from_utf8(agent.cli(&["status"]).unwrap().stdout).unwrap();
        assert!(shown.contains("never acted upon: session-1.scope"), "{shown}");
        let told = agent.audit().unwrap().into_iter().find_map(|record| match record {
            Record::GuardStart { refused, .. } => refused,
            _ => None,
        });
        assert!(told.unwrap().contains("session-1.scope"), "said when the guard begins");
        assert_eq!(Holds::of(&guarded).unwrap(), Holds::nothing(FOUND));
        assert!(leak.end().unwrap().success(), "nobody was killed");
    }
}

/// The core knew nothing of the engine that came in later; the executor looks again.
#[test]
fn facts_that_change_are_refused_in_the_executor() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("dockerd");
    fs::copy("/bin/sleep", &program).unwrap();
    for response in ["clamp", "freeze", "kill"] {
        let guarded = cgroup("executor");
        let two = Leak::start(&guarded, 2).unwrap();
        let mut agent = Agent::start(&LeakPolicy::enforcing(&guarded, response).toml()).unwrap();
        let engine = Sleeper::start_as(&guarded, &program).unwrap();
        let four = Leak::start(&guarded, 4).unwrap();
        let (outcome, said) = first_outcome(&mut agent);
        assert_eq!(outcome, Outcome::Refused, "{said}");
        let expected = format!("process {} (dockerd)", engine.pid());
        assert!(said.contains(&expected), "{said}");
        assert_eq!(agent.guard(guarded.id()).unwrap().guard.refused, None, "not the core's");
        assert_eq!(Holds::of(&guarded).unwrap(), Holds::nothing(FOUND));
        assert!(two.end().unwrap().success() && four.end().unwrap().success());
    }
}

fn place(old: &FixtureCgroup) -> Value {
    json!({ "cgroup": old.path(), "cgroup_id": old.id(), "name": "x", "lease_ms": 5000 })
}

#[test]
fn a_path_that_was_made_again_is_another_cgroup() {
    let above = cgroup("again");
    let old = above.child("place").unwrap();
    let first = Sleeper::start(&old).unwrap();
    let mut agent = Agent::start(&observing(&old)).unwrap();
    let (old_id, request) = (old.id(), place(&old));
    agent.guard(old_id).unwrap();
    drop(old);
    drop(first);
    let new = above.child("place").unwrap();
    assert_ne!(new.id(), old_id);
    let mut second = Sleeper::start(&new).unwrap();

    let assert_missed = |agent: &Agent| {
        for method in ["Freeze", "Kill"] {
            let reply = agent.call(&format!("io.mcpguard.{method}"), &request).unwrap();
            let text = reply.to_string();
            assert!(text.contains("was replaced"), "{method}: {text}");
            assert_ne!(reply["parameters"]["outcome"], "done", "{method}: {text}");
        }
        assert_eq!(new.read("cgroup.freeze").unwrap().trim(), "0");
    };
    // Through the handle that is still held, and again when the agent has noticed.
    assert_missed(&agent);
    let new_id = new.id();
    agent.wait_until("the new one is guarded", |agent| Ok(agent.guard(new_id).is_ok())).unwrap();
    assert!(agent.guard(old_id).is_err(), "the old one is forgotten");
    assert_missed(&agent);
    assert!(second.lives().unwrap(), "nobody was killed");

    let guards = |record: &Record| match record {
        Record::GuardStart { guard, .. } => Some((true, guard.cgroup_id.0)),
        Record::GuardStop { guard } => Some((false, guard.cgroup_id.0)),
        _ => None,
    };
    let told: Vec<_> = agent.audit().unwrap().iter().filter_map(guards).collect();
    assert_eq!(told, [(true, old_id), (false, old_id), (true, new_id)]);
    // Its counts begin at zero: the old one's are not its own.
    let status = agent.guard(new_id).unwrap().guard;
    assert_eq!((status.pids, status.totals.arrivals), (vec![Pid(second.pid())], 0));
}
