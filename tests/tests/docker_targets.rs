//! The names that an operator may give for a container, and the containers that a policy's rules guard.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use mcp_guard::control::wire::EngineState;
use mcp_guard_core::audit::{Line, Record};
use mcp_guard_tests::{
    agent::{Agent, command},
    docker::{Container, busybox_image, node_image, output, socket, without_agent},
};

const SLEEP: [&str; 2] = ["sleep", "600"];

fn sleeper(what: &str, options: &[&str]) -> Container {
    Container::run(what, &busybox_image().unwrap(), options, &SLEEP).unwrap()
}

/// Returns the cgroup id of each intent in the audit log of `folder`.
fn ids(folder: &Path) -> Vec<u64> {
    let text = fs::read_to_string(folder.join("audit.jsonl")).unwrap();
    let records = text.lines().map(|line| serde_json::from_str::<Line>(line).unwrap().record);
    let id = |record| {
        let Record::Intent { guard, .. } = record else { return None };
        Some(guard.cgroup_id.0)
    };
    records.filter_map(id).collect()
}

/// Checks that the command failed with exit code 2, gave this reason, and recorded no intent.
fn assert_cannot(done: &Output, reason: &str, folder: &Path) {
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(2), "{said}");
    assert!(said.contains(reason), "{said:?} does not say {reason:?}");
    assert!(!folder.join("audit.jsonl").exists(), "it recorded an intent");
}

#[test]
fn every_way_to_name_a_container_finds_the_same_cgroup() {
    let container = sleeper("names", &[]);
    let place = container.cgroup().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let targets = [
        container.name.clone(),
        container.id.clone(),
        container.id[..12].to_owned(),
        format!("docker:{}", container.name),
        format!("docker:{}", container.id),
        format!("cgroup:{}", place.path),
        format!("pid:{}", container.init().unwrap()),
    ];
    for target in &targets {
        let done = without_agent(folder.path(), &["freeze", "--dry-run", target]).unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(0), "{target}: {said}");
    }
    assert_eq!(ids(folder.path()), vec![place.id; targets.len()]);
    assert!(!place.freeze_requested().unwrap(), "a dry run");
}

#[test]
fn an_ambiguous_prefix_lists_its_candidates() {
    // An id begins with one of 16 digits, so two of 17 containers share the first digit.
    let image = busybox_image().unwrap();
    let mut seen: BTreeMap<u8, Container> = BTreeMap::new();
    let (first, second) = loop {
        let made = Container::create("ambiguous", &image).unwrap();
        match seen.remove(&made.id.as_bytes()[0]) {
            Some(other) => break (other, made),
            None => drop(seen.insert(made.id.as_bytes()[0], made)),
        }
    };
    let folder = tempfile::tempdir().unwrap();
    let done = without_agent(folder.path(), &["freeze", "--dry-run", &first.id[..1]]).unwrap();
    assert_cannot(&done, "ambiguous", folder.path());
    let said = String::from_utf8_lossy(&done.stderr);
    for candidate in [&first, &second] {
        let line = format!("{} {}", &candidate.id[..12], candidate.name);
        assert!(said.contains(&line), "{line} is not in {said}");
    }
}

#[test]
fn a_missing_or_stopped_container_is_exit_code_2() {
    let folder = tempfile::tempdir().unwrap();
    let stopped = Container::create("stopped", &busybox_image().unwrap()).unwrap();
    for verb in ["freeze", "thaw", "kill"] {
        let run = |target: &str| without_agent(folder.path(), &[verb, target]).unwrap();
        assert_cannot(&run("mcp-guard-test-nobody"), "no container is called", folder.path());
        assert_cannot(&run("docker:mcp-guard-test-nobody"), "no container", folder.path());
        assert_cannot(&run(&stopped.name), "is not running", folder.path());
    }
}

#[test]
fn an_unreachable_engine_is_exit_code_2() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = folder.path().join("docker.sock");
    let mut freeze = command(folder.path(), &nowhere.display().to_string()).unwrap();
    let done = freeze.args(["freeze", "--dry-run", "anybody"]).output().unwrap();
    assert_cannot(&done, "does not answer", folder.path());
}

/// Waits for this number of guards, and returns their names.
fn guarded(agent: &mut Agent, expected: usize) -> BTreeSet<String> {
    let full = |agent: &mut Agent| Ok(agent.status()?.guards.len() >= expected);
    agent.wait_until("all are guarded", full).unwrap();
    agent.status().unwrap().guards.into_iter().map(|guard| guard.guard.name).collect()
}

#[test]
fn rules_by_name_image_and_label_guard_the_containers_that_match() {
    let image = node_image().unwrap();
    let bystander = sleeper("rule-bystander", &["--label", "mcp-guard-test-role=other"]);
    let labelled = sleeper("rule-label", &["--label", "mcp-guard-test-role=server"]);
    let named = sleeper("rule-name", &[]);
    let by_image = Container::run("rule-image", &image, &[], &SLEEP).unwrap();
    let policy = format!(
        "[[guard]]\nname = \"{}\"\n[[guard]]\nlabel = \"mcp-guard-test-role=ser*\"\n\
         [[guard]]\nimage = \"{image}\"\nmode = \"enforce\"\n",
        named.name
    );
    let mut agent = Agent::start_with(&policy, &socket().unwrap(), &[]).unwrap();
    let names = guarded(&mut agent, 3);
    for container in [&labelled, &named, &by_image] {
        assert!(names.contains(&container.name), "{} in {names:?}", container.name);
        let guard = agent.guard(container.cgroup().unwrap().id).unwrap();
        assert_eq!(guard.container.as_deref(), Some(container.id.as_str()));
        let enforced = std::ptr::eq(container, &by_image);
        assert_eq!(guard.guard.mode.to_string(), if enforced { "enforce" } else { "observe" });
    }
    assert!(!names.contains(&bystander.name), "{names:?}");

    // A container that starts later is guarded if a rule matches it.
    let other = sleeper("rule-later-bystander", &[]);
    let later = sleeper("rule-later", &["--label", "mcp-guard-test-role=server2"]);
    let names = guarded(&mut agent, 4);
    assert!(names.contains(&later.name) && !names.contains(&other.name), "{names:?}");
}

