//! Tasks that stop or end late: without their share of a CPU, in state D on a frozen file system, at a file
//! server that stands still, in a storm of fsync. A freeze is in force from its request to the end of its
//! lease, nothing is born meanwhile, and its outcome is told as it is.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]
#![allow(clippy::print_stderr, reason = "the measured times are a result")]
#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "a test looks for one record and ignores the rest"
)]

use std::{
    any::Any,
    fs,
    io::Write as _,
    os::unix::net::UnixStream,
    process::{Child, Command, Stdio},
    time::Duration,
};

use mcp_guard_core::{
    audit::{Record, Timing},
    id::Incident,
    incident::{End, Outcome},
    policy::Response,
    status::GuardState,
};
use mcp_guard_tests::{
    agent::{Agent, DEADLINE, command},
    cgroup::FixtureCgroup,
    cpu_quota::{CpuQuota, PER_MILLE, PERCENT},
    dead_mount::DeadMount,
    holds::Holds,
    leak::{Leak, LeakPolicy},
    lines::Lines,
    log_disk::LogDisk,
    wait,
};
use rustix::process::Signal;
use serde_json::{Value, json};

const SLEEPERS: u64 = 1000;
const FOUND: u64 = 1500;
/// A request that makes the agent's loop panic. Only debug builds accept it.
const PANIC: &[u8] = b"{\"method\":\"io.mcpguard.Panic\",\"parameters\":{}}\0";
/// Forks until it may not, and would go on after that.
const FORKS: &str = "while :; do sleep 600 & sleep 0.05; done 2>/dev/null";

/// Programs in a scratch cgroup. Killed and reaped on drop.
struct Programs(Vec<Child>);

impl Drop for Programs {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = Child::kill(child);
        }
        for child in &mut self.0 {
            let _ = child.wait();
        }
    }
}

/// The fields are dropped in this order.
struct Scene {
    agent: Agent,
    /// Keeps a task from stopping, until it is dropped.
    obstacle: Option<Box<dyn Any>>,
    programs: Programs,
    cgroup: FixtureCgroup,
}

fn shell(cgroup: &FixtureCgroup, script: &str, argument: &str) -> Child {
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh", argument]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    cgroup.spawn(command).unwrap()
}

/// A thousand sleepers with so little of a CPU that they need seconds to stop, or to end.
fn throttled() -> Scene {
    sleepers(PER_MILLE)
}

fn sleepers(period: Duration) -> Scene {
    let cgroup = FixtureCgroup::new("slow").unwrap();
    cgroup.set_pids_max(FOUND).unwrap();
    let script = "i=0; while [ $i -lt $1 ]; do sleep 600 & i=$((i+1)); done; wait";
    let programs = Programs(vec![shell(&cgroup, script, &SLEEPERS.to_string())]);
    let all = || cgroup.pids_current().unwrap() > SLEEPERS;
    cgroup.wait_until("the sleepers run", DEADLINE, all).unwrap();
    let quota = CpuQuota::over(&cgroup, period).unwrap();
    scene(cgroup, programs, quota)
}

/// A process in state D beside one that forks.
fn blocked() -> Scene {
    let cgroup = FixtureCgroup::new("slow").unwrap();
    cgroup.set_pids_max(FOUND).unwrap();
    let disk = LogDisk::new().unwrap();
    disk.freeze().unwrap();
    let file = disk.path().join("file");
    let writer = shell(&cgroup, "echo > \"$1\"", file.to_str().unwrap());
    let pid = writer.id();
    let programs = Programs(vec![writer, shell(&cgroup, FORKS, "")]);
    let waits = || state_of(pid) == Some('D');
    cgroup.wait_until("the writer is in state D", DEADLINE, waits).unwrap();
    scene(cgroup, programs, disk)
}

/// A process that reads a file whose server stands still, beside one that forks.
fn unserved() -> Scene {
    let cgroup = FixtureCgroup::new("slow").unwrap();
    cgroup.set_pids_max(FOUND).unwrap();
    let server = DeadMount::mapped_in(&cgroup).unwrap();
    let programs = Programs(vec![shell(&cgroup, FORKS, "")]);
    scene(cgroup, programs, server)
}

