//! A repaired limit survives everything that systemd and the engines do to it.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]

use std::{fs, mem::ManuallyDrop, path::Path};

use mcp_guard_core::diagnose::code::Code;
use mcp_guard_tests::{
    agent::{Agent, command},
    diagnose::fine,
    docker::{
        Container, Engine, Place, busybox_image, output,
        podman::{PodmanService, Quadlet},
        wait_until,
    },
    systemd::{property, reload_and_start_in, run, systemctl},
};

const SLEEP: [&str; 2] = ["sleep", "600"];

fn sleeper(engine: Engine, what: &str, options: &[&str]) -> (Container, Place) {
    let image = match engine {
        Engine::Docker => busybox_image().unwrap(),
        Engine::Podman => engine.node_image().unwrap(),
    };
    let container = Container::run_in(engine, what, &image, options, &SLEEP).unwrap();
    let place = container.cgroup().unwrap();
    (container, place)
}

/// Runs `repair`, which must succeed, and returns its output. `folder` is a running agent's, or an empty one.
fn repair(folder: &Path, container: &Container, limit: &str) -> String {
    repair_at(&container.engine.socket().unwrap(), folder, &container.name, limit)
}

fn repair_at(socket: &str, folder: &Path, target: &str, limit: &str) -> String {
    let mut command = command(folder, socket).unwrap();
    let done = command.args(["repair", target, "--limit", limit]).output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}");
    said.into_owned()
}

#[test]
fn docker_keeps_a_repaired_limit_through_everything() {
    let (container, place) = sleeper(Engine::Docker, "repair", &[]);
    let scope = format!("docker-{}.scope", container.id);
    let folder = tempfile::tempdir().unwrap();
    let said = repair(folder.path(), &container, "40");
    assert!(said.contains("read back: engine 40, systemd 40, kernel 40"), "{said}");
    let holds = |after: &str| {
        let limits =
            (container.cgroup().unwrap().pids_max().unwrap(), property(&scope, "TasksMax"));
        assert_eq!(limits, ("40".into(), "40".into()), "after {after}");
        assert_eq!(container.inspect(".HostConfig.PidsLimit").unwrap(), "40", "after {after}");
    };
    holds("the repair");
    assert_eq!(place.pids_max().unwrap(), "40");
    reload_and_start_in("system.slice");
    holds("a reload, and the start of another unit");
    output(&["update", "--cpu-shares", "512", &container.name]).unwrap();
    holds("an update of something else");
    output(&["restart", "--time", "0", &container.name]).unwrap();
    holds("a restart of the container");
    // The engine reads its store again, as after a reboot. Without live-restore, the container ends.
    systemctl(&["restart", "docker.service"]);
    output(&["start", &container.name]).unwrap();
    holds("a restart of the engine");
    fine(&container, Code::Enforced);
}

/// Starts an agent that keeps the limit that this container's engine or an operator sets.
fn keeper(container: &Container, place: &Place) -> Agent {
    let policy = format!("mode = \"enforce\"\n[[guard]]\nname = \"{}\"\n", container.name);
    let socket = container.engine.socket().unwrap();
    let mut agent = Agent::start_with(&policy, &socket, &[]).unwrap();
    agent.wait_until("it is guarded", |agent| Ok(agent.guard(place.id).is_ok())).unwrap();
    agent
}

fn restored(container: &Container, limit: &str) {
    wait_until("it is in force again", || Ok(container.cgroup()?.pids_max()? == limit)).unwrap();
}

#[test]
fn a_raw_write_is_repaired_at_systemd() {
    let (container, place) = sleeper(Engine::Docker, "kept", &["--pids-limit", "40"]);
    let _agent = keeper(&container, &place);
    fs::write(place.pids.join("pids.max"), "max").unwrap();
    restored(&container, "40");
    let scope = format!("docker-{}.scope", container.id);
    systemctl(&["set-property", "--runtime", &scope, "TasksMax=100"]);
    restored(&container, "40");
    assert_eq!(property(&scope, "TasksMax"), "40", "repaired at its owner");
    reload_and_start_in("system.slice");
    assert_eq!(place.pids_max().unwrap(), "40");
}

/// Podman keeps an update from 5.4 on. With an older one, a running agent restores the limit.
#[test]
fn podman_or_the_agent_keeps_a_repaired_limit() {
    let _service = PodmanService::start().unwrap();
    let (container, place) = sleeper(Engine::Podman, "podman", &[]);
    let agent = keeper(&container, &place);
    let said = repair(agent.folder(), &container, "40");
    assert!(said.contains("kernel 40"), "{said}");
    reload_and_start_in("machine.slice");
    assert_eq!(place.pids_max().unwrap(), "40");
    let keeps = said.contains("Podman's update");
    let scope = format!("libpod-{}.scope", container.id);
    if !keeps {
        assert_eq!(property(&scope, "TasksMax"), "40", "also on the scope around the payload");
    }
    Engine::Podman.output(&["restart", "--time", "0", &container.name]).unwrap();
    if keeps {
        assert_eq!(container.cgroup().unwrap().pids_max().unwrap(), "40");
    }
    restored(&container, "40");
}

