//! No hold outlives its owner, however the agent ends.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]
#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "a test looks for one record and ignores the rest"
)]

use std::{
    fs::File,
    os::unix::{net::UnixListener, process::ExitStatusExt as _},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use mcp_guard::host::clock;
use mcp_guard_core::{
    audit::Record,
    incident::{End, Outcome},
    policy::Response::{self, Clamp, Freeze},
    status::GuardState,
};
use mcp_guard_tests::{
    agent::{Agent, DEADLINE, command},
    cgroup::FixtureCgroup,
    holds::{Holds, write_freeze},
    leak::{Leak, LeakPolicy, PACKAGE, observing},
    workload,
};
use rustix::{
    fs::{XattrFlags, flistxattr, fsetxattr},
    process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit},
};

/// The limit that the owner set before the clamp.
const FOUND: u64 = 200;
/// A request that makes the agent's loop panic. Only debug builds accept it.
const PANIC: &[u8] = b"{\"method\":\"io.mcpguard.Panic\",\"parameters\":{}}\0";

/// A contained leak. The fields are dropped in this order.
struct Scene {
    agent: Agent,
    leak: Leak,
    cgroup: FixtureCgroup,
}

/// Lets the duplicates detector contain a leak of four servers. The hold is in force when this returns.
fn contained(response: Response, lease: &str) -> Scene {
    let cgroup = FixtureCgroup::new("owned").unwrap();
    cgroup.set_pids_max(FOUND).unwrap();
    let leak = Leak::start(&cgroup, 4).unwrap();
    let name = response.to_string();
    let policy = LeakPolicy { lease, ..LeakPolicy::enforcing(&cgroup, &name) };
    let mut agent = Agent::start(&policy.toml()).unwrap();
    let outcome = agent.await_record("contained", |record| match record {
        Record::Outcome { response: done, outcome, .. } if *done == response => Some(*outcome),
        _ => None,
    });
    assert_eq!(outcome.unwrap(), Outcome::Done);
    let scene = Scene { agent, leak, cgroup };
    scene.assert_held(response);
    scene
}

impl Scene {
    fn holds(&self) -> Holds {
        Holds::of(&self.cgroup).unwrap()
    }

    fn assert_held(&self, response: Response) {
        let holds = self.holds();
        let mark = holds.mark(response).expect("the mark of the hold");
        assert_eq!(mark.holder.0, self.agent.pid());
        assert_eq!(mark.reason, format!("Duplicates of {PACKAGE}"));
        match response {
            Freeze => {
                assert!(holds.freeze && holds.frozen, "{holds:?}");
                // Only a slow freeze lowers the limit, too, and any freeze is slow on a busy host.
                let is_lowered = holds.pids_max != FOUND.to_string();
                assert_eq!(is_lowered, holds.clamp_mark.is_some(), "{holds:?}");
            }
            Clamp => {
                assert!(!holds.freeze && !holds.frozen, "{holds:?}");
                assert!(holds.pids_max.parse::<u64>().unwrap() < FOUND, "{holds:?}");
                assert_eq!(mark.found, Some(FOUND.to_string()));
                assert_eq!(mark.wrote.as_ref(), Some(&holds.pids_max));
            }
            Response::Record | Response::Kill => panic!("{response} holds nothing"),
        }
    }

    fn assert_released(&self) {
        assert_eq!(self.holds(), Holds::nothing(FOUND));
    }

    /// Returns the completed releases. Checks that each was recorded before it was carried out.
    fn releases(&self) -> Vec<(Response, End, Outcome)> {
        let audit = self.agent.audit().unwrap();
        let mut begun = Vec::new();
        let mut done = Vec::new();
        for record in &audit {
            match record {
                Record::Release { incident, outcome: None, .. } => begun.push(incident.as_str()),
                Record::Release { incident, response, end, outcome: Some(outcome), .. } => {
                    assert!(begun.contains(&incident.as_str()), "no line before {record:?}");
                    done.push((*response, *end, *outcome));
                }
                _ => {}
            }
        }
        done
    }