fn state_of(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

fn scene(cgroup: FixtureCgroup, programs: Programs, obstacle: impl Any) -> Scene {
    // Detectors ask for nothing, so that every outcome is an operator's.
    let policy = format!("[[guard]]\ncgroup = \"{}\"\nhighest = \"record\"\n", cgroup.path());
    let agent = Agent::start(&policy).unwrap();
    Scene { agent, obstacle: Some(Box::new(obstacle)), programs, cgroup }
}

impl Scene {
    fn target(&self) -> String {
        format!("cgroup:{}", self.cgroup.path())
    }

    /// Runs a command that is answered as requested, and returns what it says.
    fn request(&self, arguments: &[&str]) -> String {
        let output = self.agent.cli(&[arguments, &[&self.target()]].concat()).unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(" requested: "), "{said}");
        said
    }

    /// Sends a request, and does not wait for its answer.
    fn send_freeze(&self) -> UnixStream {
        let call = json!({ "method": "io.mcpguard.Freeze", "parameters": {
            "cgroup": self.cgroup.path(), "cgroup_id": self.cgroup.id(), "name": "it",
            "paused": false, "lease_ms": 60_000, "dry_run": false } });
        let mut stream = UnixStream::connect(self.agent.socket()).unwrap();
        stream.write_all(&[call.to_string().as_bytes(), &[0]].concat()).unwrap();
        stream
    }

    fn thaw(&self) -> Value {
        let place = json!({ "cgroup": self.cgroup.path(), "cgroup_id": self.cgroup.id(),
            "name": "it", "paused": false });
        self.agent.call("io.mcpguard.Thaw", &place).unwrap()["parameters"].clone()
    }

    fn holds(&self) -> Holds {
        Holds::of(&self.cgroup).unwrap()
    }

    /// The freeze is requested, the kernel has not confirmed it, and nothing more may be born.
    fn assert_stopping(&self) {
        let holds = self.holds();
        assert!(holds.freeze && !holds.frozen, "{holds:?}");
        let beside = holds.clamp_mark.as_ref().expect("the mark of the limit");
        assert!(beside.ends_with_a_freeze(), "{beside:?}");
        assert_eq!(beside.incident, holds.freeze_mark.as_ref().unwrap().incident);
        assert_eq!(beside.found, Some(FOUND.to_string()));
        let limit: u64 = holds.pids_max.parse().unwrap();
        assert!(self.cgroup.pids_current().unwrap() <= limit && limit < FOUND, "{holds:?}");
        let guard = self.agent.guard(self.cgroup.id()).unwrap();
        assert_eq!(guard.guard.state, GuardState::Frozen);
        assert!(guard.stopping.is_some_and(|tasks| tasks > 0), "{:?}", guard.stopping);
    }

    fn assert_released(&self) {
        let holds = self.holds();
        assert!(!holds.freeze && holds.freeze_mark.is_none(), "{holds:?}");
        assert_eq!((holds.pids_max, holds.clamp_mark), (FOUND.to_string(), None));
    }

    /// Returns the outcomes of a response, each with its incident.
    fn outcomes(&self, of: Response) -> Vec<(Incident, Outcome, Option<Timing>)> {
        let audit = self.agent.audit().unwrap();
        let outcomes = audit.into_iter().filter_map(|record| match record {
            Record::Outcome { incident, response, outcome, timing, .. } if response == of => {
                Some((incident, outcome, timing))
            }
            _ => None,
        });
        outcomes.collect()
    }

    /// Waits for the outcomes of the only incident of a response.
    fn await_outcomes(&mut self, of: Response, expected: &[Outcome]) {
        let what = format!("{of}: {expected:?}");
        let cgroup = &self.cgroup;
        let outcomes = |agent: &Agent| {
            let audit = agent.audit().unwrap();
            let all = audit.into_iter().filter_map(|record| match record {
                Record::Outcome { response, outcome, .. } if response == of => Some(outcome),
                _ => None,
            });
            let mut all: Vec<_> = all.collect();
            all.dedup();
            all
        };
        let reached = self.agent.wait_until(&what, |agent| Ok(outcomes(agent) == expected));
        reached.unwrap_or_else(|error| {
            panic!("{error}: {:?}, {:?}", outcomes(&self.agent), Holds::of(cgroup))
        });
        let all = self.outcomes(of);
        assert!(all.iter().all(|(incident, ..)| *incident == all[0].0), "{all:?}");
    }

    /// Freezes and thaws again and again, and prints how long the request took.
    fn time_requests(&self, what: &str, times: usize) {
        for _ in 0..times {
            let asked = self.send_freeze();
            let requested =
                || Ok(fs::read(self.cgroup.unified_dir().join("cgroup.freeze"))? == b"1\n");
            assert!(wait::until(DEADLINE, requested).unwrap());
            assert_eq!(self.thaw()["outcome"], "done");
            drop(asked);
        }
        let timings = || self.outcomes(Response::Freeze).into_iter().filter_map(|one| one.2);
        // The log is written by a thread of its own.
        let is_logged = || Ok(timings().count() >= times);
        assert!(wait::until(DEADLINE, is_logged).unwrap(), "{}", timings().count());
        let mut late: Vec<f64> = timings().map(|one| one.written_us as f64 / 1000.0).collect();
        late.sort_by(f64::total_cmp);
        let share = |share: f64| late[((late.len() - 1) as f64 * share).round() as usize];
        eprintln!(
            "{what}: cgroup.freeze written after {:.2} ms (p50), {:.2} ms (p99), {:.2} ms (most) \
             in {times} freezes",
            share(0.5),
            share(0.99),
            share(1.0)
        );
    }
}

