//! A leak in a container whose engine does not answer.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]
#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "a test looks for one record and ignores the rest"
)]

use mcp_guard_core::{
    audit::Record,
    incident::{End, Outcome},
    policy::Response,
};
use mcp_guard_tests::{
    agent::{Agent, ENGINE_TIMEOUT},
    cgroup::FixtureCgroup,
    fake_engine,
    holds::Holds,
    leak::{Leak, LeakPolicy},
    sleeper::Sleeper,
};
use serde_json::json;

const FOUND: u64 = 200;
const WANTED: u64 = 150;

/// Returns the outcomes of clamps, of writes of limits, and the ends of clamps, with their details.
fn story(records: &[Record]) -> Vec<(String, String)> {
    let told = |record: &Record| match record {
        Record::Outcome { response: Response::Clamp, outcome, detail, .. } => {
            Some((format!("clamp {outcome:?}"), detail.clone()))
        }
        Record::Limit { outcome: Some(outcome), detail, .. } => {
            Some((format!("limit {outcome:?}"), detail.clone()))
        }
        Record::Release { end, outcome: Some(_), detail, .. } => {
            Some((format!("{end:?}"), detail.clone()))
        }
        _ => None,
    };
    records.iter().filter_map(told).collect()
}

#[test]
fn a_clamp_waits_for_no_engine_and_outlasts_its_late_write() {
    let above = FixtureCgroup::new("hung").unwrap();
    if above.pids_dir() == above.unified_dir() {
        above.hand_pids_down().unwrap();
    }
    let id = "f".repeat(64);
    let cgroup = above.child(&id).unwrap();
    cgroup.set_pids_max(FOUND).unwrap();
    let init = Sleeper::start(&cgroup).unwrap();
    let folder = tempfile::Builder::new().prefix("mcp-guard-test-").tempdir().unwrap();
    let socket = folder.path().join("docker.sock");
    let container = json!({
        "Id": id, "Name": "/victim", "State": { "Running": true, "Pid": init.pid() },
        "HostConfig": { "PidsLimit": FOUND }, "Config": { "Image": "i", "Labels": {} },
    });
    let engine = fake_engine::serve(&socket, &container).unwrap();
    let policy = LeakPolicy::enforcing(&cgroup, "clamp").toml();
    let policy = format!("{policy}pids_limit = {WANTED}\n");
    // It is waited for for three minutes.
    let mut agent = Agent::start_with(&policy, socket.to_str().unwrap(), &ENGINE_TIMEOUT).unwrap();
    let written = |record: &Record| matches!(record, Record::Limit { .. }).then_some(());
    agent.await_record("the engine is asked for the limit", written).unwrap();

    let leak = Leak::start(&cgroup, 4).unwrap();
    let clamped = |record: &Record| match record {
        Record::Outcome { response: Response::Clamp, outcome, .. } => Some(*outcome),
        _ => None,
    };
    let outcome = agent.await_record("clamped", clamped).unwrap();
    let first = Holds::of(&cgroup).unwrap();
    assert_eq!(outcome, Outcome::Done, "{first:?}");
    assert!(first.clamp_mark.is_some(), "{first:?}");

    // The engine makes the write now.
    cgroup.set_pids_max(WANTED).unwrap();
    assert_eq!(engine.answer().unwrap(), 1);
    let again = |agent: &mut Agent| {
        let records = agent.audit()?;
        Ok(records.iter().filter_map(clamped).filter(|one| *one == Outcome::Done).count() == 2)
    };
    agent.wait_until("clamped again", again).unwrap();
    let second = Holds::of(&cgroup).unwrap();
    let found = second.clamp_mark.as_ref().unwrap().found.clone();
    assert_eq!((&second.pids_max, found), (&first.pids_max, Some(WANTED.to_string())));
    let late =
        |agent: &mut Agent| Ok(story(&agent.audit()?).iter().any(|(what, _)| what == "limit Done"));
    agent.wait_until("the late answer is recorded", late).unwrap();
    let story = story(&agent.audit().unwrap());
    let said = |what: &str| {
        let found = story.iter().find(|(told, _)| told == what);
        found.unwrap_or_else(|| panic!("no {what}: {story:?}")).1.clone()
    };
    assert!(said("limit Failed").contains("it may still arrive"), "{story:?}");
    assert!(said("limit Done").contains("late"), "{story:?}");
    assert!(said(&format!("{:?}", End::LateWrite)).contains("a write of mcp-guard late"));
    assert!(!story.iter().any(|(what, _)| *what == format!("{:?}", End::UnclampedByOther)));
    assert!(leak.end().unwrap().success());
}
