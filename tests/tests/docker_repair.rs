//! Limits that are repaired at their owner, lowered in steps as tasks end, and kept. Each is read back.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]

use std::{
    fs,
    path::Path,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use anyhow::Result;
use mcp_guard::requests::Requests;
use mcp_guard_core::effect::PolicyThen;
use mcp_guard_core::{audit::Record, incident::Outcome};
use mcp_guard_tests::{
    agent::{Agent, command},
    cgroup::FixtureCgroup,
    diagnose::fine,
    docker::{
        Container, Place, busybox_image, node_image, output, socket, wait_until, without_agent,
    },
    sleeper::Sleeper,
    wait,
};
use rustix::process::{Pid, Signal, kill_process};

const SLEEP: [&str; 2] = ["sleep", "600"];
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(50);

fn sleeper(what: &str, options: &[&str]) -> (Container, Place) {
    let container = Container::run(what, &busybox_image().unwrap(), options, &SLEEP).unwrap();
    let place = container.cgroup().unwrap();
    (container, place)
}

/// Runs the command line without an agent. Returns its exit code and its output.
fn mcp_guard(folder: &Path, words: &[&str]) -> (Option<i32>, String) {
    let done = without_agent(folder, words).unwrap();
    let said = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
    (done.status.code(), said.into_owned())
}

fn stored(container: &Container) -> String {
    container.inspect(".HostConfig.PidsLimit").unwrap()
}

fn tasks(place: &Place) -> u64 {
    fs::read_to_string(place.pids.join("pids.current")).unwrap().trim().parse().unwrap()
}

#[test]
fn the_engine_stores_a_repaired_limit_and_a_restart_keeps_it() {
    let (container, place) = sleeper("repair", &[]);
    let folder = tempfile::tempdir().unwrap();
    let (code, said) = mcp_guard(folder.path(), &["repair", &container.name]);
    assert_eq!(code, Some(1), "nothing declares a limit: {said}");
    assert!(said.contains("--limit"), "{said}");
    let words = ["repair", &container.name, "--limit", "40"];
    let (code, said) = mcp_guard(folder.path(), &[&words[..], &["--dry-run"]].concat());
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("would ask Docker for PidsLimit 40"), "{said}");
    assert_eq!(place.pids_max().unwrap(), "max", "a dry run");

    let (code, said) = mcp_guard(folder.path(), &words);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("read back: engine 40, kernel 40"), "{said}");
    assert_eq!((place.pids_max().unwrap(), stored(&container)), ("40".into(), "40".into()));
    let log = fs::read_to_string(folder.path().join("audit.jsonl")).unwrap();
    let lines: Vec<&str> =
        log.lines().filter(|line| line.contains("\"event\":\"limit\"")).collect();
    // Two records for the dry run and two for the repair: one before and one after.
    assert_eq!(lines.len(), 4, "{log}");
    let ends = ["", "\"outcome\":\"would-do\"", "", "\"outcome\":\"done\""];
    assert!(lines.iter().zip(ends).all(|(line, end)| line.contains(end)), "{log}");
    assert!(!lines[0].contains("outcome") && !lines[2].contains("outcome"), "{log}");

    output(&["restart", "--time", "0", &container.name]).unwrap();
    assert_eq!(container.cgroup().unwrap().pids_max().unwrap(), "40");
    output(&["update", "--cpu-shares", "512", &container.name]).unwrap();
    assert_eq!(container.cgroup().unwrap().pids_max().unwrap(), "40");
    fine(&container, mcp_guard_core::diagnose::code::Code::Enforced);
}

