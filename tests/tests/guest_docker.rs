//! Facts about Docker with the systemd cgroup driver, and about Podman, that the pure tests take for granted.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]

use std::{
    fs,
    io::Write as _,
    process::{Child, Command, Stdio},
};

use mcp_guard_core::{
    audit::Record,
    incident::{End, Outcome},
    status::GuardState,
};
use mcp_guard_tests::{
    agent::Agent,
    docker::{
        Container, Engine, Place, TICKER, busybox_image, docker, output,
        podman::{PodmanService, Quadlet},
        wait_until,
    },
    lookalike,
    systemd::{default_tasks_max, property, reload_and_start_in},
};
use rustix::process::Signal;

const SLEEP: [&str; 2] = ["sleep", "600"];

fn sleeper(what: &str, options: &[&str]) -> (Container, Place) {
    let container = Container::run(what, &busybox_image().unwrap(), options, &SLEEP).unwrap();
    let place = container.cgroup().unwrap();
    (container, place)
}

fn scope(container: &Container) -> String {
    format!("docker-{}.scope", container.id)
}

fn tasks_max(container: &Container) -> String {
    property(&scope(container), "TasksMax")
}

fn read_number(place: &Place, file: &str) -> u64 {
    fs::read_to_string(place.pids.join(file)).unwrap().trim().parse().unwrap()
}

/// Returns how many forks this cgroup's own limit refused.
fn refused(place: &Place) -> u64 {
    let local = place.pids.join("pids.events.local");
    // Before Linux 6.11, pids.events itself is local.
    let file = if local.exists() { local } else { place.pids.join("pids.events") };
    let text = fs::read_to_string(file).unwrap();
    text.trim().strip_prefix("max ").unwrap().parse().unwrap()
}

#[test]
fn a_container_is_a_scope_and_its_limit_is_tasks_max() {
    let (limited, place) = sleeper("limited", &["--pids-limit", "60"]);
    assert_eq!(place.path, format!("/system.slice/{}", scope(&limited)));
    assert_eq!(limited.inspect(".HostConfig.PidsLimit").unwrap(), "60");
    assert_eq!((place.pids_max().unwrap(), tasks_max(&limited)), ("60".into(), "60".into()));

    let (unlimited, place) = sleeper("unlimited", &[]);
    let default = default_tasks_max();
    assert!(default.parse::<u64>().unwrap() > 100, "{default}");
    assert_eq!((place.pids_max().unwrap(), tasks_max(&unlimited)), (default.clone(), default));
}

/// A program of this host that was moved into a container's cgroup. Killed when dropped.
struct Intruder(Child);

impl Intruder {
    fn enter(place: &Place, program: &[&str]) -> Self {
        let mut command = Command::new(program[0]);
        command.args(&program[1..]).stdin(Stdio::piped()).stderr(Stdio::null());
        let intruder = Self(command.spawn().unwrap());
        let pid = intruder.0.id().to_string();
        fs::write(place.unified.join("cgroup.procs"), pid).unwrap();
        intruder
    }
}

impl Drop for Intruder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn attach_goes_beyond_the_limit_but_a_fork_does_not() {
    let (_container, place) = sleeper("attach", &["--pids-limit", "4"]);
    let sleepers: Vec<Intruder> = (0..6).map(|_| Intruder::enter(&place, &SLEEP)).collect();
    assert_eq!(read_number(&place, "pids.current"), 1 + sleepers.len() as u64);
    assert_eq!((place.pids_max().unwrap().as_str(), refused(&place)), ("4", 0));

    // Once inside, the shell forks for the subshell in parentheses.
    let mut shell = Intruder::enter(&place, &["sh", "-c", "read go && (exit 0) && exit 0"]);
    let mut stdin = shell.0.stdin.take().unwrap();
    stdin.write_all(b"go\n").unwrap();
    assert!(!shell.0.wait().unwrap().success(), "a fork beyond the limit succeeded");
    assert!(refused(&place) > 0);
    assert_eq!(read_number(&place, "pids.current"), 1 + sleepers.len() as u64);
}

