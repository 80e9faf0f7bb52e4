//! The agent as the package's systemd unit. However the agent ends, systemd sees how, and no hold is left
//! behind.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]
#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "a test looks for one record and ignores the rest"
)]

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::{fs::OpenOptionsExt as _, net::UnixStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use mcp_guard::control::lock;
use mcp_guard_core::{audit::Record, policy::Mode};
use mcp_guard_tests::{
    cgroup::FixtureCgroup,
    echo::Echo,
    holds::Holds,
    leak::{Leak, LeakPolicy, observing},
    sleeper::Sleeper,
    unit::{
        AGAIN, PATIENCE, PROGRAM, State, THAW, UNIT, Unit,
        scenes::{ByHand, Journal, NoRoom},
    },
    workload,
};
use rustix::{
    fs::{CWD, FileType, Mode as FileMode, mknodat},
    process::{Pid, Signal, kill_process},
};

const FOUND: u64 = 200;

/// A cgroup with a process in it.
struct Victim {
    _sleeper: Sleeper,
    cgroup: FixtureCgroup,
}

impl Victim {
    fn new(what: &str) -> Self {
        let cgroup = FixtureCgroup::new(what).unwrap();
        cgroup.set_pids_max(FOUND).unwrap();
        Self { _sleeper: Sleeper::start(&cgroup).unwrap(), cgroup }
    }

    fn target(&self) -> String {
        format!("cgroup:{}", self.cgroup.path())
    }

    fn holds(&self) -> Holds {
        Holds::of(&self.cgroup).unwrap()
    }

    /// Checks that it is frozen, and that the mark names this process as the holder.
    fn assert_held_by(&self, holder: u32) {
        let holds = self.holds();
        assert!(holds.freeze && holds.frozen, "{holds:?}");
        assert_eq!(holds.freeze_mark.unwrap().holder.0, holder);
    }

    fn assert_free(&self) {
        assert_eq!(self.holds(), Holds::nothing(FOUND));
    }

    /// Freezes it through the unit's agent.
    fn freeze_by(&self, unit: &Unit) {
        let output = unit.cli(&["freeze", &self.target(), "--for", "1h"]).unwrap();
        assert!(output.status.success(), "{output:?}");
        self.assert_held_by(unit.main_pid().unwrap());
    }

    /// Leaves it with an orphan: a freeze whose holder, a `freeze` without an agent, was killed.
    fn orphan(&self) {
        let mut command = Command::new(PROGRAM);
        command.args(["freeze", &self.target(), "--for", "1h"]).stdout(Stdio::null());
        let mut freezer = command.spawn().unwrap();
        let frozen = || self.cgroup.is_frozen().unwrap();
        let reached = self.cgroup.wait_until("frozen", PATIENCE, frozen);
        freezer.kill().unwrap();
        freezer.wait().unwrap();
        reached.unwrap();
        self.assert_held_by(freezer.id());
    }
}

fn pipe(unit: &Unit, name: &str) -> PathBuf {
    let path = unit.folder().join(name);
    mknodat(CWD, &path, FileType::Fifo, FileMode::from_raw_mode(0o600), 0).unwrap();
    path
}

/// Returns the starts, stops and releases of the audit log, in order.
fn story(unit: &Unit) -> Vec<String> {
    let shown = |record| match record {
        Record::AgentStart { .. } => Some("start".to_owned()),
        Record::AgentStop { reason } => Some(format!("stop: {reason}")),
        Record::Release { end, outcome: Some(outcome), .. } => Some(format!("{end:?} {outcome:?}")),
        _ => None,
    };
    unit.audit().unwrap().into_iter().filter_map(shown).collect()
}

/// Waits until the unit's own ExecStopPost=, and not the service that runs on failure, has released a hold
/// this many times.
fn await_stop_post(unit: &Unit, times: usize) {
    let logged = |unit: &Unit| Ok(unit.journal().matches(": thaw done: ").count() == times);
    unit.wait_until("ExecStopPost= has logged its releases", logged).unwrap();
}

fn waits_for_restart(state: &State) -> bool {
    state.sub == "auto-restart"
}

#[test]
fn the_unmodified_package_starts_and_observes() {
    let unit = Unit::installed().unwrap();
    unit.started().unwrap();
    let status = unit.status().unwrap();
    assert_eq!(status.mode, Mode::Observe);
    let state = unit.state().unwrap();
    assert_eq!(state.main_pid, status.pid.0);
    assert!(state.status.starts_with("observe, "), "{state:?}");
    let limits = fs::read_to_string(format!("/proc/{}/limits", state.main_pid)).unwrap();
    let open = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    // Enough for two per guard at 1,024 guards, and for everything else.
    assert_eq!(open.unwrap().split_whitespace().next(), Some("65536"), "{limits}");
    // The service that releases holds after a failure has nothing to do while an agent runs.
    assert!(Command::new("systemctl").args(["start", THAW]).status().unwrap().success());
}

#[test]
fn systemd_accepts_every_line_of_the_units() {
    let mut command = Command::new("systemd-analyze");
    let output = command.args(["verify", "--man=no", UNIT, THAW, AGAIN]).output().unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("mcp-guard")).collect();
    assert!(ours.is_empty(), "{ours:#?}");
    assert!(output.status.success(), "{said}");
}