#[test]
fn a_freeze_lasts_from_its_request_to_the_end_of_its_lease() {
    let scenes: [(fn() -> Scene, bool); 3] =
        [(throttled, true), (blocked, false), (unserved, false)];
    for (make, may_stop) in scenes {
        let mut scene = make();
        let said = scene.request(&["freeze", "--for", "6s"]);
        assert!(said.contains("not stopped yet"), "{said}");
        scene.assert_stopping();
        let born = scene.cgroup.pids_current().unwrap();
        assert_eq!(scene.holds().pids_max, born.to_string());
        // Another request changes nothing.
        let again = scene.agent.cli(&["freeze", &scene.target()]).unwrap();
        assert!(String::from_utf8(again.stdout).unwrap().contains("already frozen by mcp-guard"));
        let released = |record: &Record| match record {
            Record::Release { end, outcome: Some(outcome), .. } => Some((*end, *outcome)),
            _ => None,
        };
        let mut most = 0;
        let cgroup = &scene.cgroup;
        let ended = scene.agent.wait_until("the end of the lease", |agent| {
            let tasks = cgroup.pids_current()?;
            // It was frozen when they were counted.
            if Holds::of(cgroup)?.freeze {
                most = most.max(tasks);
            }
            Ok(agent.audit()?.iter().find_map(released).is_some())
        });
        ended.unwrap();
        let end = scene.agent.audit().unwrap().iter().find_map(released);
        assert_eq!(end, Some((End::LeaseOver, Outcome::Done)));
        scene.assert_released();
        assert_eq!(most, born, "nothing is born");
        let said = scene.outcomes(Response::Freeze);
        let outcomes: Vec<_> = said.iter().map(|one| one.1).collect();
        assert_eq!(outcomes[..2], [Outcome::Requested, Outcome::NotOurs]);
        // The throttled tasks may get their share of the CPU in time.
        let is_last = |one| one == Outcome::NotNeeded || (may_stop && one == Outcome::Done);
        assert!(outcomes.len() == 3 && is_last(outcomes[2]), "{outcomes:?}");
        assert_eq!(said[0].0, said[2].0, "the last word belongs to the first incident");
        assert_eq!(scene.agent.guard(scene.cgroup.id()).unwrap().stopping, None);
    }
}

