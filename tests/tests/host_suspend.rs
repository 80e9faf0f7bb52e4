//! Single servers are suspended and wake: real processes, a real warden, and what becomes of them when one of both dies.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]
#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "a test looks for one record and ignores the rest"
)]

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use mcp_guard_core::{audit::Record, id::Pid, server_order::ResumedBy, status::ServerStatus};
use mcp_guard_tests::{agent::Agent, cgroup::FixtureCgroup, echo::Echo, fact, wait};
use rustix::process::{Signal, kill_process};

/// Other processes in the guard, which no order may touch: they run, start others, or wait for something else.
const OTHERS: [&str; 7] = [
    "select undef, undef, undef, 0.01 while 1",
    "while (1) { if (!fork) { exit } wait; select undef, undef, undef, 0.01 }",
    "while (1) { if (!fork) { sleep 1; exit } select undef, undef, undef, 0.3; waitpid -1, 1 }",
    "select undef, undef, undef, 0.05; exec $^X, '-e', $ENV{SELF}",
    "use POSIX; if (!fork) { POSIX::setsid(); sleep 600 while 1 } sysread STDIN, $b, 1; sleep 600 while 1",
    "$SIG{ALRM} = sub { alarm 1 }; alarm 1; 1 while 1 + sysread STDIN, $b, 1",
    "pipe R, W; if (!fork) { sysread STDIN, $b, 1; exit } sysread R, $b, 1",
];

/// Long enough for two looks on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest time until a suspended server answers if neither the agent nor the warden can help at once.
const AT_MOST: Duration = Duration::from_secs(2);

/// A guard with some servers, and its agent.
struct World {
    agent: Agent,
    cgroup: FixtureCgroup,
    policy: String,
    servers: Vec<Echo>,
    folder: tempfile::TempDir,
}

impl World {
    fn new(name: &str, servers: usize) -> Self {
        let cgroup = FixtureCgroup::new(name).unwrap();
        let folder = tempfile::Builder::new().prefix("mcp-guard-test-").tempdir().unwrap();
        let policy = format!(
            "[evidence]\nevery = \"1s\"\n[[guard]]\ncgroup = \"{}\"\nhighest = \"record\"\n",
            cgroup.path()
        );
        let agent = Agent::start(&policy).unwrap();
        let servers = (0..servers).map(|_| Echo::start(&cgroup, folder.path()).unwrap()).collect();
        Self { agent, cgroup, policy, servers, folder }
    }

    fn listed(&self) -> Vec<ServerStatus> {
        self.agent.servers(&[self.cgroup.path()]).unwrap().guards.remove(0).servers
    }

