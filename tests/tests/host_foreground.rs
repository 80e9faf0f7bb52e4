//! An operator's freezes without an agent, and freezes that another tool made.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]
#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "a test looks for one record and ignores the rest"
)]

use std::{
    io::{PipeReader, PipeWriter, Write as _, pipe},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    process::{Child, ExitStatus, Output, Stdio},
};

use mcp_guard::host::clock;
use mcp_guard_core::{
    audit::Record,
    incident::{End, Outcome},
    policy::Response,
};
use mcp_guard_tests::{
    agent::{Agent, DEADLINE, command},
    cgroup::FixtureCgroup,
    holds::{Holds, write_freeze},
    leak::{Leak, observing},
    lines::Lines,
    sleeper::Sleeper,
    wait,
};
use rustix::{
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    process::{Pid, Signal, getpgid, kill_process},
};

const FOUND: u64 = 200;

/// A cgroup with a process in it, and the folder for the CLI's files.
struct Scene {
    _sleeper: Sleeper,
    cgroup: FixtureCgroup,
    folder: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let cgroup = FixtureCgroup::new("hand").unwrap();
        cgroup.set_pids_max(FOUND).unwrap();
        let sleeper = Sleeper::start(&cgroup).unwrap();
        Self { _sleeper: sleeper, cgroup, folder: tempfile::tempdir().unwrap() }
    }

    fn target(&self) -> String {
        format!("cgroup:{}", self.cgroup.path())
    }

    fn cli(&self, arguments: &[&str]) -> Output {
        let mut command = command(self.folder.path(), "/nonexistent").unwrap();
        command.args(arguments).arg(self.target()).output().unwrap()
    }

    fn holds(&self) -> Holds {
        Holds::of(&self.cgroup).unwrap()
    }
}

/// `mcp-guard freeze` in the foreground. Its cgroup is frozen.
struct Foreground {
    child: Child,
    said: Lines,
}

impl Foreground {
    fn start(scene: &Scene, time: &str) -> Self {
        let mut command = command(scene.folder.path(), "/nonexistent").unwrap();
        command.args(["freeze", "--for", time]).arg(scene.target());
        let mut child = command.stdout(Stdio::piped()).process_group(0).spawn().unwrap();
        let said = Lines::of(child.stdout.take().unwrap());
        // From here on, a failed assertion drops it, and so kills it.
        let foreground = Self { child, said };
        let first = foreground.said.next().unwrap().unwrap_or_default();
        assert!(first.contains("frozen 1 read back"), "{first}");
        foreground.assert_holds(scene);
        foreground
    }

