//! mcp-guard neither freezes nor thaws a container that Docker has paused. With cgroup v1, Docker pauses
//! through the v1 freezer. With v2 it uses the same cgroup.freeze that we use. The tests hold for both.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]

use std::{
    fs,
    process::{Command, Output, Stdio},
};

use mcp_guard::{
    control::wire::EngineState,
    host::layout::{Layout, LayoutKind},
};
use mcp_guard_core::{
    audit::Record,
    incident::{End, Outcome},
    policy::Response,
};
use mcp_guard_tests::{
    agent::{Agent, command},
    docker::{
        Container, Place, TICKER, busybox_image, node_image, output, socket, wait_until,
        without_agent,
    },
    lookalike,
};
use rustix::process::{Pid, Signal, kill_process};

/// The reason that mcp-guard gives for leaving a paused container alone.
const PAUSED: &str = "the engine has paused the container";
/// The age leaves time to pause the container between the third server and the action, even in a slow
/// guest.
const DUPLICATES: &str = "mode = \"enforce\"\n[detect.duplicates]\nwarn = 2\nwarn_age = \"1s\"\n\
    act = 3\nact_age = \"12s\"\nresponse = \"freeze\"\n";

fn ticker(what: &str) -> (Container, Place) {
    let container = Container::run(what, &busybox_image().unwrap(), &[], &TICKER).unwrap();
    container.await_ticking().unwrap();
    let place = container.cgroup().unwrap();
    (container, place)
}

fn guards(container: &Container) -> String {
    format!("[[guard]]\nname = \"{}\"\n", container.name)
}

/// Starts an agent and waits until it knows the engine's containers. `guarded` says whether the policy
/// guards this one.
fn agent(policy: &str, place: &Place, guarded: bool) -> Agent {
    let mut agent = Agent::start_with(policy, &socket().unwrap(), &[]).unwrap();
    let connected = |agent: &mut Agent| {
        let status = agent.status()?;
        let found = status.guards.iter().any(|guard| guard.cgroup_id.0 == place.id);
        Ok(status.engine == EngineState::Connected && found == guarded)
    };
    agent.wait_until("the agent knows the engine's containers", connected).unwrap();
    agent
}

fn pause(container: &Container) {
    output(&["pause", &container.name]).unwrap();
    assert_eq!(container.inspect(".State.Paused").unwrap(), "true");
}

/// Pauses a container that we have frozen. If both use the same cgroup.freeze, Docker's runtime believes that
/// the container is already paused and refuses, so this first thaws it without mcp-guard.
fn pause_over_freeze(container: &Container, place: &Place) {
    if same_switch() {
        fs::write(place.unified.join("cgroup.freeze"), "0").unwrap();
    }
    pause(container);
}

/// Returns whether Docker pauses through the cgroup.freeze that we use, and not through the v1 freezer.
fn same_switch() -> bool {
    Layout::read().unwrap().kind == LayoutKind::Unified
}

/// Unpauses the container, and checks that it runs again.
fn unpause(container: &Container) {
    output(&["unpause", &container.name]).unwrap();
    assert_eq!(container.inspect(".State.Paused").unwrap(), "false");
    container.await_ticking().unwrap();
}

/// Checks for exit code 1 and one of these reasons for leaving the container alone.
fn assert_left_alone(done: &Output, why: &[&str]) {
    let said = String::from_utf8_lossy(&done.stdout);
    assert_eq!(done.status.code(), Some(1), "{said}{}", String::from_utf8_lossy(&done.stderr));
    let gives_reason = why.iter().any(|why| said.contains(why));
    assert!(said.contains("left alone:") && gives_reason, "{said}");
}

