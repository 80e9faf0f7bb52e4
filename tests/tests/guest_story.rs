//! The whole story: a real gateway leaks real servers in a real container. The agent, as the package's unit,
//! recognises the servers by their package and contains them, and then the hold is released.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Child, Output},
};

use mcp_guard_core::{
    audit::{LimitChange, Record},
    incident::{Detector, End, Outcome},
    policy::Response,
    status::GuardState,
};
use mcp_guard_tests::{
    agent::ENGINE_TIMEOUT,
    docker::{Container, Engine, Place, podman::PodmanService, wait_until},
    unit::Unit,
};

/// The servers' identity: their package without its version, and not `node`.
const IDENTITY: &str = "@21st-dev/magic";
/// The number of servers at which the detector acts. Each takes half a minute to start in a slow guest.
const ACTS: u64 = 3;

/// Returns a policy for the story. Its ages are shorter than a start of npm in a slow guest, and its
/// cool-down prevents a second action.
fn policy(name: &str, response: &str) -> String {
    format!(
        "mode = \"enforce\"\n\
         [evidence]\nevery = \"1s\"\n\
         [detect.duplicates]\nwarn = 2\nwarn_age = \"1s\"\nact = {ACTS}\nact_age = \"2s\"\n\
         response = \"{response}\"\n\
         [detect.burst]\nwarn_10s = 100\nwarn_60s = 100\n\
         [respond]\ncool_down = \"600s\"\n\
         [[guard]]\nname = \"{name}\"\nhighest = \"freeze\"\n"
    )
}

/// The process that runs the container on the host, containerd-shim or conmon, in a cgroup of its own.
struct Keeper {
    name: String,
    cgroup: PathBuf,
    limit: String,
}

impl Keeper {
    /// Finds the parent of the container's first process.
    fn of(container: &Container) -> Self {
        let init = container.init().unwrap();
        let status = fs::read_to_string(format!("/proc/{init}/status")).unwrap();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim();
        let name = fs::read_to_string(format!("/proc/{parent}/comm")).unwrap().trim().to_owned();
        let places = fs::read_to_string(format!("/proc/{parent}/cgroup")).unwrap();
        let path = places.trim().strip_prefix("0::").unwrap();
        let cgroup = PathBuf::from(format!("/sys/fs/cgroup{path}"));
        let limit = fs::read_to_string(cgroup.join("pids.max")).unwrap();
        Self { name, cgroup, limit }
    }

    fn assert_untouched(&self) {
        let read = |file: &str| fs::read_to_string(self.cgroup.join(file)).unwrap();
        assert_eq!(read("cgroup.freeze").trim(), "0", "{}", self.name);
        assert!(read("cgroup.events").contains("frozen 0"), "{}", self.name);
        assert_eq!(read("pids.max"), self.limit, "{}", self.name);
        let mut names = [0; 4096];
        let length = rustix::fs::listxattr(&self.cgroup, &mut names[..]).unwrap();
        let names = String::from_utf8_lossy(&names[..length]).into_owned();
        assert!(!names.contains("mcp-guard"), "{}: {names}", self.name);
    }
}

/// A gateway under the agent's unit. The fields are dropped in this order.
struct Story {
    clients: Vec<Child>,
    unit: Unit,
    keeper: Keeper,
    place: Place,
    container: Container,
}

fn with_engine(socket: &str) -> [&str; 4] {
    let [flag, timeout] = ENGINE_TIMEOUT;
    ["--docker", socket, flag, timeout]
}

impl Story {
    fn begin(engine: Engine, response: &str) -> Self {
        let container = Container::gateway_in(engine, "story").unwrap();
        let place = container.cgroup().unwrap();
        let keeper = Keeper::of(&container);
        let socket = engine.socket().unwrap();
        let policy = policy(&container.name, response);
        let unit = Unit::start(&policy, &with_engine(&socket)).unwrap();
        unit.wait_until("it is guarded", |unit| Ok(unit.guard(place.id).is_ok())).unwrap();
        Self { clients: Vec::new(), unit, keeper, place, container }
    }

    /// Runs the command line for the story's engine.
    fn cli(&self, words: &[&str]) -> Output {
        let socket = self.container.engine.socket().unwrap();
        self.unit.cli(&[&with_engine(&socket), words].concat()).unwrap()
    }