#[test]
fn a_limit_that_would_break_the_container_is_refused_unless_forced() {
    let (container, place) = sleeper("least", &["--pids-limit", "25"]);
    let folder = tempfile::tempdir().unwrap();
    let words = ["repair", &container.name, "--limit", "4"];
    let (code, said) = mcp_guard(folder.path(), &words);
    assert_eq!((code, place.pids_max().unwrap().as_str()), (Some(1), "25"), "{said}");
    let (code, said) = mcp_guard(folder.path(), &[&words[..], &["--force"]].concat());
    assert_eq!((code, place.pids_max().unwrap().as_str()), (Some(0), "4"), "{said}");
    let (code, said) = mcp_guard(folder.path(), &["repair", "cgroup:/", "--limit", "40"]);
    assert_eq!(code, Some(1), "the root: {said}");
    // A process that runs containers is a bystander, also for --dry-run.
    let engine = FixtureCgroup::new("engine").unwrap();
    let program = folder.path().join("dockerd");
    fs::copy("/bin/sleep", &program).unwrap();
    let _process = Sleeper::start_as(&engine, &program).unwrap();
    let target = format!("cgroup:{}", engine.path());
    for more in [&["--dry-run"][..], &[]] {
        let words = [&["repair", &target, "--limit", "40"], more].concat();
        let (code, said) = mcp_guard(folder.path(), &words);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("dockerd"), "{said}");
        assert_eq!(engine.read("pids.max").unwrap().trim(), "max");
    }
}

/// Starts an agent that keeps the limit that this container's engine sets.
fn keeper(container: &Container, place: &Place, more: &str) -> Agent {
    let policy = format!("{more}\n[[guard]]\nname = \"{}\"\n", container.name);
    let mut agent = Agent::start_with(&policy, &socket().unwrap(), &[]).unwrap();
    agent.wait_until("it is guarded", |agent| Ok(agent.guard(place.id).is_ok())).unwrap();
    agent
}

fn write_limit(place: &Place, limit: &str) {
    fs::write(place.pids.join("pids.max"), limit).unwrap();
}

fn wanted(agent: &Agent, place: &Place, limit: u64) -> Result<bool> {
    Ok(agent.guard(place.id)?.pids_wanted == Some(limit))
}

/// Returns the outcomes of the audit log's limit records.
fn outcomes(agent: &Agent) -> Vec<Outcome> {
    let outcome = |record: Record| {
        let Record::Limit { outcome, .. } = record else { return None };
        outcome
    };
    agent.audit().unwrap().into_iter().filter_map(outcome).collect()
}

#[test]
fn a_running_agent_restores_a_limit_and_stops_at_the_third_reversion() {
    let (container, place) = sleeper("kept", &["--pids-limit", "25"]);
    let mut agent = keeper(&container, &place, "mode = \"enforce\"");
    // An update through the engine is a new limit from the owner, and not a reversion.
    for limit in [60, 25] {
        output(&["update", "--pids-limit", &limit.to_string(), &container.name]).unwrap();
        agent.wait_until("the new limit is wanted", |agent| wanted(agent, &place, limit)).unwrap();
        assert_eq!(place.pids_max().unwrap(), limit.to_string());
    }
    let mut done = 0;
    loop {
        let before = outcomes(&agent).len();
        write_limit(&place, "max");
        agent.wait_until("an outcome", |agent| Ok(outcomes(agent).len() > before)).unwrap();
        if outcomes(&agent).last() == Some(&Outcome::NotOurs) {
            break;
        }
        assert_eq!(outcomes(&agent).last(), Some(&Outcome::Done));
        assert_eq!(place.pids_max().unwrap(), "25");
        done += 1;
    }
    // The first write counts as a reversion only if the agent saw the limit in force before it.
    assert!((2..=3).contains(&done), "{done} repairs before it gave up");
    assert!(agent.guard(place.id).unwrap().pids_left);
    assert_eq!(agent.cli(&["status"]).unwrap().status.code(), Some(1), "something is wrong");
    assert_eq!(place.pids_max().unwrap(), "max", "it no longer restores the limit");
    let left = |record: &Record| {
        let Record::Limit { outcome: Some(Outcome::NotOurs), detail, .. } = record else {
            return None;
        };
        Some(detail.clone())
    };
    let said = agent.await_record("the record that it gave up", left).unwrap();
    assert!(said.contains("25 is wanted") && said.contains("wrote pids.max"), "{said}");
}