/// The other tests show that the agent can do its work all the same.
#[test]
fn the_units_are_confined() {
    for unit in [UNIT, THAW] {
        let mut command = Command::new("systemd-analyze");
        // In tenths.
        let output = command.args(["security", "--threshold=27", "--no-pager", unit]).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
    let unit = Unit::installed().unwrap();
    unit.started().unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", unit.main_pid().unwrap())).unwrap();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    assert_eq!((field("NoNewPrivs:").trim(), field("Seccomp:").trim()), ("1", "2"), "{status}");
    // CAP_DAC_OVERRIDE, KILL, SYS_PTRACE, SYS_ADMIN, SYS_NICE, PERFMON and BPF.
    let all: u64 = [1, 5, 19, 21, 23, 38, 39].map(|bit| 1 << bit).iter().sum();
    assert_eq!(u64::from_str_radix(field("CapEff:").trim(), 16).unwrap(), all, "{status}");
    assert_ne!(field("VmLck:").trim(), "0 kB", "{status}");
    // At the top of the tree, where its weights and its protected memory count.
    let memory = fs::read_to_string("/sys/fs/cgroup/mcp-guard.service/memory.min").unwrap();
    assert_eq!(memory.trim(), (32 << 20).to_string());
    let journal = unit.journal();
    assert!(!journal.contains("cannot lock") && !journal.contains("cannot raise"), "{journal}");
}

#[test]
fn the_unit_is_active_only_when_the_agent_is_ready() {
    let victim = Victim::new("ready");
    victim.orphan();
    let mut unit = Unit::prepare(&observing(&victim.cgroup), &[], "").unwrap();
    // The agent opens its audit log before it does anything else, and waits there for a reader.
    let audit = pipe(&unit, "audit");
    let more = ["--audit", audit.to_str().unwrap()];
    unit.drop_in(&unit.exec_start(&unit.policy(), &more)).unwrap();
    unit.begin().unwrap();
    unit.wait_until("the agent has its lock", |unit| {
        let pid = unit.state()?.main_pid;
        Ok(pid != 0 && lock::holder(Path::new(lock::DEFAULT_RUN_DIR)).map(|pid| pid.0) == Some(pid))
    })
    .unwrap();
    assert_eq!(unit.state().unwrap().active, "activating");
    assert!(unit.status().is_err());

    let _reader =
        OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&audit).unwrap();
    unit.await_state("active", |state| state.active == "active").unwrap();
    // By then it answers, has released the orphan, and guards what the policy names.
    let guard = unit.guard(victim.cgroup.id()).unwrap();
    assert_eq!(guard.guard.processes, 1);
    victim.assert_free();
    assert_eq!(unit.state().unwrap().status, "observe, 1 guard");
}