#[test]
fn docker_exec_enters_a_container_that_is_full() {
    let full = "for n in 1 2 3 4 5 6 7 8 9; do sleep 600 & done; wait";
    let options = ["--pids-limit", "10"];
    let image = busybox_image().unwrap();
    let container = Container::run("full", &image, &options, &["sh", "-c", full]).unwrap();
    let place = container.cgroup().unwrap();
    wait_until("it is full", || Ok(read_number(&place, "pids.current") == 10)).unwrap();
    assert_eq!(read_number(&place, "pids.peak"), 10);
    // Its threads race with its move into the cgroup, so the exec may fail or succeed. The test does not
    // check its result.
    let _ = docker(&["exec", "--detach", &container.name, "true"]).unwrap().output().unwrap();
    assert!(read_number(&place, "pids.peak") > 10, "it did not enter by attach");
}

/// Starts an agent that guards only this container.
fn guarding(container: &Container, place: &Place) -> Agent {
    guarding_by(&format!("[[guard]]\nname = \"{}\"\n", container.name), container, place)
}

fn guarding_by(policy: &str, container: &Container, place: &Place) -> Agent {
    let socket = container.engine.socket().unwrap();
    let mut agent = Agent::start_with(policy, &socket, &[]).unwrap();
    agent.wait_until("it is guarded", |agent| Ok(agent.guard(place.id).is_ok())).unwrap();
    agent
}

#[test]
fn an_update_is_kept_and_a_raw_limit_is_not() {
    let (container, place) = sleeper("update", &["--pids-limit", "60"]);
    let mut agent = guarding(&container, &place);
    let limits = |place: &Place| (place.pids_max().unwrap(), tasks_max(&container));
    let both = |limit: &str| (limit.to_owned(), limit.to_owned());
    output(&["update", "--pids-limit", "80", &container.name]).unwrap();
    assert_eq!(limits(&place), both("80"));
    reload_and_start_in("system.slice");
    assert_eq!(limits(&place), both("80"));

    fs::write(place.pids.join("pids.max"), "33").unwrap();
    assert_eq!(limits(&place), ("33".into(), "80".into()));
    reload_and_start_in("system.slice");
    assert_eq!(limits(&place), both("80"), "systemd has applied TasksMax again");

    fs::write(place.pids.join("pids.max"), "33").unwrap();
    output(&["restart", "--time", "0", &container.name]).unwrap();
    let new = container.cgroup().unwrap();
    assert_eq!((&new.path, limits(&new)), (&place.path, both("80")), "as set by docker update");
    assert_ne!(new.id, place.id, "another cgroup under the same path");
    let followed = |agent: &mut Agent| {
        let ids: Vec<u64> = agent.status()?.guards.iter().map(|guard| guard.cgroup_id.0).collect();
        Ok(ids == [new.id])
    };
    agent.wait_until("only the new cgroup is guarded", followed).unwrap();
    assert_eq!(agent.guard(new.id).unwrap().pids_max.as_deref(), Some("80"));
}

/// Docker and our clamp both write pids.max without systemd's knowledge.
#[test]
fn systemd_undoes_a_clamp_and_its_limit_is_left_alone() {
    let mount = format!("{}:/t:ro", lookalike::folder().unwrap().display());
    let program = ["/t/launcher-lookalike", "leak", "--package", "figma-mcp", "--count", "3"];
    // The look-alike ends at once if its stdin is not open.
    let options = ["--interactive", "--volume", &mount, "--pids-limit", "300"];
    let image = busybox_image().unwrap();
    let container = Container::run("clamp", &image, &options, &program).unwrap();
    let place = container.cgroup().unwrap();
    let policy = format!(
        "mode = \"enforce\"\n[evidence]\nevery = \"1s\"\n\
         [detect.duplicates]\nwarn = 2\nact = 3\nwarn_age = \"1s\"\n\
         act_age = \"2s\"\n[[guard]]\nname = \"{}\"\n",
        container.name
    );
    let mut agent = guarding_by(&policy, &container, &place);
    let clamped = |_: &mut Agent| Ok(place.pids_max()? != "300");
    agent.wait_until("it is clamped", clamped).unwrap();
    assert_eq!(tasks_max(&container), "300", "systemd does not know of the clamp");
    reload_and_start_in("system.slice");
    let undone = |record: &Record| {
        let Record::Release { end, outcome: Some(outcome), .. } = record else { return None };
        Some((*end, *outcome))
    };
    let expected = (End::UnclampedByOther, Outcome::NotOurs);
    assert_eq!(agent.await_record("noticed", undone).unwrap(), expected);
    assert_eq!(place.pids_max().unwrap(), "300");
    assert!(!place.is_marked_clamped().unwrap());
}