    fn stop_reason(&self) -> Option<String> {
        self.agent.audit().unwrap().into_iter().rev().find_map(|record| match record {
            Record::AgentStop { reason } => Some(reason),
            _ => None,
        })
    }
}

fn released(end: End) -> impl Fn(&Record) -> Option<(Outcome, String)> {
    move |record| match record {
        Record::Release { end: this, outcome: Some(outcome), detail, .. } if *this == end => {
            Some((*outcome, detail.clone()))
        }
        _ => None,
    }
}

#[test]
fn a_signal_releases_every_hold() {
    for (response, signal) in [(Freeze, Signal::TERM), (Clamp, Signal::TERM), (Freeze, Signal::INT)]
    {
        let mut scene = contained(response, "300s");
        scene.agent.signal(signal).unwrap();
        assert!(scene.agent.ended().unwrap().success());
        scene.assert_released();
        assert_eq!(scene.releases(), [(response, End::Shutdown, Outcome::Done)]);
        let name = if signal == Signal::TERM { "SIGTERM" } else { "SIGINT" };
        assert_eq!(scene.stop_reason().unwrap(), name);
    }
}

#[test]
fn a_panic_releases_every_hold() {
    for response in [Freeze, Clamp] {
        let mut scene = contained(response, "300s");
        scene.agent.converse(PANIC, 1).unwrap();
        assert!(!scene.agent.ended().unwrap().success());
        scene.assert_released();
        assert_eq!(scene.releases(), [(response, End::Shutdown, Outcome::Done)]);
        assert_eq!(scene.stop_reason().unwrap(), "panic");
    }
}

#[test]
fn a_prompt_freeze_leaves_the_limit_of_a_clamp_as_it_is() {
    let scene = contained(Clamp, "300s");
    let (target, clamp) = (format!("cgroup:{}", scene.cgroup.path()), scene.holds());
    let frozen = scene.agent.cli(&["freeze", "--for", "60s", &target]).unwrap();
    assert!(frozen.status.success(), "{frozen:?}");
    let both = scene.holds();
    assert!(both.freeze && both.frozen && both.freeze_mark.is_some(), "{both:?}");
    assert_eq!((both.pids_max, both.clamp_mark), (clamp.pids_max, clamp.clamp_mark));
    let thawed = scene.agent.cli(&["thaw", &target]).unwrap();
    assert!(thawed.status.success(), "{thawed:?}");
    scene.assert_released();
}

/// Kills the agent. Its hold stays behind as an orphan, with its mark.
fn orphaned(response: Response) -> Scene {
    let mut scene = contained(response, "300s");
    scene.agent.signal(Signal::KILL).unwrap();
    assert_eq!(scene.agent.ended().unwrap().signal(), Some(9));
    scene.assert_held(response);
    scene
}

#[test]
fn an_orphan_of_a_killed_agent_is_released_at_the_next_start() {
    for response in [Freeze, Clamp] {
        let Scene { agent, leak, cgroup } = orphaned(response);
        let agent = agent.restart(&observing(&cgroup)).unwrap();
        let scene = Scene { agent, leak, cgroup };
        scene.assert_released();
        assert_eq!(scene.releases(), [(response, End::Reconcile, Outcome::Done)]);
    }
}

#[test]
fn an_orphan_of_a_killed_agent_is_released_by_thaw_owned() {
    for response in [Freeze, Clamp] {
        let scene = orphaned(response);
        let output = scene.agent.cli(&["thaw", "--owned"]).unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0), "{said}");
        assert!(said.contains(scene.cgroup.path()), "{said}");
        scene.assert_released();
        assert_eq!(scene.releases(), [(response, End::Reconcile, Outcome::Done)]);
    }
}

/// The name of a container's cgroup, so that its engine is asked whether it has paused it.
fn container_id(n: usize) -> String {
    format!("{n:064x}")
}