#[test]
fn observe_mode_records_a_repair_and_does_not_do_it() {
    let (container, place) = sleeper("observed", &["--pids-limit", "25"]);
    let mut agent = keeper(&container, &place, "");
    write_limit(&place, "max");
    agent.wait_until("recorded", |agent| Ok(!outcomes(agent).is_empty())).unwrap();
    assert_eq!(
        (outcomes(&agent), place.pids_max().unwrap()),
        (vec![Outcome::WouldDo], "max".into())
    );
}

/// A running `repair`. Killed when dropped.
struct Running(Child);

impl Running {
    fn repair(folder: &Path, container: &Container, limit: &str) -> Self {
        let mut command = command(folder, &socket().unwrap()).unwrap();
        command.args(["repair", &container.name, "--limit", limit]);
        Self(command.stdout(Stdio::null()).spawn().unwrap())
    }

    fn kill(&self) {
        kill_process(Pid::from_child(&self.0), Signal::KILL).unwrap();
    }

    fn code(&mut self) -> Option<i32> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            assert!(began.elapsed() < PATIENCE, "repair did not end");
            std::thread::sleep(LOOK);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Node processes that end one after the other. /tmp/codes has the exit code of each.
const LOAD: &str = "for i in $(seq 38); do (node -e \"setTimeout(() => {}, $((8000 + i * 1000)))\"; \
                    echo $? >> /tmp/codes) & done; wait; exec sleep 600";

/// Polls until this limit is in force, and returns each limit that it saw, in order.
fn followed(place: &Place, last: &str) -> Vec<u64> {
    let mut seen = Vec::new();
    let began = Instant::now();
    loop {
        let now = place.pids_max().unwrap();
        let number = now.parse().unwrap_or(u64::MAX);
        if seen.last() != Some(&number) {
            seen.push(number);
        }
        if now == last {
            return seen;
        }
        assert!(began.elapsed() < PATIENCE, "{seen:?}");
        std::thread::sleep(LOOK);
    }
}

#[test]
fn a_limit_falls_in_steps_as_tasks_end_and_the_next_agent_continues() {
    let options = ["--env", "PATH=/usr/bin:/bin"];
    let image = node_image().unwrap();
    let container = Container::run("ratchet", &image, &options, &["sh", "-c", LOAD]).unwrap();
    let place = container.cgroup().unwrap();
    wait_until("all run", || Ok(tasks(&place) >= 300)).unwrap();
    let mut agent = keeper(&container, &place, "mode = \"enforce\"");
    let mut repair = Running::repair(agent.folder(), &container, "40");
    agent.wait_until("a first step", |_| Ok(place.pids_max()? != "max")).unwrap();
    let first: u64 = place.pids_max().unwrap().parse().unwrap();
    assert!(first > 40 && first < 400, "{first}");
    assert_eq!(stored(&container), "<nil>", "the engine stores no step");
    agent.signal(Signal::KILL).unwrap();
    agent.ended().unwrap();
    wait_until("tasks have ended meanwhile", || Ok(tasks(&place) < first - 60)).unwrap();
    assert_eq!(place.pids_max().unwrap(), first.to_string(), "no other process lowers it");

    let policy = format!("mode = \"enforce\"\n[[guard]]\nname = \"{}\"\n", container.name);
    let agent = agent.restart(&policy).unwrap();
    let seen = followed(&place, "40");
    assert!(seen.is_sorted_by(|a, b| a > b) && seen.len() > 2, "it only falls: {seen:?}");
    assert_eq!(repair.code(), Some(0), "the operator's command waited for the result");
    assert_eq!(stored(&container), "40");
    let kept = fs::read_dir(agent.folder().join("state/limits")).unwrap().count();
    assert_eq!(kept, 0, "the engine stores the limit now, so no request is left");
    wait_until("an exec has room", || Ok(tasks(&place) <= 20)).unwrap();
    let codes = output(&["exec", &container.name, "cat", "/tmp/codes"]).unwrap();
    let ended: Vec<&str> = codes.lines().collect();
    assert!(ended.len() >= 30 && ended.iter().all(|code| *code == "0"), "{ended:?}");
}

/// Thirty sleepers, and the shell that waits for them.
const THIRTY: &str = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 \
                      29 30; do sleep 600 & done; wait; exec sleep 600";

#[test]
fn the_next_repair_continues_one_that_was_killed() {
    let image = busybox_image().unwrap();
    let container = Container::run("resumed", &image, &[], &["sh", "-c", THIRTY]).unwrap();
    let place = container.cgroup().unwrap();
    wait_until("all run", || Ok(tasks(&place) == 31)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let repair = Running::repair(folder.path(), &container, "30");
    wait_until("a first step", || Ok(place.pids_max()? == "51")).unwrap();
    repair.kill();
    for (pid, _) in container.top().unwrap().iter().filter(|(_, line)| line.starts_with("sleep")) {
        kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::TERM).unwrap();
    }
    wait_until("they are gone", || Ok(tasks(&place) == 1)).unwrap();
    assert_eq!((place.pids_max().unwrap(), stored(&container)), ("51".into(), "<nil>".into()));
    let words = ["repair", &container.name, "--limit", "30"];
    let (code, said) = mcp_guard(folder.path(), &words);
    assert_eq!(
        (code, place.pids_max().unwrap(), stored(&container)),
        (Some(0), "30".into(), "30".into()),
        "{said}"
    );
}

#[test]
fn a_request_ends_when_the_engine_stores_its_limit() {
    let (container, place) = sleeper("over", &[]);
    let mut agent = keeper(&container, &place, "mode = \"enforce\"");
    let (socket, gone) = (socket().unwrap(), "f".repeat(64));
    let requests = Requests::new(&agent.folder().join("state"));
    requests.put(&container.id, 40, &socket, PolicyThen::Unknown).unwrap();
    agent.wait_until("it is in force", |_| Ok(place.pids_max()? == "40")).unwrap();
    agent
        .wait_until("the request is removed", |_| Ok(requests.get(&container.id).is_none()))
        .unwrap();
    assert_eq!(stored(&container), "40");
    // A later update through the engine therefore stays in force.
    output(&["update", "--pids-limit", "200", &container.name]).unwrap();
    agent.wait_until("the new limit is wanted", |agent| wanted(agent, &place, 200)).unwrap();
    assert_eq!((place.pids_max().unwrap(), stored(&container)), ("200".into(), "200".into()));

    agent.signal(Signal::TERM).unwrap();
    agent.ended().unwrap();
    requests.put(&gone, 40, &socket, PolicyThen::Unknown).unwrap();
    requests.put(&container.id, 100, &socket, PolicyThen::Unknown).unwrap();
    let policy = format!("[[guard]]\nname = \"{}\"\n", container.name);
    let mut agent = agent.restart(&policy).unwrap();
    agent
        .wait_until("the request for the missing container is removed", |_| {
            Ok(requests.get(&gone).is_none())
        })
        .unwrap();
    assert_eq!(
        requests.get(&container.id).map(|one| one.limit),
        Some(100),
        "the request for a container that exists is kept"
    );
}

/// A request ranks above the policy, even if the engine stores its limit.
#[test]
fn a_request_overrides_the_policy() {
    let (container, place) = sleeper("above", &["--pids-limit", "60"]);
    let policy =
        format!("mode = \"enforce\"\n[[guard]]\nname = \"{}\"\npids_limit = 60\n", container.name);
    let mut agent = Agent::start_with(&policy, &socket().unwrap(), &[]).unwrap();
    agent.wait_until("it is guarded", |agent| Ok(agent.guard(place.id).is_ok())).unwrap();
    let done = agent.cli(&["repair", &container.name, "--limit", "80"]).unwrap();
    assert!(done.status.success(), "{done:?}");
    // Long enough for the agent to check the limit three times.
    let undone = || Ok(place.pids_max()? != "80" || !wanted(&agent, &place, 80)?);
    assert!(!wait::until(Duration::from_secs(3), undone).unwrap(), "{}", agent.log());
    assert_eq!(stored(&container), "80");
}

#[test]
fn a_new_request_makes_an_agent_that_gave_up_try_again() {
    let (container, place) = sleeper("again", &["--pids-limit", "25"]);
    let mut agent = keeper(&container, &place, "mode = \"enforce\"");
    while !agent.guard(place.id).unwrap().pids_left {
        let before = outcomes(&agent).len();
        write_limit(&place, "max");
        agent.wait_until("an outcome", |agent| Ok(outcomes(agent).len() > before)).unwrap();
        assert!(before < 4, "{:?}", outcomes(&agent));
    }
    assert_eq!(place.pids_max().unwrap(), "max");
    let requests = Requests::new(&agent.folder().join("state"));
    requests.put(&container.id, 25, &socket().unwrap(), PolicyThen::Unknown).unwrap();
    agent.wait_until("it is in force", |_| Ok(place.pids_max()? == "25")).unwrap();
    agent
        .wait_until("the agent keeps it again", |agent| Ok(!agent.guard(place.id)?.pids_left))
        .unwrap();
}

#[test]
fn a_repair_follows_its_container_when_that_is_renamed() {
    let image = busybox_image().unwrap();
    let begin = |what| Container::run(what, &image, &[], &["sh", "-c", THIRTY]).unwrap();
    let (mut first, mut other) = (begin("first"), begin("other"));
    let places = [&first, &other].map(|container| container.cgroup().unwrap());
    wait_until("all run", || Ok(places.iter().all(|place| tasks(place) == 31))).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut repair = Running::repair(folder.path(), &first, "30");
    wait_until("a first step", || Ok(places[0].pids_max()? == "51")).unwrap();
    let (name, away) = (first.name.clone(), format!("{}-away", first.name));
    for (container, new) in [(&mut first, &away), (&mut other, &name)] {
        output(&["rename", &container.name, new]).unwrap();
        container.name.clone_from(new);
    }
    for (pid, _) in first.top().unwrap().iter().filter(|(_, line)| line.starts_with("sleep")) {
        kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::TERM).unwrap();
    }
    assert_eq!(repair.code(), Some(0), "done and read back");
    assert_eq!((places[0].pids_max().unwrap(), stored(&first)), ("30".into(), "30".into()));
    assert_eq!((places[1].pids_max().unwrap(), stored(&other)), ("max".into(), "<nil>".into()));
}