/// An agent that will guard a container, started before its engine is reachable.
struct Early {
    agent: Agent,
    socket: PathBuf,
    _folder: tempfile::TempDir,
}

impl Early {
    fn of(container: &Container) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("docker.sock");
        let policy = format!("[[guard]]\nname = \"{}\"\n", container.name);
        let agent = Agent::start_with(&policy, &socket.display().to_string(), &[]).unwrap();
        assert_eq!(agent.status().unwrap().guards.len(), 0);
        Self { agent, socket, _folder: folder }
    }

    fn start_engine(&self) {
        std::os::unix::fs::symlink(socket().unwrap(), &self.socket).unwrap();
    }
}

#[test]
fn an_engine_that_starts_after_the_agent_is_found() {
    let container = sleeper("late", &[]);
    let place = container.cgroup().unwrap();
    let mut early = Early::of(&container);
    early.start_engine();
    let agent = &mut early.agent;
    agent.wait_until("it is guarded", |agent| Ok(agent.guard(place.id).is_ok())).unwrap();
    assert_eq!(agent.status().unwrap().engine, EngineState::Connected);
}

/// The operator freezes it by its path while the engine cannot be reached.
#[test]
fn a_container_that_an_operator_froze_is_guarded_after_the_thaw() {
    let container = sleeper("hand", &[]);
    let place = container.cgroup().unwrap();
    let mut early = Early::of(&container);
    let by_path = format!("cgroup:{}", place.path);
    assert!(early.agent.cli(&["freeze", &by_path]).unwrap().status.success());
    early.start_engine();
    let agent = &mut early.agent;
    agent
        .wait_until("the engine is connected", |agent| {
            Ok(agent.status()?.engine == EngineState::Connected)
        })
        .unwrap();
    assert_eq!(agent.guard(place.id).unwrap().guard.name, by_path.replace("cgroup:", ""));
    assert!(agent.cli(&["thaw", &by_path]).unwrap().status.success());
    let named = |agent: &mut Agent| {
        Ok(agent.guard(place.id).is_ok_and(|guard| guard.guard.name == container.name))
    };
    agent.wait_until("it is guarded", named).unwrap();
}

#[test]
fn a_guarded_container_is_known_by_name_without_the_engine() {
    let container = sleeper("named", &[]);
    let policy = format!("[[guard]]\nname = \"{}\"\n", container.name);
    let mut agent = Agent::start_with(&policy, &socket().unwrap(), &[]).unwrap();
    guarded(&mut agent, 1);
    let without_engine = |name: &str| {
        let mut command = command(agent.folder(), "/nonexistent").unwrap();
        command.args(["freeze", "--dry-run", name]).output().unwrap()
    };
    for name in [&container.name, &container.id[..12]] {
        let done = without_engine(name);
        let said = String::from_utf8_lossy(&done.stdout);
        assert!(said.contains("would write 1 to cgroup.freeze"), "{name}: {done:?}");
    }
    let other = without_engine("another");
    let said = String::from_utf8_lossy(&other.stderr);
    assert_eq!(other.status.code(), Some(2), "{said}");
    assert!(said.contains("cgroup:/PATH"), "{said}");
}

#[test]
fn a_restarted_container_is_a_new_guard() {
    let container = sleeper("restart", &[]);
    let policy = format!("[[guard]]\nname = \"{}\"\n", container.name);
    let mut agent = Agent::start_with(&policy, &socket().unwrap(), &[]).unwrap();
    guarded(&mut agent, 1);
    let old = container.cgroup().unwrap();
    assert_eq!(agent.guard(old.id).unwrap().guard.processes, 1);

    output(&["restart", "--time", "0", &container.name]).unwrap();
    let new = container.cgroup().unwrap();
    assert_ne!(old.id, new.id, "a restart makes a new cgroup");
    let moved = |agent: &mut Agent| {
        let ids: Vec<u64> = agent.status()?.guards.iter().map(|guard| guard.cgroup_id.0).collect();
        Ok(ids == [new.id])
    };
    agent.wait_until("only the new cgroup is guarded", moved).unwrap();
    let guard = agent.guard(new.id).unwrap();
    assert_eq!((guard.guard.name, guard.guard.processes), (container.name.clone(), 1));

    let records = agent.audit().unwrap();
    let of = |record: &Record| {
        if let Record::GuardStart { guard, .. } = record {
            return Some(("start", guard.cgroup_id.0));
        }
        let Record::GuardStop { guard } = record else { return None };
        Some(("stop", guard.cgroup_id.0))
    };
    let recorded: BTreeSet<_> = records.iter().filter_map(of).collect();
    let expected = [("start", old.id), ("stop", old.id), ("start", new.id)];
    assert_eq!(recorded, BTreeSet::from(expected));
}
