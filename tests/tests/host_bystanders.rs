//! The agent spares bystanders. The core refuses to act on them, the executor refuses again on facts that
//! it reads itself, and a path that was removed and re-created does not mislead them.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]
#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "a test looks for one record and ignores the rest"
)]

use std::{fs, os::unix::fs::chown, path::Path};

use mcp_guard_core::{audit::Record, id::Pid, incident::Outcome};
use mcp_guard_tests::{
    agent::{Agent, command},
    cgroup::FixtureCgroup,
    fake_engine,
    holds::Holds,
    leak::{Leak, LeakPolicy, observing},
    sleeper::Sleeper,
};
use rustix::fs::{XattrFlags, fsetxattr};
use serde_json::{Value, json};

const FOUND: u64 = 200;

fn cgroup(what: &str) -> FixtureCgroup {
    let cgroup = FixtureCgroup::new(what).unwrap();
    cgroup.set_pids_max(FOUND).unwrap();
    cgroup
}

/// Marks a cgroup as systemd does.
fn mark(cgroup: &FixtureCgroup) {
    let dir = fs::File::open(cgroup.unified_dir()).unwrap();
    fsetxattr(dir, "trusted.invocation_id", &[b'a'; 32], XattrFlags::empty()).unwrap();
}

/// Returns the outcome of the first action in the audit log, and its detail.
fn first_outcome(agent: &mut Agent) -> (Outcome, String) {
    let outcome = |record: &Record| match record {
        Record::Outcome { outcome, detail, .. } => Some((*outcome, detail.clone())),
        _ => None,
    };
    agent.await_record("a decision", outcome).unwrap()
}

#[test]
fn the_core_refuses_a_detectors_action_on_a_bystander() {
    for response in ["clamp", "freeze", "kill"] {
        let guarded = cgroup("core");
        let session = guarded.child("session-1.scope").unwrap();
        mark(&session);
        let _user = Sleeper::start(&session).unwrap();
        let leak = Leak::start(&guarded, 4).unwrap();
        let mut agent = Agent::start(&LeakPolicy::enforcing(&guarded, response).toml()).unwrap();
        let (outcome, said) = first_outcome(&mut agent);
        assert_eq!(outcome, Outcome::Refused, "{said}");
        assert!(said.contains("session-1.scope"), "{said}");
        let asked = agent.audit().unwrap().into_iter().find_map(|record| match record {
            Record::Intent { processes, .. } => Some(processes.is_some()),
            _ => None,
        });
        assert_eq!(asked, Some(false), "the executor was asked");
        let status = agent.guard(guarded.id()).unwrap().guard;
        assert!(status.refused.unwrap().contains("session-1.scope"));
        let shown = String::from_utf8(agent.cli(&["status"]).unwrap().stdout).unwrap();
        assert!(shown.contains("never acted on: it contains session-1.scope"), "{shown}");
        // A slow host looks at the cgroup on another thread, and the guard has started by then.
        let refusal = agent.audit().unwrap().into_iter().find_map(|record| match record {
            Record::GuardStart { refused, .. } => refused,
            Record::RefusalStart { refused, .. } => Some(refused),
            _ => None,
        });
        assert!(refusal.unwrap().contains("session-1.scope"), "recorded when it is found");
        assert_eq!(Holds::of(&guarded).unwrap(), Holds::nothing(FOUND));
        assert!(leak.end().unwrap().success(), "no process was killed");
    }
}

