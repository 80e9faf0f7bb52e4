//! A real gateway leaks real MCP servers in a real container. The agent recognises them by their package, and
//! each response contains them.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]

use std::collections::BTreeSet;

use mcp_guard_core::{
    audit::{LimitChange, Record},
    incident::{Detector, End, Outcome},
    policy::Response,
    status::GuardState,
};
use mcp_guard_tests::{
    agent::Agent,
    docker::{Container, Place, socket, wait_until},
};
use rustix::process::Signal;

/// The servers' identity: their package without its version, and not `node`.
const IDENTITY: &str = "@21st-dev/magic";
/// The number of servers that the client asks for. The policy acts before the last one.
const SERVERS: u32 = 10;

/// A leak under an agent whose policy sets the response to duplicates.
struct Leak {
    agent: Agent,
    client: std::process::Child,
    place: Place,
    container: Container,
}

impl Leak {
    fn begin(what: &str, response: &str) -> Self {
        let container = Container::gateway(what).unwrap();
        let place = container.cgroup().unwrap();
        let policy = policy(&container.name, response);
        let mut agent = Agent::start_with(&policy, &socket().unwrap(), &[]).unwrap();
        agent.wait_until("it is guarded", |agent| Ok(agent.guard(place.id).is_ok())).unwrap();
        let client = container.ask_gateway(SERVERS).unwrap();
        Self { agent, client, place, container }
    }

    /// Waits for one server at a time, because each takes a second to start, or ten in a slow guest.
    fn grow_to(&mut self, servers: usize) {
        let id = self.place.id;
        for count in 1..=servers {
            let what = format!("{count} servers of {IDENTITY}");
            let grown = |agent: &mut Agent| Ok(live(agent, id) >= count);
            self.agent.wait_until(&what, grown).unwrap();
        }
    }

    /// Waits for the outcome of the only action, and returns the records up to then.
    fn contained_by(&mut self, response: Response) -> Vec<Record> {
        self.agent.await_record("a warning", warned).unwrap();
        let outcome = |record: &Record| {
            let Record::Outcome { response: done, outcome, .. } = record else { return None };
            (*done == response).then_some(*outcome)
        };
        let outcome = self.agent.await_record("the outcome", outcome).unwrap();
        let records = self.agent.audit().unwrap();
        assert_eq!(outcome, Outcome::Done, "{records:?}");
        check_story(&records, response);
        records
    }
}