/// Tries an operator's freeze and thaw on a paused container.
fn try_as_operator(container: &Container, place: &Place, run: impl Fn(&[&str]) -> Output) {
    pause(container);
    let before = place.freeze_requested().unwrap();
    assert_left_alone(&run(&["freeze", &container.name, "--for", "60s"]), &[PAUSED]);
    assert!(!place.is_marked_frozen().unwrap());
    let ours = ["carries no mark of mcp-guard", "mcp-guard holds nothing here"];
    assert_left_alone(&run(&["thaw", &container.name]), &ours);
    assert_eq!(place.freeze_requested().unwrap(), before);
    assert_eq!(container.inspect(".State.Paused").unwrap(), "true");
    unpause(container);
}

#[test]
fn a_paused_container_is_left_alone_without_an_agent() {
    let (container, place) = ticker("pause-alone");
    let folder = tempfile::tempdir().unwrap();
    try_as_operator(&container, &place, |words| without_agent(folder.path(), words).unwrap());
}

#[test]
fn a_paused_container_is_left_alone_by_an_agent_that_guards_it() {
    let (container, place) = ticker("pause-guarded");
    let agent = agent(&guards(&container), &place, true);
    try_as_operator(&container, &place, |words| agent.cli(words).unwrap());
}

#[test]
fn a_paused_container_is_left_alone_by_an_agent_that_does_not_guard_it() {
    let (container, place) = ticker("pause-unknown");
    let agent = agent("[[guard]]\nname = \"nobody\"\n", &place, false);
    try_as_operator(&container, &place, |words| agent.cli(words).unwrap());
}

#[test]
fn a_container_paused_before_the_agent_started_is_left_alone() {
    let (container, place) = ticker("pause-before");
    pause(&container);
    let agent = agent(&guards(&container), &place, true);
    assert!(agent.guard(place.id).unwrap().paused);
    let freeze = agent.cli(&["freeze", &container.name]).unwrap();
    assert_left_alone(&freeze, &[PAUSED]);
    assert!(!place.is_marked_frozen().unwrap());
    unpause(&container);
}

#[test]
fn a_paused_container_is_left_alone_by_a_detector() {
    let mount = format!("{}:/t:ro", lookalike::folder().unwrap().display());
    let program = ["/t/launcher-lookalike", "leak", "--package", "figma-mcp", "--count", "3"];
    // The look-alike ends at once if its stdin is not open.
    let options = ["--interactive", "--volume", &mount];
    let container =
        Container::run("pause-detector", &node_image().unwrap(), &options, &program).unwrap();
    let place = container.cgroup().unwrap();
    let mut agent = agent(&format!("{DUPLICATES}{}", guards(&container)), &place, true);
    let three = |agent: &mut Agent| {
        let identities = agent.guard(place.id)?.guard.identities;
        Ok(identities.get("figma-mcp").is_some_and(|one| one.live == 3))
    };
    agent.wait_until("three servers", three).unwrap();
    pause(&container);
    let before = place.freeze_requested().unwrap();
    let settled = |record: &Record| {
        let Record::Outcome { response, outcome, detail, .. } = record else { return None };
        (*response == Response::Freeze).then(|| (*outcome, detail.clone()))
    };
    let (outcome, detail) =
        agent.await_record("the outcome of the detector's freeze", settled).unwrap();
    assert_eq!(outcome, Outcome::NotOurs, "{detail}");
    assert!(detail.contains(PAUSED), "{detail}");
    assert_eq!(place.freeze_requested().unwrap(), before);
    assert!(!place.is_marked_frozen().unwrap());
    output(&["unpause", &container.name]).unwrap();
    wait_until("it is thawed", || Ok(!place.is_frozen()?)).unwrap();
}

/// A lease that ends within the test, but not before Docker has paused the container.
fn short_lease() -> &'static str {
    if same_switch() { "15s" } else { "4s" }
}

/// Freezes a container through the agent, then pauses it through Docker, which owns the freeze from then on.
fn freeze_then_pause(container: &Container, place: &Place, agent: &mut Agent, lease: &str) {
    let frozen = agent.cli(&["freeze", &container.name, "--for", lease]).unwrap();
    assert!(frozen.status.success(), "{}", String::from_utf8_lossy(&frozen.stdout));
    assert!(place.is_frozen().unwrap() && place.is_marked_frozen().unwrap());
    // Stopped, because it would drop its lease if it saw the thaw.
    agent.signal(Signal::STOP).unwrap();
    pause_over_freeze(container, place);
    agent.signal(Signal::CONT).unwrap();
    let paused = |agent: &mut Agent| Ok(agent.guard(place.id)?.paused);
    agent.wait_until("the agent sees the pause", paused).unwrap();
}