/// The core does not know of the engine that enters the cgroup later. The executor checks again and finds it.
#[test]
fn the_executor_refuses_when_the_facts_have_changed() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("dockerd");
    fs::copy("/bin/sleep", &program).unwrap();
    for response in ["clamp", "freeze", "kill"] {
        let guarded = cgroup("executor");
        let two = Leak::start(&guarded, 2).unwrap();
        // It asks again soon after the end of the refusal.
        let policy = LeakPolicy::enforcing(&guarded, response).toml();
        let policy = policy.replace("[respond]", "[respond]\ncool_down = \"3s\"");
        let mut agent = Agent::start(&policy).unwrap();
        let engine = Sleeper::start_as(&guarded, &program).unwrap();
        let four = Leak::start(&guarded, 4).unwrap();
        let (outcome, said) = first_outcome(&mut agent);
        assert_eq!(outcome, Outcome::Refused, "{said}");
        let expected = format!("process {} (dockerd)", engine.pid());
        assert!(said.contains(&expected), "{said}");
        let started = |record: &Record| match record {
            Record::RefusalStart { refused, .. } => Some(refused.clone()),
            _ => None,
        };
        let refused = agent.await_record("the refusal", started).unwrap();
        assert!(refused.contains(&expected), "{refused}");
        assert_eq!(agent.guard(guarded.id()).unwrap().guard.refused, Some(refused));
        assert_eq!(agent.cli(&["status"]).unwrap().status.code(), Some(1));
        assert_eq!(Holds::of(&guarded).unwrap(), Holds::nothing(FOUND));
        if response != "kill" {
            drop(engine);
            let ended = |record: &Record| matches!(record, Record::RefusalEnd { .. }).then_some(());
            agent.await_record("the end of the refusal", ended).unwrap();
            let done = |record: &Record| {
                matches!(record, Record::Outcome { outcome: Outcome::Done, .. }).then_some(())
            };
            agent.await_record("the response that was refused", done).unwrap();
            assert_eq!(agent.guard(guarded.id()).unwrap().guard.refused, None);
            assert_eq!(agent.cli(&["status"]).unwrap().status.code(), Some(0));
            agent.cli(&["thaw", &format!("cgroup:{}", guarded.path())]).unwrap();
        }
        assert!(two.end().unwrap().success() && four.end().unwrap().success());
    }
}

/// The end of a refusal is found between two looks at the cgroup, and the freeze follows at once.
#[test]
fn a_freeze_that_follows_the_end_of_a_refusal_is_not_taken_for_thawed() {
    let guarded = cgroup("follows");
    let session = guarded.child("session-1.scope").unwrap();
    mark(&session);
    let user = Sleeper::start(&session).unwrap();
    let leak = Leak::start(&guarded, 4).unwrap();
    let mut agent = Agent::start(&LeakPolicy::enforcing(&guarded, "freeze").toml()).unwrap();
    assert_eq!(first_outcome(&mut agent).0, Outcome::Refused);
    drop(user);
    let done = |record: &Record| match record {
        Record::Outcome { outcome: Outcome::Done, .. } => Some(()),
        _ => None,
    };
    agent.await_record("the freeze", done).unwrap();
    let released = |record: &Record| matches!(record, Record::Release { .. });
    let holds = Holds::of(&guarded).unwrap();
    assert!(holds.freeze && holds.freeze_mark.is_some(), "{holds:?}");
    assert!(!agent.audit().unwrap().iter().any(released), "nothing was disowned");
    agent.cli(&["thaw", &format!("cgroup:{}", guarded.path())]).unwrap();
    assert!(leak.end().unwrap().success());
}

fn place(old: &FixtureCgroup) -> Value {
    json!({ "cgroup": old.path(), "cgroup_id": old.id(), "name": "x", "lease_ms": 5000 })
}

#[test]
fn a_recreated_path_is_another_cgroup() {
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
    // First through the handle that the agent still has, and again when it has noticed.
    assert_missed(&agent);
    let new_id = new.id();
    agent.wait_until("the new cgroup is guarded", |agent| Ok(agent.guard(new_id).is_ok())).unwrap();
    assert!(agent.guard(old_id).is_err(), "the old guard is still there");
    assert_missed(&agent);
    assert!(second.lives().unwrap(), "no process was killed");

    let guards = |record: &Record| match record {
        Record::GuardStart { guard, .. } => Some((true, guard.cgroup_id.0)),
        Record::GuardStop { guard } => Some((false, guard.cgroup_id.0)),
        _ => None,
    };
    let recorded: Vec<_> = agent.audit().unwrap().iter().filter_map(guards).collect();
    assert_eq!(recorded, [(true, old_id), (false, old_id), (true, new_id)]);
    // Its counts begin at zero, and include none of the old cgroup's.
    let status = agent.guard(new_id).unwrap().guard;
    assert_eq!((status.pids, status.totals.arrivals), (vec![Pid(second.pid())], 0));
}