/// Many frozen containers, whose engine accepts connections and never answers.
struct Hang {
    agent: Agent,
    cgroups: Vec<FixtureCgroup>,
    _engine: (UnixListener, tempfile::TempDir),
}

fn held_beside_an_engine_that_hangs() -> Hang {
    let folder = tempfile::Builder::new().prefix("mcp-guard-test-").tempdir().unwrap();
    let socket = folder.path().join("engine.sock");
    // The kernel accepts for it.
    let engine = UnixListener::bind(&socket).unwrap();
    let agent = Agent::start_with("", socket.to_str().unwrap(), &[]).unwrap();
    let root = FixtureCgroup::new("hang").unwrap();
    let mut cgroups = vec![];
    for n in 0..HELD {
        let cgroup = root.child(&container_id(n)).unwrap();
        let target = format!("cgroup:{}", cgroup.path());
        // This command asks an engine too, and another one to be quick.
        let mut freeze = command(agent.folder(), "/nonexistent").unwrap();
        let frozen = freeze.args(["freeze", &target, "--for", "1h"]).output().unwrap();
        assert!(frozen.status.success(), "{frozen:?}");
        cgroups.push(cgroup);
    }
    // Dropped last.
    cgroups.push(root);
    Hang { agent, cgroups, _engine: (engine, folder) }
}

impl Hang {
    /// Checks that everything is given back soon after an instant.
    fn assert_given_back(&self, began: Instant) {
        assert!(began.elapsed() < GIVEN_BACK, "{:?}", began.elapsed());
        for cgroup in &self.cgroups {
            assert_eq!(cgroup.read("cgroup.freeze").unwrap().trim(), "0", "{}", cgroup.path());
        }
    }
}

/// Held containers. Asked about one after the other, they would take twice as many seconds.
const HELD: usize = 60;
/// The engine's 2 s, and time for everything else on a very busy host.
const GIVEN_BACK: Duration = Duration::from_secs(60);

#[test]
fn an_engine_that_hangs_delays_the_end_of_all_holds_once() {
    let mut hang = held_beside_an_engine_that_hangs();
    let began = Instant::now();
    hang.agent.signal(Signal::TERM).unwrap();
    assert!(hang.agent.ended().unwrap().success());
    hang.assert_given_back(began);
}

#[test]
fn an_engine_that_hangs_delays_the_release_of_all_orphans_once() {
    let mut hang = held_beside_an_engine_that_hangs();
    hang.agent.signal(Signal::KILL).unwrap();
    hang.agent.ended().unwrap();
    let began = Instant::now();
    let output = hang.agent.cli(&["thaw", "--owned"]).unwrap();
    assert!(output.status.success(), "{output:?}");
    hang.assert_given_back(began);
}

/// Runs what the unit's `ExecStopPost=` runs, on a host where the audit log cannot be opened. An orphaned
/// freeze is worse than a record on stderr alone.
#[test]
fn an_orphan_is_released_even_if_the_audit_log_cannot_be_opened() {
    let scene = orphaned(Freeze);
    let mut thaw = Command::new(workload("mcp-guard").unwrap());
    thaw.arg("--run-dir").arg(scene.agent.folder()).args(["--audit", "/proc/nowhere/log"]);
    let output = thaw.args(["thaw", "--owned", "--docker", "/nonexistent"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("without a record"), "{said}");
    scene.assert_released();
}

#[test]
fn thaw_owned_leaves_the_holds_of_a_running_agent_alone() {
    let scene = contained(Freeze, "300s");
    let output = scene.agent.cli(&["thaw", "--owned"]).unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    // After a failure, mcp-guard-thaw.service would be restarted for as long as the agent runs.
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("nothing to do: an agent runs"), "{said}");
    scene.assert_held(Freeze);
}

#[test]
fn a_freeze_ends_with_its_lease() {
    let mut scene = contained(Freeze, "6s");
    let (outcome, _) = scene.agent.await_record("thawed", released(End::LeaseOver)).unwrap();
    assert_eq!(outcome, Outcome::Done);
    scene.assert_released();
    // The servers are still there, but the detector has acted on them and does not freeze them again.
    assert_eq!(scene.agent.guard(scene.cgroup.id()).unwrap().guard.state, GuardState::Free);
}