#[test]
fn a_freeze_is_done_when_its_last_task_stops() {
    for make in [throttled, blocked] {
        let mut scene = make();
        scene.request(&["freeze", "--for", "120s"]);
        scene.await_outcomes(Response::Freeze, &[Outcome::Requested]);
        drop(scene.obstacle.take());
        scene.await_outcomes(Response::Freeze, &[Outcome::Requested, Outcome::Done]);
        let holds = scene.holds();
        assert!(holds.freeze && holds.frozen, "{holds:?}");
        let timing = scene.outcomes(Response::Freeze)[1].2.unwrap();
        assert!(timing.confirmed_us.unwrap() > 2_000_000, "{timing:?}");
        assert_eq!(scene.agent.guard(scene.cgroup.id()).unwrap().stopping, None);
        assert_eq!(scene.thaw()["outcome"], "done");
        scene.assert_released();
    }
}

#[test]
fn a_kill_is_done_when_the_last_task_ends() {
    for make in [throttled, blocked] {
        let mut scene = make();
        let said = scene.request(&["kill"]);
        assert!(said.contains("not ended yet"), "{said}");
        let guard = scene.agent.guard(scene.cgroup.id()).unwrap();
        assert!(guard.stopping.is_some_and(|tasks| tasks > 0), "{:?}", guard.stopping);
        drop(scene.obstacle.take());
        scene.await_outcomes(Response::Kill, &[Outcome::Requested, Outcome::Done]);
        assert_eq!(scene.agent.guard(scene.cgroup.id()).unwrap().stopping, None);
    }
}

/// How an agent ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AgentEnd {
    Terminated,
    Panics,
    Killed,
}

#[test]
fn the_end_of_the_agent_gives_back_what_is_still_stopping() {
    for end in [AgentEnd::Terminated, AgentEnd::Panics, AgentEnd::Killed] {
        let mut scene = blocked();
        scene.request(&["freeze", "--for", "120s"]);
        scene.assert_stopping();
        match end {
            AgentEnd::Terminated => scene.agent.signal(Signal::TERM).unwrap(),
            AgentEnd::Panics => drop(scene.agent.converse(PANIC, 1).unwrap()),
            AgentEnd::Killed => scene.agent.signal(Signal::KILL).unwrap(),
        }
        let status = scene.agent.ended().unwrap();
        assert_eq!(status.success(), end == AgentEnd::Terminated, "{status}");
        if end == AgentEnd::Killed {
            let output = scene.agent.cli(&["thaw", "--owned"]).unwrap();
            assert_eq!(output.status.code(), Some(0), "{output:?}");
        } else {
            let said = scene.outcomes(Response::Freeze);
            assert_eq!(said.last().unwrap().1, Outcome::NotNeeded, "{end:?}");
        }
        scene.assert_released();
        let audit = scene.agent.audit().unwrap();
        let ended = |record: &&Record| matches!(record, Record::Release { outcome: Some(_), .. });
        assert_eq!(
            audit.iter().filter(ended).count(),
            1,
            "{end:?}: one hold, one release: {audit:?}"
        );
    }
}

/// Without an agent, the command holds the freeze itself.
#[test]
fn a_foreground_freeze_that_is_requested_lasts_until_its_time_is_up() {
    let mut scene = blocked();
    scene.agent.signal(Signal::TERM).unwrap();
    assert!(scene.agent.ended().unwrap().success());
    let mut command = command(scene.agent.folder(), "/nonexistent").unwrap();
    command.args(["freeze", "--for", "4s", &scene.target()]).stdout(Stdio::piped());
    let mut programs = Programs(vec![command.spawn().unwrap()]);
    let said = Lines::of(programs.0[0].stdout.take().unwrap());
    let first = said.next().unwrap().unwrap();
    assert!(first.contains("freeze requested (") && first.contains("not stopped yet"), "{first}");
    assert!(scene.holds().freeze);
    assert!(programs.0[0].wait().unwrap().success());
    scene.assert_released();
}