fn ticker(what: &str) -> (Container, Place) {
    ticker_in(Engine::Docker, &busybox_image().unwrap(), what)
}

fn ticker_in(engine: Engine, image: &str, what: &str) -> (Container, Place) {
    let container = Container::run_in(engine, what, image, &[], &TICKER).unwrap();
    container.await_ticking().unwrap();
    let place = container.cgroup().unwrap();
    (container, place)
}

fn freeze(agent: &Agent, container: &Container) {
    let frozen = agent.cli(&["freeze", &container.name, "--for", "600s"]).unwrap();
    assert!(frozen.status.success(), "{}", String::from_utf8_lossy(&frozen.stdout));
}

/// Runs a docker command that must fail, and returns its output.
fn fails(words: &[&str]) -> String {
    let done = docker(words).unwrap().output().unwrap();
    assert!(!done.status.success(), "docker {words:?} succeeded");
    String::from_utf8(done.stderr).unwrap() + &String::from_utf8(done.stdout).unwrap()
}

#[test]
fn a_pause_is_a_write_to_the_file_that_we_freeze_with() {
    let (container, place) = ticker("pause-file");
    output(&["pause", &container.name]).unwrap();
    assert!(place.freeze_requested().unwrap() && place.is_frozen().unwrap());
    let agent = guarding(&container, &place);
    assert!(agent.guard(place.id).unwrap().paused, "reported");
    let left = agent.cli(&["freeze", &container.name]).unwrap();
    let said = String::from_utf8_lossy(&left.stdout);
    assert_eq!(left.status.code(), Some(1), "{said}");
    assert!(said.contains("the engine has paused the container"), "{said}");
    assert!(!place.is_marked_frozen().unwrap());
    output(&["unpause", &container.name]).unwrap();
    assert!(!place.freeze_requested().unwrap());
    container.await_ticking().unwrap();
}

#[test]
fn docker_takes_our_freeze_for_a_pause_of_unknown_origin() {
    let (container, place) = ticker("freeze-file");
    let agent = guarding(&container, &place);
    freeze(&agent, &container);
    let name = container.name.as_str();
    assert_eq!(container.inspect(".State.Status").unwrap(), "running");
    assert!(fails(&["pause", name]).contains("container not running"));
    assert!(fails(&["unpause", name]).contains("is not paused"));
    assert!(
        fails(&["exec", name, "true"]).contains("paused"),
        "it fails at once and does not hang"
    );
    output(&["update", "--pids-limit", "70", name]).unwrap();
    reload_and_start_in("system.slice");
    assert!(place.is_frozen().unwrap() && place.is_marked_frozen().unwrap(), "still ours");

    let thawed = agent.cli(&["thaw", name]).unwrap();
    assert!(thawed.status.success(), "{}", String::from_utf8_lossy(&thawed.stdout));
    container.await_ticking().unwrap();
}

#[test]
fn docker_can_stop_a_container_that_we_have_frozen() {
    let (container, place) = ticker("stop-frozen");
    let mut agent = guarding(&container, &place);
    freeze(&agent, &container);
    output(&["stop", "--time", "1", &container.name]).unwrap();
    assert_eq!(container.inspect(".State.ExitCode").unwrap(), "137", "by SIGKILL");
    agent.wait_until("its guard ends", |agent| Ok(agent.guard(place.id).is_err())).unwrap();
    assert!(!place.exists(), "the cgroup is gone, with our freeze and mark");
}