/// A file that cannot be opened says nothing about the cgroup.
#[test]
fn an_agent_without_descriptors_keeps_its_guard_and_ends_its_freeze() {
    let mut scene = contained(Freeze, "6s");
    let agent = Pid::from_raw(scene.agent.pid().cast_signed());
    let before = getrlimit(Resource::Nofile);
    prlimit(agent, Resource::Nofile, Rlimit { current: Some(3), ..before }).unwrap();
    let warned = |agent: &mut Agent| Ok(agent.log().contains("cannot read cgroup.freeze"));
    scene.agent.wait_until("it cannot read", warned).unwrap();
    prlimit(agent, Resource::Nofile, before).unwrap();
    assert!(scene.agent.guard(scene.cgroup.id()).is_ok(), "it is still guarded");
    scene.assert_held(Freeze);
    scene.agent.await_record("thawed", released(End::LeaseOver)).unwrap();
    scene.assert_released();
    let stopped = |record: &Record| matches!(record, Record::GuardStop { .. });
    assert!(!scene.agent.audit().unwrap().iter().any(stopped));
}

#[test]
fn a_clamp_is_renewed_while_duplicates_live_and_then_ends_with_its_lease() {
    let mut scene = contained(Clamp, "1s");
    let renewed = |record: &Record| match record {
        Record::Outcome { detail, .. } if detail.contains("renewed") => Some(()),
        _ => None,
    };
    scene.agent.await_record("renewed", renewed).unwrap();
    assert_eq!(scene.releases(), []);
    scene.assert_held(Clamp);
    assert!(scene.leak.end().unwrap().success());
    let ended = scene.agent.await_record("unclamped", released(End::LeaseOver)).unwrap();
    assert_eq!(ended.0, Outcome::Done, "{}", ended.1);
    assert_eq!(Holds::of(&scene.cgroup).unwrap(), Holds::nothing(FOUND));
}

#[test]
fn a_thaw_by_another_tool_ends_the_lease_and_a_later_freeze_is_not_ours() {
    let mut scene = contained(Freeze, "3s");
    let lease_end = scene.holds().freeze_mark.unwrap().deadline;
    write_freeze(&scene.cgroup, "0").unwrap();
    let (outcome, said) =
        scene.agent.await_record("noticed", released(End::ThawedByOther)).unwrap_or_else(|error| {
            panic!("{error}: {:?}", scene.agent.audit());
        });
    assert_eq!(outcome, Outcome::NotOurs);
    assert!(said.contains("another process"), "{said}");
    scene.assert_released();

    write_freeze(&scene.cgroup, "1").unwrap();
    let cgroup = &scene.cgroup;
    cgroup.wait_until("frozen again", DEADLINE, || cgroup.is_frozen().unwrap()).unwrap();
    let past = |_: &mut Agent| Ok(clock::now() > lease_end);
    scene.agent.wait_until("the old lease would have ended", past).unwrap();
    // The reply shows that its loop has run since then.
    scene.agent.status().unwrap();
    scene.agent.signal(Signal::TERM).unwrap();
    assert!(scene.agent.ended().unwrap().success());
    let holds = scene.holds();
    assert!(holds.freeze && holds.frozen && holds.freeze_mark.is_none(), "{holds:?}");
    assert_eq!((&*holds.pids_max, &holds.clamp_mark), ("200", &None), "ended with our freeze");
    let intents = scene.agent.audit().unwrap();
    let intents = intents.iter().filter(|record| matches!(record, Record::Intent { .. }));
    assert_eq!(intents.count(), 1, "neither frozen nor thawed again");
}