    fn assert_holds(&self, scene: &Scene) {
        let holds = scene.holds();
        let mark = holds.freeze_mark.as_ref().expect("a mark");
        assert_eq!((mark.holder.0, mark.reason.as_str()), (self.child.id(), "operator"));
        assert!(holds.freeze && holds.frozen, "{holds:?}");
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits until it has ended. Returns its status and the rest of its output.
    fn end(mut self) -> (ExitStatus, String) {
        let said = self.said.rest().unwrap();
        (self.child.wait().unwrap(), said)
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_foreground_freeze_ends_when_its_time_is_up() {
    let scene = Scene::new();
    let (status, said) = Foreground::start(&scene, "1s").end();
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(said.contains("the lease has ended") && said.contains("done"), "{said}");
    assert_eq!(scene.holds(), Holds::nothing(FOUND));
}

#[test]
fn a_foreground_freeze_ends_on_each_termination_signal() {
    let signals = [
        (Signal::TERM, "SIGTERM"),
        (Signal::INT, "SIGINT"),
        (Signal::HUP, "SIGHUP"),
        (Signal::QUIT, "SIGQUIT"),
    ];
    for (signal, name) in signals {
        let scene = Scene::new();
        let foreground = Foreground::start(&scene, "30s");
        foreground.signal(signal);
        let (status, said) = foreground.end();
        assert_eq!(status.code(), Some(0), "{said}");
        assert!(said.contains(name), "{said}");
        assert_eq!(scene.holds(), Holds::nothing(FOUND), "{name}");
    }
}

/// Returns both ends of a pipe that has no room left.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = pipe().unwrap();
    let flags = fcntl_getfl(&writer).unwrap();
    fcntl_setfl(&writer, flags | OFlags::NONBLOCK).unwrap();
    while writer.write(&[b'x'; 4096]).is_ok() {}
    fcntl_setfl(&writer, flags).unwrap();
    (reader, writer)
}

/// As for a terminal that stands still (Ctrl-S).
#[test]
fn a_foreground_freeze_ends_in_time_although_nobody_reads_its_output() {
    for (time, signal) in [("1s", None), ("1day", Some(Signal::INT)), ("1day", Some(Signal::TERM))]
    {
        let scene = Scene::new();
        let (reader, writer) = full_pipe();
        let mut command = command(scene.folder.path(), "/nonexistent").unwrap();
        command.args(["freeze", "--for", time]).arg(scene.target()).process_group(0);
        command.stdout(writer.try_clone().unwrap()).stderr(writer);
        let mut child = command.spawn().unwrap();
        let is_frozen = || scene.cgroup.is_frozen().unwrap();
        scene.cgroup.wait_until("frozen", DEADLINE, is_frozen).unwrap();
        if let Some(signal) = signal {
            // It answers Ctrl-Z on stderr.
            for signal in [Signal::TSTP, signal] {
                kill_process(Pid::from_child(&child), signal).unwrap();
            }
        }
        let ended = wait::until(DEADLINE, || Ok(child.try_wait()?.is_some())).unwrap();
        let holds = scene.holds();
        // It goes on if the pipe is closed, and so leaves nothing behind.
        drop(reader);
        let status = child.wait().unwrap();
        assert!(ended, "{time} {signal:?}");
        assert_eq!((status.code(), holds), (Some(0), Holds::nothing(FOUND)), "{time} {signal:?}");
    }
}

/// A stopped process could not keep its deadline.
#[test]
fn ctrl_z_does_not_stop_a_foreground_freeze() {
    let scene = Scene::new();
    let foreground = Foreground::start(&scene, "1s");
    // In a process group of its own, as in a shell. The kernel stops no process of an orphaned group.
    let group = Pid::from_child(&foreground.child);
    assert_eq!(getpgid(Some(group)).unwrap(), group);
    foreground.signal(Signal::TSTP);
    let (status, said) = foreground.end();
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(said.contains("the lease has ended"), "{said}");
    assert_eq!(scene.holds(), Holds::nothing(FOUND));
}

/// SIGSTOP cannot be handled. Another process then releases the freeze once it is overdue, and not before.
#[test]
fn an_overdue_freeze_of_a_stopped_holder_is_released() {
    let scene = Scene::new();
    let foreground = Foreground::start(&scene, "2s");
    foreground.signal(Signal::STOP);
    foreground.assert_holds(&scene);
    let deadline = scene.holds().freeze_mark.unwrap().deadline;
    let mut thaw = command(scene.folder.path(), "/nonexistent").unwrap();
    thaw.args(["thaw", "--owned"]);
    scene
        .cgroup
        .wait_until("released", DEADLINE, || {
            let output = thaw.output().unwrap();
            assert_eq!(output.status.code(), Some(0), "{output:?}");
            scene.holds() == Holds::nothing(FOUND)
        })
        .unwrap();
    assert!(clock::now() >= deadline);
    foreground.signal(Signal::CONT);
    let (status, said) = foreground.end();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("left alone"), "{said}");
}

#[test]
fn the_agent_releases_a_foreground_freeze_only_when_its_holder_is_dead() {
    let scene = Scene::new();
    let foreground = Foreground::start(&scene, "30s");
    let mut agent = Agent::start(&observing(&scene.cgroup)).unwrap();
    foreground.assert_holds(&scene);

    agent.signal(Signal::TERM).unwrap();
    assert!(agent.ended().unwrap().success());
    foreground.assert_holds(&scene);
    let touched = |record: &Record| matches!(record, Record::Release { .. });
    assert!(
        !agent.audit().unwrap().iter().any(touched),
        "the agent releases nothing at its start or at its end"
    );

    foreground.signal(Signal::KILL);
    assert_eq!(foreground.end().0.signal(), Some(9));
    assert!(scene.holds().frozen, "no process was there to thaw it");
    let agent = agent.restart(&observing(&scene.cgroup)).unwrap();
    assert_eq!(scene.holds(), Holds::nothing(FOUND));
    let released = |record: &Record| {
        matches!(
            record,
            Record::Release { end: End::Reconcile, outcome: Some(Outcome::Done), guard, .. }
                if guard.cgroup_id.0 == scene.cgroup.id()
        )
    };
    assert!(agent.audit().unwrap().iter().any(released));
}

#[test]
fn a_foreground_freeze_reports_that_another_operator_has_thawed_it() {
    let scene = Scene::new();
    let foreground = Foreground::start(&scene, "30s");
    let thaw = scene.cli(&["thaw"]);
    assert_eq!(thaw.status.code(), Some(0), "{}", String::from_utf8_lossy(&thaw.stdout));
    assert_eq!(scene.holds(), Holds::nothing(FOUND));
    foreground.signal(Signal::TERM);
    let (status, said) = foreground.end();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("left alone"), "{said}");
}