/// The clamp is made first, and a slow freeze lowers its limit further.
#[test]
fn a_freeze_gives_the_limit_of_a_clamp_back_to_it() {
    let Scene { mut agent, obstacle, programs, cgroup } = blocked();
    agent.signal(Signal::TERM).unwrap();
    assert!(agent.ended().unwrap().success());
    let _leak = Leak::start(&cgroup, 4).unwrap();
    let agent = Agent::start(&LeakPolicy::enforcing(&cgroup, "clamp").toml()).unwrap();
    let mut scene = Scene { agent, obstacle, programs, cgroup };
    scene.await_outcomes(Response::Clamp, &[Outcome::Done]);
    let clamp: u64 = scene.holds().pids_max.parse().unwrap();
    assert!(clamp < FOUND);
    scene.request(&["freeze", "--for", "60s"]);
    let holds = scene.holds();
    assert!(holds.freeze && holds.pids_max.parse::<u64>().unwrap() < clamp, "{holds:?}");
    assert_eq!(
        scene.agent.guard(scene.cgroup.id()).unwrap().guard.state.to_string(),
        "frozen, clamped"
    );
    // Both end: first the freeze, which restores the clamp's limit, then the clamp.
    let ended = scene.thaw();
    let said = ended["detail"].as_str().unwrap();
    assert_eq!(ended["outcome"], "done", "{said}");
    assert!(said.contains(&format!("-> {clamp} read back")), "{said}");
    assert!(said.contains(&format!("{clamp} -> {FOUND} read back")), "{said}");
    scene.assert_released();
}

/// A lower limit would fail the fork that a task is in the middle of, and many programs end then.
#[test]
fn a_prompt_freeze_fails_no_fork_in_flight() {
    let cgroup = FixtureCgroup::new("slow").unwrap();
    cgroup.set_pids_max(FOUND).unwrap();
    // A large shell spends its time in fork, and it ends if a fork fails.
    let script =
        "x=$(head -c 64000000 /dev/zero | tr '\\0' x); echo > \"$1\"; while :; do (:); done";
    let folder = tempfile::tempdir().unwrap();
    let ready = ["a", "b"].map(|name| folder.path().join(name));
    let programs =
        Programs(ready.iter().map(|file| shell(&cgroup, script, file.to_str().unwrap())).collect());
    let are_ready = || ready.iter().all(|file| file.exists());
    cgroup.wait_until("the shells fork", DEADLINE, are_ready).unwrap();
    let mut scene = scene(cgroup, programs, ());
    for _ in 0..50 {
        let frozen = scene.agent.cli(&["freeze", "--for", "60s", &scene.target()]).unwrap();
        assert!(frozen.status.success(), "{frozen:?}");
        assert_eq!(scene.thaw()["outcome"], "done");
    }
    for program in &mut scene.programs.0 {
        assert_eq!(program.try_wait().unwrap(), None, "a fork failed");
    }
    scene.assert_released();
}

#[test]
fn a_freeze_is_requested_at_once_whatever_the_tasks_wait_for() {
    sleepers(PERCENT).time_requests("1,000 sleepers with 1 % of a CPU", 50);
    blocked().time_requests("a task in state D", 50);
    unserved().time_requests("a file server that stands still", 50);
    let cgroup = FixtureCgroup::new("slow").unwrap();
    cgroup.set_pids_max(FOUND).unwrap();
    let disk = LogDisk::new().unwrap();
    let script = "while :; do dd if=/dev/zero of=\"$1\" bs=64k count=16 conv=fsync; done";
    let files = ["a", "b", "c", "d"].map(|name| disk.path().join(name));
    let storm = files.iter().map(|file| shell(&cgroup, script, file.to_str().unwrap()));
    let programs = Programs(storm.collect());
    let scene = scene(cgroup, programs, disk);
    scene.time_requests("a storm of fsync", 50);
    scene.assert_released();
}