#[test]
fn a_limit_that_another_tool_changed_is_left_alone() {
    for running in [true, false] {
        let mut scene = contained(Clamp, "300s");
        let end = if running {
            scene.cgroup.set_pids_max(123).unwrap();
            End::UnclampedByOther
        } else {
            // Stopped meanwhile, so that it sees SIGTERM before it sees the new limit.
            scene.agent.signal(Signal::STOP).unwrap();
            scene.cgroup.set_pids_max(123).unwrap();
            scene.agent.signal(Signal::TERM).unwrap();
            scene.agent.signal(Signal::CONT).unwrap();
            assert!(scene.agent.ended().unwrap().success());
            End::Shutdown
        };
        let (outcome, said) = scene.agent.await_record("released", released(end)).unwrap();
        assert_eq!(outcome, Outcome::NotOurs, "{said}");
        let expected = if running {
            "another process has changed it: pids.max is now 123; the mark is removed"
        } else {
            "pids.max has changed to 123 since then; it is left alone, and the mark is removed"
        };
        assert_eq!(said, expected);
        assert_eq!(Holds::of(&scene.cgroup).unwrap(), Holds::nothing(123));
    }
}

/// Marks a cgroup as a privileged container can, with or without a wrong code at the end.
fn forge(dir: &Path, attribute: &str, end: &str) {
    // As if this process, which lives, had made the hold for a long time.
    let holder = std::process::id();
    let mark = format!(
        "{{\"incident\":\"{FORGED}\",\"reason\":\"{FORGED}\",\"deadline\":{deadline},\"boot_id\":{boot:?},\
         \"holder\":{holder},\"holder_start\":0,\"found\":\"max\",\"wrote\":\"50\"{end}",
        deadline = u64::MAX,
        boot = clock::boot_id(),
    );
    let dir = File::open(dir).unwrap();
    fsetxattr(dir, attribute, mark.as_bytes(), XattrFlags::empty()).unwrap();
}

const FORGED: &str = "the words of the forger";

#[test]
fn a_forged_mark_holds_nothing_and_raises_no_limit() {
    let mut agent = Agent::start("").unwrap();
    // An agent that has started has made the key.
    agent.signal(Signal::KILL).unwrap();
    agent.ended().unwrap();
    let wrong = format!(",\"mac\":\"{}\"}}", "0".repeat(64));
    for end in ["}", &wrong] {
        let cgroup = FixtureCgroup::new("forged").unwrap();
        cgroup.set_pids_max(50).unwrap();
        forge(cgroup.pids_dir(), "trusted.mcp-guard.clamp", end);
        forge(cgroup.unified_dir(), "trusted.mcp-guard.lease", end);
        write_freeze(&cgroup, "1").unwrap();
        agent.cli(&["thaw", "--owned"]).unwrap();
        // Neither frozen nor raised to "max".
        assert_eq!(cgroup.read("cgroup.freeze").unwrap().trim(), "0");
        assert_eq!(Holds::of(&cgroup).unwrap(), Holds::nothing(50));
        // Only the note that the limit stays as it is, for `doctor`.
        let (unified, pids) = (cgroup.unified_dir(), cgroup.pids_dir());
        assert!(ours(pids).iter().eq(["trusted.mcp-guard.kept"]), "{:?}", ours(pids));
        assert!(unified == pids || ours(unified).is_empty(), "{:?}", ours(unified));
    }
    let said = std::fs::read_to_string(agent.audit_path()).unwrap();
    assert_eq!(said.matches("forged and is removed; pids.max is not changed").count(), 2, "{said}");
    assert_eq!(said.matches("cgroup.freeze 0 read back; its mark was forged").count(), 2, "{said}");
    assert!(!said.contains(FORGED), "{said}");
}

/// Returns the names of our attributes on a cgroup.
fn ours(dir: &Path) -> Vec<String> {
    let mut names = vec![0; 4096];
    let length = flistxattr(File::open(dir).unwrap(), &mut names[..]).unwrap();
    let names = String::from_utf8_lossy(&names[..length]).into_owned();
    let names = names.split('\0').filter(|name| name.contains("mcp-guard"));
    names.map(str::to_owned).collect()
}