/// Checks that the audit log has the release, and that the container stays paused until Docker unpauses it.
fn assert_given_to_docker(container: &Container, place: &Place, records: &[Record], end: End) {
    let said = |record: &Record| {
        let Record::Release { end: why, outcome, detail, .. } = record else { return None };
        (*why == end && outcome.is_some()).then(|| detail.clone())
    };
    let detail = records.iter().find_map(said).expect("a release");
    assert_stays_paused(container, place, &detail);
}

/// If Docker paused through the v1 freezer, our freeze is released and Docker's stays. If it used the same
/// cgroup.freeze, the freeze is Docker's now, and only our mark is removed.
fn assert_stays_paused(container: &Container, place: &Place, said: &str) {
    let apart = !same_switch();
    let expected = if apart { "cgroup.freeze 0" } else { PAUSED };
    assert!(said.contains(expected), "{said}");
    assert_eq!(place.freeze_requested().unwrap(), !apart);
    assert!(!place.is_marked_frozen().unwrap());
    assert_eq!(container.inspect(".State.Paused").unwrap(), "true");
    assert_stands_still(container);
    unpause(container);
}

/// Compares two readings a moment apart, because no event reports that nothing happens.
fn assert_stands_still(container: &Container) {
    let before = container.ticks().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(container.ticks().unwrap(), before, "a paused container runs");
}

fn released(record: &Record) -> Option<()> {
    matches!(record, Record::Release { outcome: Some(_), .. }).then_some(())
}

#[test]
fn a_lease_that_ends_during_a_pause_thaws_nothing() {
    let (container, place) = ticker("pause-lease");
    let mut agent = agent(&guards(&container), &place, true);
    freeze_then_pause(&container, &place, &mut agent, short_lease());
    agent.await_record("the lease ends", released).unwrap();
    assert_given_to_docker(&container, &place, &agent.audit().unwrap(), End::LeaseOver);
}

#[test]
fn an_agent_that_stops_during_a_pause_thaws_nothing() {
    let (container, place) = ticker("pause-stop");
    let mut agent = agent(&guards(&container), &place, true);
    freeze_then_pause(&container, &place, &mut agent, "60s");
    agent.signal(Signal::TERM).unwrap();
    assert!(agent.ended().unwrap().success());
    assert_given_to_docker(&container, &place, &agent.audit().unwrap(), End::Shutdown);
}

#[test]
fn an_agent_that_guards_only_for_an_operators_freeze_respects_a_pause() {
    let (container, place) = ticker("pause-hand");
    let mut agent = agent("[[guard]]\nname = \"nobody\"\n", &place, false);
    freeze_then_pause(&container, &place, &mut agent, short_lease());
    agent.await_record("the lease ends", released).unwrap();
    assert_given_to_docker(&container, &place, &agent.audit().unwrap(), End::LeaseOver);
}

#[test]
fn a_foreground_freeze_that_ends_during_a_pause_thaws_nothing() {
    let (container, place) = ticker("pause-foreground");
    let folder = tempfile::tempdir().unwrap();
    let mut freeze: Command = command(folder.path(), &socket().unwrap()).unwrap();
    freeze.args(["freeze", &container.name, "--for", "60s"]).stdout(Stdio::piped());
    let freeze = freeze.spawn().unwrap();
    wait_until("it is frozen", || place.is_frozen()).unwrap();
    pause_over_freeze(&container, &place);
    kill_process(Pid::from_child(&freeze), Signal::TERM).unwrap();
    let ended = freeze.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stdout);
    assert_stays_paused(&container, &place, &said);
}