    fn run(&self, words: &[&str]) -> (Option<i32>, String) {
        let target = format!("cgroup:{}", self.cgroup.path());
        let mut all = vec![words[0], &target];
        all.extend(&words[1..]);
        let output = self.agent.cli(&all).unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned())
    }

    /// Waits until all servers are known to be quiescent.
    fn await_quiescence(&self) {
        let is_ready = |pid: Pid| {
            self.listed().iter().any(|one| {
                one.pid == pid && one.quiescent == Some(true) && one.idle_seconds >= Some(1)
            })
        };
        for server in &self.servers {
            let reached = wait::until(PATIENCE, || Ok(is_ready(server.pid()))).unwrap();
            assert!(reached, "{:?}\n{}", self.listed(), self.agent.log());
        }
    }

    /// Suspends all servers.
    fn suspend_all(&self) {
        self.await_quiescence();
        let (code, text) = self.run(&["suspend", "--idle", "1s", "--keep", "0"]);
        let expected = format!("{} server", self.servers.len());
        assert!(
            code == Some(0) && text.contains(&expected) && text.contains("suspended"),
            "{text}"
        );
        for server in &self.servers {
            assert!(!server.is_in(&self.cgroup).unwrap(), "{text}");
        }
        assert_eq!(self.children(), self.servers.len());
        assert!(self.listed().iter().all(|one| one.suspended_seconds.is_some()));
    }

    /// Counts the cgroups of single servers.
    fn children(&self) -> usize {
        self.child_folders().len()
    }

    fn child_folders(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.cgroup.unified_dir()).unwrap().flatten();
        let is_ours =
            |one: &fs::DirEntry| one.file_name().to_string_lossy().starts_with("mcp-guard-");
        entries.filter(is_ours).map(|one| one.path()).collect()
    }

    /// Waits until all servers are back in their cgroup, and nothing of ours is left.
    fn await_all_back(&self) {
        let is_back = || {
            Ok(self.children() == 0
                && self.servers.iter().all(|one| one.is_in(&self.cgroup).unwrap()))
        };
        assert!(wait::until(PATIENCE, is_back).unwrap(), "{}", self.agent.log());
    }

    fn resumed(&self) -> Vec<(Pid, ResumedBy)> {
        let resumed = |record| match record {
            Record::Resume { pid, by, .. } => Some((pid, by)),
            _ => None,
        };
        self.agent.audit().unwrap().into_iter().filter_map(resumed).collect()
    }

    fn await_resumed(&self, pid: Pid, by: ResumedBy) {
        let is_it = || Ok(self.resumed().contains(&(pid, by)));
        assert!(
            wait::until(PATIENCE, is_it).unwrap(),
            "{:?}\n{}",
            self.resumed(),
            self.agent.log()
        );
    }

    /// Returns the process of the warden.
    fn warden(&self) -> rustix::process::Pid {
        // A thread of the agent may have started it.
        let tasks = fs::read_dir(format!("/proc/{}/task", self.agent.pid())).unwrap().flatten();
        let children =
            tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
        let all: Vec<i32> = children
            .flat_map(|text| {
                text.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>()
            })
            .collect();
        assert_eq!(all.len(), 1, "{all:?}");
        rustix::process::Pid::from_raw(all[0]).unwrap()
    }
}

#[test]
fn a_suspended_server_wakes_when_it_is_asked() {
    let mut world = World::new("suspend", 4);
    world.suspend_all();
    let (first, second) = (world.servers[0].pid(), world.servers[1].pid());
    // A request.
    let took = world.servers[0].ask().unwrap();
    fact::measure("answer of a suspended server", format!("{took:?}")).unwrap();
    world.await_resumed(first, ResumedBy::Request);
    assert!(wait::until(PATIENCE, || Ok(world.servers[0].is_in(&world.cgroup).unwrap())).unwrap());
    // A signal that it handles.
    kill_process(rustix::process::Pid::from_raw(second.0 as i32).unwrap(), Signal::TERM).unwrap();
    assert_eq!(world.servers[1].exit().unwrap().code(), Some(7));
    world.await_resumed(second, ResumedBy::Signal);
    // The end of its input.
    world.servers[2].hang_up();
    assert_eq!(world.servers[2].exit().unwrap().code(), Some(0));
    world.await_resumed(world.servers[2].pid(), ResumedBy::HungUp);
    // Its death.
    world.servers[3].kill().unwrap();
    assert_eq!(world.servers[3].exit().unwrap().signal(), Some(9));
    world.await_resumed(world.servers[3].pid(), ResumedBy::Ended);
    world.servers.truncate(1);
    world.await_all_back();
    let (code, text) = world.run(&["resume"]);
    assert!(code == Some(0) && text.contains("no server is suspended"), "{text}");
}

#[test]
fn an_operator_resumes_servers_and_so_does_the_end_of_the_agent() {
    let mut world = World::new("resume", 3);
    world.suspend_all();
    let (code, text) = world.run(&["resume"]);
    assert!(code == Some(0) && text.contains("servers that run again: 3"), "{text}");
    world.await_all_back();
    for server in &mut world.servers {
        server.ask().unwrap();
    }
    let is_due = || Ok(world.listed().iter().all(|one| one.suspended_seconds.is_none()));
    assert!(wait::until(PATIENCE, is_due).unwrap());
    world.suspend_all();
    world.agent.signal(Signal::TERM).unwrap();
    assert!(world.agent.ended().unwrap().success());
    assert_eq!(world.children(), 0, "nothing waits for the next agent");
    for server in &mut world.servers {
        assert!(server.is_in(&world.cgroup).unwrap());
        server.ask().unwrap();
    }
}