    /// Runs a command that must succeed, and returns its output.
    fn done(&self, words: &[&str]) -> String {
        let done = self.cli(words);
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        let stderr = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(0), "{words:?}: {said}{stderr}");
        said
    }

    /// Checks that every way to name the container means the same cgroup, and that a dry run changes nothing.
    fn answers_to_its_names(&self) {
        let Container { name, id, .. } = &self.container;
        let targets = [
            name.clone(),
            id[..12].to_owned(),
            format!("docker:{name}"),
            format!("cgroup:{}", self.place.path),
            format!("pid:{}", self.container.init().unwrap()),
        ];
        for target in &targets {
            let said = self.done(&["freeze", "--dry-run", target]);
            assert!(said.contains("would write 1 to cgroup.freeze"), "{target}: {said}");
        }
        let intents = self.unit.audit().unwrap().into_iter().filter_map(|record| {
            let Record::Intent { guard, .. } = record else { return None };
            Some(guard.cgroup_id.0)
        });
        assert_eq!(intents.collect::<Vec<_>>(), vec![self.place.id; targets.len()]);
        assert!(!self.place.freeze_requested().unwrap() && !self.place.is_marked_frozen().unwrap());
    }

    /// Sends as many requests as the detector needs to act. Each leaves a server behind.
    fn leak(&mut self) {
        let requests = u32::try_from(ACTS).unwrap();
        self.clients.push(self.container.ask_gateway(requests).unwrap());
    }

    fn live(&self) -> usize {
        let guard = self.unit.guard(self.place.id).ok();
        guard.and_then(|one| one.guard.identities.get(IDENTITY).map(|it| it.live)).unwrap_or(0)
    }

    /// Waits until the agent has acted, and returns the change that it planned for pids.max.
    fn contained_by(&self, response: Response) -> Option<LimitChange> {
        // Waits for one server at a time, because a start takes a second, or ten in a slow guest.
        for count in 1..=usize::try_from(ACTS).unwrap() {
            let what = format!("{count} servers of {IDENTITY}");
            self.unit.wait_until(&what, |_| Ok(self.live() >= count)).unwrap();
        }
        let outcome = |record: &Record| {
            let Record::Outcome { response: done, outcome, timing, .. } = record else {
                return None;
            };
            // A dry run has no timing: nothing was written.
            timing.map(|_| (*done, *outcome))
        };
        let outcome = self.unit.await_record("the outcome", outcome).unwrap();
        let records = self.unit.audit().unwrap();
        assert_eq!(outcome, (response, Outcome::Done), "{records:?}");
        check_order(&records, response)
    }

    /// Compares the agent's list of processes in the container with the kernel's.
    fn agrees_with_the_kernel(&self) {
        let guard = self.unit.guard(self.place.id).unwrap();
        let listed = fs::read_to_string(self.place.unified.join("cgroup.procs")).unwrap();
        let listed: BTreeSet<u32> = listed.lines().map(|line| line.parse().unwrap()).collect();
        assert_eq!(guard.guard.pids.iter().map(|pid| pid.0).collect::<BTreeSet<_>>(), listed);
        let launchers = listed.iter().filter(|pid| is_launcher(**pid)).count();
        assert_eq!(guard.guard.identities[IDENTITY].live, launchers);
        // Nothing that is a part of the server has an identity of its own: no launcher, shell or node, and
        // not the program of the package.
        let parts = ["npm", "npx", "node", "timeout", "env", "sh", "bash", "dash", "busybox"];
        let is_part = |name: &&String| {
            name.as_str() != IDENTITY && (parts.contains(&name.as_str()) || name.contains("magic"))
        };
        let identities = &guard.guard.identities;
        assert_eq!(identities.keys().find(is_part), None, "{identities:?}");
        assert_eq!(guard.container.as_deref(), Some(self.container.id.as_str()));
        assert!(!guard.paused, "the engine did not pause it");
    }

    /// Checks that the gateway answers the earlier requests. If it already has, sends one more.
    fn keeps_answering(&mut self) {
        let mut waiting = false;
        for client in &mut self.clients {
            waiting |= client.try_wait().unwrap().is_none();
            assert!(client.wait().unwrap().success(), "no answer");
        }
        if !waiting {
            self.container.await_answer().unwrap();
        }
    }

    /// Stops the unit, and checks that it leaves no trace on the host.
    fn ends_with_nothing_left(self, limit: &str) {
        self.unit.stop().unwrap();
        let stopped = |record: &Record| matches!(record, Record::AgentStop { .. });
        assert!(self.unit.audit().unwrap().iter().any(stopped));
        let Self { place, keeper, container, .. } = &self;
        assert!(!place.freeze_requested().unwrap() && !place.is_marked_frozen().unwrap());
        assert_eq!(place.pids_max().unwrap(), limit);
        assert!(!place.is_marked_clamped().unwrap());
        keeper.assert_untouched();
        assert_eq!(container.inspect(".State.Status").unwrap(), "running");
    }
}

impl Drop for Story {
    fn drop(&mut self) {
        // Their counterparts are in the container, which is removed after this.
        for client in &mut self.clients {
            let _ = client.kill();
            let _ = client.wait();
        }
    }
}