/// The freeze was there before, as an engine's pause is on cgroup v2.
#[test]
fn a_freeze_by_another_tool_is_neither_taken_over_nor_ended() {
    let scene = Scene::new();
    write_freeze(&scene.cgroup, "1").unwrap();
    let cgroup = &scene.cgroup;
    cgroup.wait_until("frozen", DEADLINE, || cgroup.is_frozen().unwrap()).unwrap();
    let theirs = scene.holds();
    let agent = Agent::start(&observing(&scene.cgroup)).unwrap();
    let target = scene.target();
    for verb in [&["freeze", "--for", "1s"][..], &["thaw"]] {
        for output in [scene.cli(verb), agent.cli(&[verb, &[&target]].concat()).unwrap()] {
            let said = String::from_utf8(output.stdout).unwrap();
            assert_eq!(output.status.code(), Some(1), "{verb:?}: {said}");
            assert!(said.contains("left alone"), "{verb:?}: {said}");
            assert_eq!(scene.holds(), theirs, "{verb:?}");
        }
    }
}

#[test]
fn a_detector_leaves_a_freeze_by_another_tool_alone() {
    let cgroup = FixtureCgroup::new("paused").unwrap();
    cgroup.set_pids_max(FOUND).unwrap();
    // The other tool has this long to be first.
    let policy = format!(
        "mode = \"enforce\"\n[detect.burst]\nwarn_10s = 3\nwarn_60s = 3\nsurvivors = 3\n\
         survivor_age = \"20s\"\n[[guard]]\ncgroup = \"{}\"\n",
        cgroup.path()
    );
    let mut agent = Agent::start(&policy).unwrap();
    let leak = Leak::start(&cgroup, 4).unwrap();
    write_freeze(&cgroup, "1").unwrap();
    cgroup.wait_until("frozen", DEADLINE, || cgroup.is_frozen().unwrap()).unwrap();
    let theirs = Holds::of(&cgroup).unwrap();
    let outcome = |record: &Record| match record {
        Record::Outcome { response: Response::Freeze, outcome, detail, .. } => {
            Some((*outcome, detail.clone()))
        }
        _ => None,
    };
    let (outcome, said) = agent.await_record("decided", outcome).unwrap();
    assert_eq!(outcome, Outcome::NotOurs);
    assert!(said.contains("another process"), "{said}");
    agent.signal(Signal::TERM).unwrap();
    assert!(agent.ended().unwrap().success());
    assert_eq!(Holds::of(&cgroup).unwrap(), theirs);
    drop(leak);
}