#[test]
fn a_stop_is_orderly_and_releases_every_hold() {
    let victim = Victim::new("stop");
    let unit = Unit::start(&observing(&victim.cgroup), &[]).unwrap();
    victim.freeze_by(&unit);
    unit.stop().unwrap();
    victim.assert_free();
    let state = unit.state().unwrap();
    assert_eq!((state.active.as_str(), state.result.as_str()), ("inactive", "success"));
    assert_eq!(story(&unit), ["start", "Shutdown Done", "stop: SIGTERM"]);
}

/// Sends a signal to the unit's agent. Checks the result that systemd reports, that no hold is left behind,
/// and that systemd restarts the agent.
fn ends_without_holds_and_is_restarted(victim: &Victim, unit: &Unit, by: Signal, how: &str) {
    victim.freeze_by(unit);
    let first = unit.main_pid().unwrap();
    unit.signal(by).unwrap();
    let state = unit.await_state("it will be restarted", waits_for_restart).unwrap();
    assert_eq!(state.result, how);
    victim.assert_free();
    let state = unit.await_state("restarted", |state| state.active == "active").unwrap();
    assert_ne!(state.main_pid, first);
    assert_eq!(unit.status().unwrap().pid.0, state.main_pid);
    assert_eq!(story(unit), ["start", "Reconcile Done", "start"]);
    await_stop_post(unit, 1);
}

#[test]
fn a_killed_agent_leaves_no_hold_and_is_restarted() {
    let victim = Victim::new("killed");
    let unit = Unit::start(&observing(&victim.cgroup), &[]).unwrap();
    ends_without_holds_and_is_restarted(&victim, &unit, Signal::KILL, "signal");
}

/// A request that makes the agent's loop panic. Only debug builds accept it.
const PANIC: &[u8] = b"{\"method\":\"io.mcpguard.Panic\",\"parameters\":{}}\0";

#[test]
fn a_panicking_agent_releases_its_holds_and_is_restarted() {
    let victim = Victim::new("panic");
    let mut unit = Unit::prepare(&observing(&victim.cgroup), &[], "").unwrap();
    // The package's program is a release build, which cannot be made to panic.
    let lines = unit.exec_start(&unit.policy(), &[]);
    let program = workload("mcp-guard").unwrap().display().to_string();
    // Nor may the unit run another program.
    let lines = format!("{}ExecPaths={program}\n", lines.replace(PROGRAM, &program));
    unit.drop_in(&lines).unwrap();
    unit.started().unwrap();
    victim.freeze_by(&unit);
    let mut socket = UnixStream::connect("/run/mcp-guard/control.sock").unwrap();
    socket.write_all(PANIC).unwrap();
    let state = unit.await_state("it will be restarted", waits_for_restart).unwrap();
    assert_eq!((state.result.as_str(), state.main_status), ("exit-code", 101));
    assert_eq!(state.status, "stopping: panic");
    victim.assert_free();
    unit.await_state("restarted", |state| state.active == "active").unwrap();
    assert_eq!(story(&unit), ["start", "Shutdown Done", "stop: panic", "start"]);
}

/// The sandbox of the unit lets the agent start the warden, and the warden wake servers.
#[test]
fn the_unit_suspends_servers_and_they_wake_although_it_is_killed() {
    let cgroup = FixtureCgroup::new("unit-suspend").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let policy = format!("[evidence]\nevery = \"1s\"\n{}", observing(&cgroup));
    let unit = Unit::start(&policy, &[]).unwrap();
    let mut servers = [(); 2].map(|()| Echo::start(&cgroup, folder.path()).unwrap());
    let target = format!("cgroup:{}", cgroup.path());
    let suspend = || {
        unit.wait_until("the servers are suspended", |unit| {
            unit.cli(&["suspend", &target, "--idle", "1s", "--keep", "0"])?;
            Ok(cgroup.procs()?.is_empty())
        })
        .unwrap();
    };
    suspend();
    for server in &mut servers {
        server.ask().unwrap();
    }
    let are_back = || Ok(servers.iter().all(|one| one.is_in(&cgroup).unwrap()));
    unit.wait_until("they are back", |_| are_back()).unwrap();
    suspend();
    unit.signal(Signal::KILL).unwrap();
    for server in &mut servers {
        server.ask().unwrap();
        assert!(server.is_in(&cgroup).unwrap());
    }
    unit.await_state("restarted", |state| state.active == "active").unwrap();
    assert_eq!(story(&unit).last().map(String::as_str), Some("start"));
}