/// Checks the order of the records: a warning, then the intent with its cause, then the outcome of the same
/// incident.
fn check_order(records: &[Record], wanted: Response) -> Option<LimitChange> {
    let place = |found: &dyn Fn(&Record) -> bool| records.iter().position(found).unwrap();
    let warning = place(&|record| matches!(record, Record::Warning { .. }));
    let decided = |record: &Record| matches!(record, Record::Intent { cause, .. } if cause.detector.is_some());
    let intent = place(&decided);
    let Record::Intent { incident, response, cause, pids_max, .. } = &records[intent] else {
        unreachable!()
    };
    let outcome =
        place(&|record| matches!(record, Record::Outcome { incident: of, .. } if of == incident));
    assert!(warning < intent && intent < outcome, "{records:?}");
    assert_eq!((*response, cause.detector), (wanted, Some(Detector::Duplicates)));
    assert_eq!(cause.identity.as_deref(), Some(IDENTITY));
    assert!(cause.numbers["aged"] >= ACTS && cause.numbers["threshold"] == ACTS, "{cause:?}");
    pids_max.clone()
}

/// Returns whether this is a server's launcher, of which each server has one. Its command line changes while
/// it starts.
fn is_launcher(pid: u32) -> bool {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = String::from_utf8_lossy(&words).replace('\0', " ");
    let words = words.trim();
    let called = words.strip_prefix("/usr/bin/env ").unwrap_or(words);
    words == "npm"
        || words.starts_with("npm exec @21st-dev/magic")
        || called.starts_with("node /usr/bin/npx -y @21st-dev/magic")
}

/// Finds the completed release of this response.
fn release(of: Response) -> impl Fn(&Record) -> Option<(End, Outcome)> {
    move |record| {
        let Record::Release { response, end, outcome, .. } = record else { return None };
        outcome.filter(|_| *response == of).map(|outcome| (*end, outcome))
    }
}

#[test]
fn docker_leaks_are_frozen_and_an_operator_thaws_them() {
    let mut story = Story::begin(Engine::Docker, "freeze");
    let limit = story.place.pids_max().unwrap();
    assert_eq!(story.keeper.name, "containerd-shim");
    story.answers_to_its_names();
    story.leak();
    story.contained_by(Response::Freeze);
    assert!(story.place.is_frozen().unwrap() && story.place.is_marked_frozen().unwrap());
    assert_eq!(story.unit.guard(story.place.id).unwrap().guard.state, GuardState::Frozen);
    story.agrees_with_the_kernel();
    story.keeper.assert_untouched();

    let said = story.done(&["thaw", &story.container.name]);
    assert!(said.contains("cgroup.freeze 0 read back"), "{said}");
    let thawed = story.unit.await_record("its release", release(Response::Freeze)).unwrap();
    assert_eq!(thawed, (End::Operator, Outcome::Done));
    assert!(!story.place.is_frozen().unwrap() && !story.place.is_marked_frozen().unwrap());
    story.keeps_answering();
    story.ends_with_nothing_left(&limit);
}

#[test]
fn podman_leaks_are_clamped_and_a_freeze_ends_with_its_lease() {
    let _service = PodmanService::start().unwrap();
    let mut story = Story::begin(Engine::Podman, "clamp");
    assert_eq!(story.keeper.name, "conmon");
    let monitor = format!("libpod-conmon-{}.scope", story.container.id);
    assert_eq!(story.keeper.cgroup.file_name(), Some(Path::new(&monitor).as_os_str()));
    // crun keeps the payload in a cgroup of its own below the scope, and pauses and limits that cgroup.
    let payload = format!("/machine.slice/libpod-{}.scope/container", story.container.id);
    assert_eq!(story.place.path, payload);
    let limit = story.place.pids_max().unwrap();
    assert_eq!(limit, "2048", "Podman's default for every container");
    story.answers_to_its_names();

    story.leak();
    let LimitChange { found, wanted } = story.contained_by(Response::Clamp).unwrap();
    assert_eq!(found, limit);
    assert!(wanted.parse::<u64>().unwrap() < 1000, "a limit near what runs: {wanted}");
    assert_eq!(story.unit.guard(story.place.id).unwrap().guard.state, GuardState::Clamped);
    assert!(story.place.is_marked_clamped().unwrap());
    assert_ne!(story.place.pids_max().unwrap(), limit);
    assert!(!story.place.is_frozen().unwrap(), "a clamp stops no process");
    story.keeper.assert_untouched();
    story.done(&["thaw", &story.container.name]);
    assert_eq!(story.place.pids_max().unwrap(), limit);
    assert!(!story.place.is_marked_clamped().unwrap());

    story.done(&["freeze", &story.container.name, "--for", "15s"]);
    assert!(story.place.is_frozen().unwrap() && story.place.is_marked_frozen().unwrap());
    story.agrees_with_the_kernel();
    story.keeper.assert_untouched();
    let ended = story.unit.await_record("the lease ends", release(Response::Freeze)).unwrap();
    assert_eq!(ended, (End::LeaseOver, Outcome::Done));
    wait_until("it is thawed", || Ok(!story.place.is_frozen()?)).unwrap();
    story.keeps_answering();
    story.ends_with_nothing_left(&limit);
}