#[test]
fn requests_are_answered_although_the_agent_or_the_warden_dies_or_hangs() {
    for (name, kills_agent, signal) in [
        ("suspend-a", true, Signal::KILL),
        ("suspend-b", true, Signal::STOP),
        ("suspend-c", false, Signal::KILL),
        ("suspend-d", false, Signal::STOP),
    ] {
        let mut world = World::new(name, 3);
        world.suspend_all();
        let warden = world.warden();
        if kills_agent {
            world.agent.signal(signal).unwrap();
        } else {
            kill_process(warden, signal).unwrap();
        }
        for server in &mut world.servers {
            let took = server.ask().unwrap();
            assert!(took < AT_MOST, "{name}: {took:?}");
        }
        match (kills_agent, signal) {
            (true, Signal::KILL) => {
                world.agent.ended().unwrap();
                let World { agent, cgroup, policy, servers, folder } = world;
                let agent = agent.restart(&policy).unwrap();
                world = World { agent, cgroup, policy, servers, folder };
            }
            (true, _) => world.agent.signal(Signal::CONT).unwrap(),
            (false, _) => {}
        }
        world.await_all_back();
        for server in &mut world.servers {
            server.ask().unwrap();
        }
    }
}

#[test]
fn both_are_killed_and_what_they_held_is_given_back_later() {
    let mut world = World::new("suspend-e", 3);
    world.suspend_all();
    let warden = world.warden();
    // One after the other: the first one would see the end of the second.
    kill_process(warden, Signal::STOP).unwrap();
    world.agent.signal(Signal::KILL).unwrap();
    world.agent.ended().unwrap();
    kill_process(warden, Signal::KILL).unwrap();
    let output = world.agent.cli(&["thaw", "--owned"]).unwrap();
    assert!(output.status.success(), "{output:?}");
    world.await_all_back();
    for server in &mut world.servers {
        server.ask().unwrap();
    }
}

/// Processes that no order may touch, in one guard with servers that are suspended and resumed all the time.
struct Bystanders(Vec<Child>);

impl Bystanders {
    fn start(cgroup: &FixtureCgroup, count: usize) -> Self {
        let start = |number: usize| {
            let script = OTHERS[number % OTHERS.len()];
            let mut command = Command::new("perl");
            command.args(["-e", script]).env("SELF", script);
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
            cgroup.spawn(command).unwrap()
        };
        Self((0..count).map(start).collect())
    }
}

impl Drop for Bystanders {
    fn drop(&mut self) {
        for one in &mut self.0 {
            let _ = one.kill();
            let _ = one.wait();
        }
    }
}

#[test]
fn no_other_process_is_moved_or_stopped() {
    let mut world = World::new("suspend-f", 5);
    world.cgroup.set_pids_max(300).unwrap();
    let mut others = Bystanders::start(&world.cgroup, 4 * OTHERS.len());
    for round in 0..4 {
        world.await_quiescence();
        let (code, text) = world.run(&["suspend", "--idle", "0s", "--keep", "0"]);
        assert_eq!(code, Some(0), "{text}");
        let chosen: Vec<i32> = world.servers.iter().map(|one| one.pid().0 as i32).collect();
        for folder in world.child_folders() {
            let inside = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            let inside: Vec<i32> = inside.lines().map(|pid| pid.parse().unwrap()).collect();
            assert!(inside.iter().all(|pid| chosen.contains(pid)), "{inside:?} {text}");
        }
        for other in &mut others.0 {
            assert!(other.try_wait().unwrap().is_none(), "round {round}");
            let pid = i32::try_from(other.id()).unwrap();
            assert!(world.cgroup.procs().unwrap().contains(&pid), "round {round}: {text}");
        }
        if round % 2 == 0 {
            for server in &mut world.servers {
                server.ask().unwrap();
            }
        } else {
            assert_eq!(world.run(&["resume"]).0, Some(0));
        }
        world.await_all_back();
    }
    let suspended = world.resumed().len();
    assert!(suspended >= 5, "{suspended}");
}