impl Drop for Leak {
    fn drop(&mut self) {
        // The client's counterpart is in the container, which is removed after this.
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}

fn policy(name: &str, response: &str) -> String {
    format!(
        "mode = \"enforce\"\n\
         [detect.duplicates]\nwarn = 2\nwarn_age = \"1s\"\nact = 5\nact_age = \"3s\"\n{response}\n\
         [detect.burst]\nwarn_10s = 100\nwarn_60s = 100\n\
         [[guard]]\nname = \"{name}\"\nhighest = \"kill\"\n"
    )
}

fn live(agent: &Agent, id: u64) -> usize {
    let guard = agent.guard(id).ok();
    guard.and_then(|one| one.guard.identities.get(IDENTITY).map(|it| it.live)).unwrap_or(0)
}

fn warned(record: &Record) -> Option<()> {
    let Record::Warning { cause, .. } = record else { return None };
    assert_eq!(cause.detector, Some(Detector::Duplicates));
    assert_eq!(cause.identity.as_deref(), Some(IDENTITY));
    Some(())
}

/// Checks the order of the records: a warning, then the intent with its cause, then the outcome of the same
/// incident.
fn check_story(records: &[Record], response: Response) {
    let place = |wanted: &dyn Fn(&Record) -> bool| records.iter().position(wanted).unwrap();
    let warning = place(&|record| matches!(record, Record::Warning { .. }));
    let intent = place(&|record| matches!(record, Record::Intent { .. }));
    let outcome = place(&|record| matches!(record, Record::Outcome { .. }));
    assert!(warning < intent && intent < outcome, "{records:?}");
    let Record::Intent { incident, response: planned, cause, .. } = &records[intent] else {
        unreachable!()
    };
    assert_eq!((*planned, cause.detector), (response, Some(Detector::Duplicates)));
    assert_eq!(cause.identity.as_deref(), Some(IDENTITY));
    assert!(cause.numbers["aged"] >= 5 && cause.numbers["threshold"] == 5, "{cause:?}");
    let Record::Outcome { incident: done, timing, .. } = &records[outcome] else { unreachable!() };
    assert_eq!((done, timing.is_some()), (incident, true));
}

/// Returns whether this is a server's launcher, of which each server has one. Its command line changes while
/// it starts.
fn is_launcher(command: &str) -> bool {
    let starts = ["npm exec @21st-dev/magic", "node /usr/bin/npx -y @21st-dev/magic"];
    command == "npm"
        || command == "/usr/bin/env node /usr/bin/npx -y @21st-dev/magic@0.1.0"
        || starts.iter().any(|start| command.starts_with(start))
}

#[test]
fn a_frozen_leak_matches_what_docker_shows_and_answers_again_when_thawed() {
    let mut leak = Leak::begin("freeze", "response = \"freeze\"");
    leak.grow_to(5);
    leak.contained_by(Response::Freeze);
    assert!(leak.place.is_frozen().unwrap() && leak.place.is_marked_frozen().unwrap());

    let shown = leak.container.top().unwrap();
    let guard = leak.agent.guard(leak.place.id).unwrap().guard;
    assert_eq!(guard.state, GuardState::Frozen);
    let pids: BTreeSet<u32> = guard.pids.iter().map(|pid| pid.0).collect();
    assert_eq!(pids, shown.iter().map(|(pid, _)| *pid).collect(), "{shown:?}");
    let servers = shown.iter().filter(|(_, command)| is_launcher(command)).count();
    assert_eq!(guard.identities[IDENTITY].live, servers, "{shown:?}");
    // Nothing that is a part of the server has an identity of its own: no launcher, shell or node, and
    // not the program of the package.
    let parts = ["npm", "npx", "node", "timeout", "env", "sh", "bash", "dash", "busybox"];
    let is_part = |name: &&String| {
        name.as_str() != IDENTITY && (parts.contains(&name.as_str()) || name.contains("magic"))
    };
    let identities = &guard.identities;
    assert_eq!(identities.keys().find(is_part), None, "{identities:?}");

    let thawed = leak.agent.cli(&["thaw", &leak.container.name]).unwrap();
    assert!(thawed.status.success(), "{}", String::from_utf8_lossy(&thawed.stdout));
    assert!(!leak.place.is_frozen().unwrap() && !leak.place.is_marked_frozen().unwrap());
    leak.container.await_answer().unwrap();
}

#[test]
fn a_killed_leak_leaves_no_process() {
    let mut leak = Leak::begin("kill", "response = \"kill\"");
    // One less than the number at which it is killed. A slow engine would list processes that are gone.
    leak.grow_to(4);
    let before = leak.container.top().unwrap();
    assert!(before.iter().filter(|(_, command)| is_launcher(command)).count() >= 4, "{before:?}");
    leak.grow_to(5);
    leak.contained_by(Response::Kill);
    let left: Vec<_> = before.iter().filter(|(pid, _)| is_in(*pid, &leak.place)).collect();
    assert!(left.is_empty(), "{left:?}");
    let listed = std::fs::read_to_string(leak.place.unified.join("cgroup.procs"));
    let live = listed
        .unwrap_or_default()
        .lines()
        .filter(|pid| is_in(pid.parse().unwrap(), &leak.place))
        .count();
    assert_eq!(live, 0, "a process that came later still runs");
    let container = &leak.container;
    wait_until("docker sees that it ended", || Ok(container.inspect(".State.Running")? == "false"))
        .unwrap();
    let place = &leak.place;
    leak.agent.wait_until("its guard ends", |agent| Ok(agent.guard(place.id).is_err())).unwrap();
}

/// Returns whether a process still runs in the container's cgroup. By now another process may have its pid,
/// and a zombie keeps its pid and its cgroup until it is reaped.
fn is_in(pid: u32, place: &Place) -> bool {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}"));
    let (Ok(places), Ok(stat)) = (read("cgroup"), read("stat")) else { return false };
    let dead = stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X']));
    !dead && places.lines().any(|line| line.ends_with(&place.path))
}

#[test]
fn a_leak_is_clamped_by_default_and_its_limit_is_restored() {
    let mut leak = Leak::begin("clamp", "");
    // If systemd makes the cgroup, "no limit" is systemd's default for every unit.
    let unlimited = leak.place.pids_max().unwrap();
    assert!(unlimited.parse::<u64>().map_or(unlimited == "max", |n| n > 1000), "{unlimited}");
    leak.grow_to(5);
    let records = leak.contained_by(Response::Clamp);
    let planned = |record: &Record| {
        let Record::Intent { pids_max, .. } = record else { return None };
        pids_max.clone()
    };
    let LimitChange { found, wanted } = records.iter().find_map(planned).unwrap();
    assert_eq!(found, unlimited);
    assert_eq!(leak.place.pids_max().unwrap(), wanted);
    assert!(wanted.parse::<u64>().unwrap() < 1000, "a limit near what runs: {wanted}");
    assert!(leak.place.is_marked_clamped().unwrap());
    assert!(!leak.place.is_frozen().unwrap(), "a clamp stops no process");

    leak.agent.signal(Signal::TERM).unwrap();
    assert!(leak.agent.ended().unwrap().success());
    assert_eq!(leak.place.pids_max().unwrap(), unlimited);
    assert!(!leak.place.is_marked_clamped().unwrap());
    let released = |record: &Record| {
        matches!(
            record,
            Record::Release {
                response: Response::Clamp,
                end: End::Shutdown,
                outcome: Some(Outcome::Done),
                ..
            }
        )
    };
    assert!(leak.agent.audit().unwrap().iter().any(released));
}