const WATCHDOG: &str = "WatchdogSec=3s\n";

#[test]
fn the_watchdog_leaves_a_running_loop_alone() {
    let victim = Victim::new("alive");
    let unit = Unit::prepare(&observing(&victim.cgroup), &[], WATCHDOG).unwrap();
    unit.started().unwrap();
    unit.wait_until("three intervals", |unit| Ok(unit.status()?.uptime_ms > 9500)).unwrap();
    let state = unit.state().unwrap();
    assert_eq!((state.active.as_str(), state.restarts), ("active", 0), "{}", unit.journal());
}

#[test]
fn a_hung_agent_is_killed_leaves_no_hold_and_is_restarted() {
    let victim = Victim::new("hung");
    let unit = Unit::prepare(&observing(&victim.cgroup), &[], WATCHDOG).unwrap();
    unit.started().unwrap();
    ends_without_holds_and_is_restarted(&victim, &unit, Signal::STOP, "watchdog");
}

/// The message of systemd when the start limit is reached.
const GIVEN_UP: &str = "Start request repeated too quickly";

/// The agent dies each time it acts. The next one finds the same leak and acts again.
#[test]
fn an_agent_that_hits_the_start_limit_leaves_no_hold() {
    let cgroup = FixtureCgroup::new("limit").unwrap();
    cgroup.set_pids_max(FOUND).unwrap();
    let leak = Leak::start(&cgroup, 4).unwrap();
    let policy = LeakPolicy::enforcing(&cgroup, "freeze").toml();
    let lines = "RestartSec=1s\n[Unit]\nStartLimitBurst=3\nStartLimitIntervalSec=1h\n";
    let unit = Unit::prepare(&policy, &[], lines).unwrap();
    unit.started().unwrap();
    let mut last = 0;
    for _ in 0..3 {
        let mark = || Holds::of(&cgroup).map(|holds| holds.freeze_mark);
        let other = |_: &Unit| Ok(mark()?.is_some_and(|mark| mark.holder.0 != last));
        unit.wait_until("the next agent has frozen it", other).unwrap();
        cgroup.wait_until("frozen", PATIENCE, || cgroup.is_frozen().unwrap()).unwrap();
        last = unit.main_pid().unwrap();
        assert_eq!(mark().unwrap().unwrap().holder.0, last);
        unit.signal(Signal::KILL).unwrap();
    }
    let state = unit.await_state("failed", |state| state.sub == "failed").unwrap();
    assert_eq!((state.main_pid, state.restarts), (0, 3), "{state:?}");
    let journal = unit.journal();
    assert!(journal.contains(GIVEN_UP), "{journal}");
    assert_eq!(Holds::of(&cgroup).unwrap(), Holds::nothing(FOUND));
    let cycle = ["start", "Reconcile Done"];
    assert_eq!(story(&unit), [cycle; 3].concat());
    await_stop_post(&unit, 3);
    assert!(leak.end().unwrap().success());
}

#[test]
fn an_agent_that_hits_the_start_limit_is_started_again_later() {
    let lines = "RestartSec=1s\n[Unit]\nStartLimitBurst=2\nStartLimitIntervalSec=60s\n";
    let mut unit = Unit::prepare("", &[], lines).unwrap();
    unit.again("[Timer]\nOnUnitInactiveSec=\nOnUnitInactiveSec=65s\nAccuracySec=1s\n").unwrap();
    unit.started().unwrap();
    for _ in 0..2 {
        unit.await_state("active", |state| state.active == "active").unwrap();
        unit.signal(Signal::KILL).unwrap();
        unit.await_state("it has ended", |state| state.main_pid == 0).unwrap();
    }
    unit.await_state("failed", |state| state.sub == "failed").unwrap();
    let journal = unit.journal();
    assert!(journal.contains(GIVEN_UP), "{journal}");
    unit.await_state("active again", |state| state.active == "active").unwrap();
    // A stop by an operator is final.
    unit.stop().unwrap();
    let is_active = |unit: &str| Command::new("systemctl").args(["is-active", "-q", unit]).status();
    assert!(!is_active(AGAIN).unwrap().success());
}