#[test]
fn the_later_of_two_repairs_wins() {
    let image = busybox_image().unwrap();
    let container = Container::run("later", &image, &[], &["sh", "-c", THIRTY]).unwrap();
    let place = container.cgroup().unwrap();
    wait_until("all run", || Ok(tasks(&place) == 31)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut first = Running::repair(folder.path(), &container, "20");
    wait_until("a first step", || Ok(place.pids_max()? == "51")).unwrap();
    // This limit leaves room for the tasks that run, so it is written at once. It raises the step of the
    // first repair.
    let words = ["repair", &container.name, "--limit", "60"];
    let mut later = command(folder.path(), &socket().unwrap()).unwrap();
    let mut later = Running(later.args(words).stdout(Stdio::null()).spawn().unwrap());
    assert_eq!(later.code(), Some(0));
    assert_eq!(first.code(), Some(1), "the first ends because of another request");
    assert_eq!((place.pids_max().unwrap(), stored(&container)), ("60".into(), "60".into()));
}

#[test]
fn the_limit_of_a_cgroup_named_by_path_is_kept_without_an_engine() {
    let outer = FixtureCgroup::new("unknown").unwrap();
    if outer.pids_dir() == outer.unified_dir() {
        outer.hand_pids_down().unwrap();
    }
    let cgroup = outer.child(&"a1".repeat(32)).unwrap();
    cgroup.set_pids_max(100).unwrap();
    let _process = Sleeper::start(&cgroup).unwrap();
    let rule = format!("[[guard]]\ncgroup = \"{}\"\npids_limit = 40\n", cgroup.path());
    let policy = format!("mode = \"enforce\"\n{rule}");
    let mut agent = Agent::start_with(&policy, &socket().unwrap(), &[]).unwrap();
    let in_force = || Ok(cgroup.read("pids.max")?.trim() == "40");
    agent.wait_until("it is in force", |_| in_force()).unwrap();
}