/// An engine with one container, which it says is paused. It answers until the test ends.
fn engine(socket: &Path, id: &str, init: u32) {
    let container = json!({
        "Id": id, "Name": "/victim", "State": { "Running": true, "Paused": true, "Pid": init },
        "HostConfig": { "PidsLimit": 7 }, "Config": { "Image": "i", "Labels": {} },
    });
    fake_engine::serve(socket, &container).unwrap();
}

const USER: u32 = 65534;

#[test]
fn the_engine_of_a_user_is_believed_about_that_users_containers_only() {
    let above = cgroup("users-engine");
    let id = "c".repeat(64);
    let container = above.child(&id).unwrap();
    let init = Sleeper::start(&container).unwrap();
    let folder = tempfile::tempdir().unwrap();
    chown(folder.path(), Some(USER), None).unwrap();
    let socket = folder.path().join("docker.sock");
    engine(&socket, &id, init.pid());
    let policy = "[[guard]]\nname = \"victim\"\n";
    let mut agent = Agent::start_with(policy, socket.to_str().unwrap(), &[]).unwrap();
    let refused = |record: &Record| match record {
        Record::GuardRefused { guard, reason } => Some((guard.cgroup_id.0, reason.clone())),
        _ => None,
    };
    let (of, reason) = agent.await_record("it is ignored", refused).unwrap();
    assert_eq!(of, container.id());
    assert!(reason.contains("the engine of user 65534"), "{reason}");
    assert!(agent.guard(container.id()).is_err(), "root's container is guarded");
    assert_eq!(agent.status().unwrap().unguarded, 1, "the policy names it");
    assert_eq!(agent.cli(&["status"]).unwrap().status.code(), Some(1));
    chown(above.unified_dir(), Some(USER), None).unwrap();
    let id = container.id();
    agent.wait_until("the user's is guarded", |agent| Ok(agent.guard(id).is_ok())).unwrap();
    assert_eq!(agent.status().unwrap().unguarded, 0);
}

#[test]
fn an_operator_is_not_led_to_another_users_container_by_an_engine() {
    let above = cgroup("users-engine-by-hand");
    let id = "d".repeat(64);
    let container = above.child(&id).unwrap();
    let mut init = Sleeper::start(&container).unwrap();
    let folder = tempfile::tempdir().unwrap();
    chown(folder.path(), Some(USER), None).unwrap();
    let socket = folder.path().join("docker.sock");
    engine(&socket, &id, init.pid());
    let run = |words: &[&str]| {
        let mut command = command(folder.path(), socket.to_str().unwrap()).unwrap();
        let output = command.args(words).output().unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.code(), said)
    };
    let place = format!("cgroup:{}", container.path());
    let freeze = ["freeze", "--dry-run", &place];
    let diagnosed = || {
        let (_, said) = run(&["diagnose", "--json", &place]);
        let report: Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
        report["target"]["kind"].clone()
    };
    for verb in ["freeze", "kill"] {
        let (code, said) = run(&[verb, "--dry-run", "victim"]);
        assert!(code == Some(2) && said.contains("not believed"), "{verb}: {code:?} {said}");
    }
    let (code, said) = run(&freeze);
    assert!(code == Some(0) && said.contains("dry run"), "its pause is ignored: {said}");
    assert_eq!(diagnosed(), "cgroup", "its limit is ignored");
    chown(above.unified_dir(), Some(USER), None).unwrap();
    let (code, said) = run(&["kill", "--dry-run", "victim"]);
    assert_eq!(code, Some(0), "the user's own: {said}");
    let (code, said) = run(&freeze);
    assert!(code == Some(1) && said.contains("has paused"), "{said}");
    assert_eq!(diagnosed(), "container");
    assert!(init.lives().unwrap());
}