#[test]
fn a_bad_policy_or_command_line_is_not_restarted() {
    for (policy, more, code) in [("mode = \"enforced\"\n", "", 65), ("", "--nonsense", 64)] {
        let unit = Unit::prepare(policy, &[more], "").unwrap();
        assert!(unit.started().is_err());
        let state = unit.await_state("failed", |state| state.sub == "failed").unwrap();
        assert_eq!((state.main_status, state.restarts), (code, 0), "{state:?}");
        assert_eq!(state.result, "exit-code");
    }
}

#[test]
fn an_agent_that_never_becomes_ready_fails_and_leaves_no_hold() {
    let victim = Victim::new("never");
    victim.orphan();
    let mut unit = Unit::prepare("", &[], "").unwrap();
    // It waits for a reader of its audit log, which nobody is.
    let audit = pipe(&unit, "audit");
    let start = unit.exec_start(&unit.policy(), &["--audit", audit.to_str().unwrap()]);
    unit.drop_in(&format!("{start}TimeoutStartSec=3s\n")).unwrap();
    let error = unit.started().unwrap_err().to_string();
    assert!(error.contains("timeout"), "{error}");
    let state = unit.await_state("it will be restarted", waits_for_restart).unwrap();
    assert_eq!(state.result, "timeout");
    victim.assert_free();
    assert_eq!(story(&unit), ["Reconcile Done"], "no agent got as far as its start record");
    await_stop_post(&unit, 1);
}

#[test]
fn a_release_waits_until_there_is_room_for_a_process() {
    let victim = Victim::new("no-room");
    let lines = "RestartSec=1s\n[Unit]\nStartLimitBurst=3\nStartLimitIntervalSec=1h\n";
    let unit = Unit::prepare(&observing(&victim.cgroup), &[], lines).unwrap();
    unit.started().unwrap();
    victim.freeze_by(&unit);
    let agent = unit.main_pid().unwrap();
    let mut journal = Journal::follow().unwrap();
    let no_room = NoRoom::begin().unwrap();
    kill_process(Pid::from_raw(agent.cast_signed()).unwrap(), Signal::KILL).unwrap();
    journal.await_some(GIVEN_UP).unwrap();
    victim.assert_held_by(agent);
    drop(no_room);
    let cgroup = &victim.cgroup;
    cgroup.wait_until("thawed", PATIENCE, || !cgroup.is_frozen().unwrap()).unwrap();
    let done = |unit: &Unit| Ok(story(unit) == ["start", "Reconcile Done"]);
    unit.wait_until("released", done).unwrap();
    victim.assert_free();
}

#[test]
fn an_agent_started_by_an_operator_keeps_its_lock_and_its_holds() {
    let victim = Victim::new("by-hand");
    let unit = Unit::prepare(&observing(&victim.cgroup), &[], "").unwrap();
    let by_hand = ByHand::start(&unit.policy()).unwrap();
    unit.wait_until("it answers", |unit| Ok(unit.status().is_ok())).unwrap();
    let output = unit.cli(&["freeze", &victim.target(), "--for", "1h"]).unwrap();
    assert!(output.status.success(), "{output:?}");

    assert!(unit.started().is_err());
    assert_eq!(unit.state().unwrap().main_status, 2);
    unit.stop().unwrap();
    victim.assert_held_by(by_hand.pid());
    assert_eq!(unit.status().unwrap().pid.0, by_hand.pid());
    let second = unit.cli(&["run"]).unwrap();
    assert_eq!(second.status.code(), Some(2), "the first agent still holds the lock");
    drop(by_hand);
    let output = unit.cli(&["thaw", "--owned"]).unwrap();
    assert!(output.status.success(), "{output:?}");
    victim.assert_free();
}