/// A service that has a cgroup of its own below it. Stopped when dropped.
struct Service {
    unit: String,
    _script: tempfile::NamedTempFile,
}

impl Service {
    /// Starts a service whose only process moves into a cgroup below, and enables the pids controller there.
    fn with_worker() -> Self {
        const SCRIPT: &str = "cg=/sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup); mkdir $cg/worker; \
                              echo $$ > $cg/worker/cgroup.procs; \
                              echo +pids > $cg/cgroup.subtree_control; exec sleep 600";
        // In a file, because systemd expands variables in a command line.
        let script = tempfile::NamedTempFile::new().unwrap();
        fs::write(&script, SCRIPT).unwrap();
        let path = script.path().to_str().unwrap().to_owned();
        let unit = format!("mcp-guard-test-worker-{}.service", std::process::id());
        let service = Self { unit, _script: script };
        let unit = format!("--unit={}", service.unit);
        run("systemd-run", &[&unit, "--property=Delegate=yes", "--quiet", "sh", &path]);
        service
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = std::process::Command::new("systemctl").args(["stop", &self.unit]).status();
    }
}

/// A limit on the unit would also bind the other processes in it.
#[test]
fn a_cgroup_below_a_unit_is_limited_without_the_unit() {
    let service = Service::with_worker();
    let cgroup = format!("/system.slice/{}/worker", service.unit);
    let file = format!("/sys/fs/cgroup{cgroup}/pids.max");
    wait_until("the cgroup exists", || Ok(Path::new(&file).exists())).unwrap();
    let before = property(&service.unit, "TasksMax");
    let folder = tempfile::tempdir().unwrap();
    let target = format!("cgroup:{cgroup}");
    let said = repair_at("/nonexistent", folder.path(), &target, "40");
    assert!(said.contains("pids.max itself") && said.contains("read back: kernel 40"), "{said}");
    assert_eq!(fs::read_to_string(&file).unwrap().trim(), "40");
    assert_eq!(property(&service.unit, "TasksMax"), before, "the service's own limit");
    // The service itself is limited through its unit.
    let target = format!("unit:{}", service.unit);
    let said = repair_at("/nonexistent", folder.path(), &target, "50");
    assert!(said.contains("read back: systemd 50, kernel 50"), "{said}");
}

/// conmon, the monitor, runs in the service too.
#[test]
fn a_quadlet_is_limited_without_its_monitor() {
    let _service = PodmanService::start().unwrap();
    let quadlet = Quadlet::run("split", &SLEEP).unwrap();
    let before = property(quadlet.unit(), "TasksMax");
    let folder = tempfile::tempdir().unwrap();
    let said = repair(folder.path(), &quadlet.container, "40");
    assert_eq!(quadlet.container.cgroup().unwrap().pids_max().unwrap(), "40", "{said}");
    assert_eq!(property(quadlet.unit(), "TasksMax"), before, "{said}");
}

/// The container that one test repairs before a reboot of the guest, and another checks after it.
const REBOOTED: &str = "mcp-guard-test-reboot";

#[test]
fn before_a_reboot_the_limit_is_repaired() {
    let image = busybox_image().unwrap();
    let fixed = ["run", "--detach", "--network", "none", "--name", REBOOTED, &image];
    let id = output(&[&fixed[..], &SLEEP].concat()).unwrap();
    // Left behind on purpose, for the next boot.
    let container =
        ManuallyDrop::new(Container { engine: Engine::Docker, id, name: REBOOTED.to_owned() });
    let folder = tempfile::tempdir().unwrap();
    let said = repair(folder.path(), &container, "40");
    assert!(said.contains("survives: container restart, daemon-reload, reboot"), "{said}");
}

#[test]
fn after_a_reboot_the_limit_is_still_in_force() {
    let id = output(&["inspect", "--format", "{{.Id}}", REBOOTED]).unwrap();
    let container = Container { engine: Engine::Docker, id, name: REBOOTED.to_owned() };
    assert!(container.init().is_err(), "it still runs after the reboot");
    output(&["start", REBOOTED]).unwrap();
    assert_eq!(container.cgroup().unwrap().pids_max().unwrap(), "40");
    assert_eq!(property(&format!("docker-{}.scope", container.id), "TasksMax"), "40");
    fine(&container, Code::Enforced);
}