#[test]
fn an_unpause_also_ends_our_lease() {
    let (container, place) = ticker("unpause");
    let mut agent = guarding(&container, &place);
    freeze(&agent, &container);
    // Docker can pause a container that we have frozen only if another tool thaws it first, and we have not
    // seen that yet.
    agent.signal(Signal::STOP).unwrap();
    fs::write(place.unified.join("cgroup.freeze"), "0").unwrap();
    output(&["pause", &container.name]).unwrap();
    agent.signal(Signal::CONT).unwrap();
    agent
        .wait_until("the agent sees the pause", |agent| Ok(agent.guard(place.id)?.paused))
        .unwrap();
    assert!(place.is_frozen().unwrap(), "the engine's pause wins");

    output(&["unpause", &container.name]).unwrap();
    container.await_ticking().unwrap();
    let dropped = |record: &Record| {
        let Record::Release { end, outcome, .. } = record else { return None };
        outcome.map(|outcome| (*end, outcome))
    };
    let dropped = agent.await_record("the lease is dropped", dropped).unwrap();
    assert_eq!(dropped, (End::ThawedByOther, Outcome::NotOurs));
    assert!(!place.is_marked_frozen().unwrap());
    let free = |agent: &mut Agent| Ok(agent.guard(place.id)?.guard.state == GuardState::Free);
    agent.wait_until("the guard is free", free).unwrap();
}

/// crun, unlike runc, pauses a container that is already frozen.
#[test]
fn podmans_pause_is_a_write_to_the_file_that_we_freeze_with() {
    let _service = PodmanService::start().unwrap();
    let image = Engine::Podman.node_image().unwrap();
    let (container, place) = ticker_in(Engine::Podman, &image, "podman-pause");
    let scope = format!("/machine.slice/libpod-{}.scope", container.id);
    assert_eq!(place.path, format!("{scope}/container"), "the payload of crun");
    let mut agent = guarding(&container, &place);
    freeze(&agent, &container);
    assert_eq!(container.inspect(".State.Status").unwrap(), "running", "Podman did not pause it");
    Engine::Podman.output(&["pause", &container.name]).unwrap();
    agent
        .wait_until("the agent sees the pause", |agent| Ok(agent.guard(place.id)?.paused))
        .unwrap();

    let thaw = agent.cli(&["thaw", &container.name]).unwrap();
    let said = String::from_utf8_lossy(&thaw.stdout);
    assert!(said.contains("the engine has paused the container and owns the freeze now"), "{said}");
    assert!(place.is_frozen().unwrap() && !place.is_marked_frozen().unwrap());
    Engine::Podman.output(&["unpause", &container.name]).unwrap();
    container.await_ticking().unwrap();
    let above = fs::read_to_string(format!("/sys/fs/cgroup{scope}/cgroup.freeze")).unwrap();
    assert_eq!(above.trim(), "0", "no freeze is left in a cgroup that Podman does not check");

    // After a restart, the container has another cgroup under the same path.
    Engine::Podman.output(&["restart", "--time", "0", &container.name]).unwrap();
    let new = container.cgroup().unwrap();
    assert_eq!((&new.path, new.id == place.id), (&place.path, false));
    agent.wait_until("the new cgroup is guarded", |agent| Ok(agent.guard(new.id).is_ok())).unwrap();
}

#[test]
fn a_container_of_a_quadlet_is_guarded_without_its_monitor() {
    let _service = PodmanService::start().unwrap();
    let quadlet = Quadlet::run("quadlet", &SLEEP).unwrap();
    let container = &quadlet.container;
    let place = container.cgroup().unwrap();
    let service = format!("/system.slice/{}", quadlet.unit());
    assert_eq!(place.path, format!("{service}/libpod-payload-{}", container.id));
    let agent = guarding(container, &place);
    freeze(&agent, container);
    assert!(place.is_frozen().unwrap() && place.is_marked_frozen().unwrap());
    let monitor = format!("/sys/fs/cgroup{service}/runtime/cgroup.events");
    assert!(fs::read_to_string(monitor).unwrap().contains("frozen 0"), "conmon runs on");
    let thawed = agent.cli(&["thaw", &container.name]).unwrap();
    assert!(thawed.status.success(), "{}", String::from_utf8_lossy(&thawed.stdout));
    assert!(!place.is_frozen().unwrap());
}

#[test]
fn the_engines_versions_are_recorded() {
    for (engine, name, which) in [
        (Engine::Docker, "Docker", "{{.Server.Version}}"),
        (Engine::Podman, "Podman", "{{.Client.Version}}"),
    ] {
        let version = engine.output(&["version", "--format", which]).unwrap();
        let number = version.split('.').take(2).collect::<Vec<_>>().join(".");
        mcp_guard_tests::fact::record(name, &number).unwrap();
        assert!(number.split('.').all(|part| part.parse::<u32>().is_ok()), "{version}");
    }
}
