//! The agent from its operator's view: only one runs, what it shows, and what it does on request.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]
#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "a test looks for one record and ignores the rest"
)]

use std::fs;

use mcp_guard_core::{audit::Record, id::Pid, incident::Outcome, status::GuardState};
use mcp_guard_tests::{
    agent::Agent,
    cgroup::FixtureCgroup,
    holds::Holds,
    leak::{Leak, LeakPolicy, PACKAGE, observing},
    sleeper::Sleeper,
    workload,
};

const FOUND: u64 = 200;

fn cgroup(what: &str) -> FixtureCgroup {
    let cgroup = FixtureCgroup::new(what).unwrap();
    cgroup.set_pids_max(FOUND).unwrap();
    cgroup
}

#[test]
fn a_second_agent_names_the_first_and_exits() {
    let cgroup = cgroup("second");
    let agent = Agent::start(&observing(&cgroup)).unwrap();
    let second = agent.cli(&["run"]).unwrap();
    let said = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(2), "{said}");
    assert!(said.contains(&format!("process {} holds", agent.pid())), "{said}");
    assert_eq!(agent.status().unwrap().pid.0, agent.pid(), "the first agent no longer answers");
}

#[test]
fn observing_changes_nothing_and_records_what_it_would_do() {
    for (response, would) in [
        ("clamp", "would write"),
        ("freeze", "would write 1 to cgroup.freeze"),
        ("kill", "would write 1 to cgroup.kill"),
    ] {
        let cgroup = cgroup("observe");
        let leak = Leak::start(&cgroup, 4).unwrap();
        let policy =
            LeakPolicy { mode: "observe", ..LeakPolicy::enforcing(&cgroup, response) }.toml();
        let mut agent = Agent::start(&policy).unwrap();
        let outcome = |record: &Record| match record {
            Record::Outcome { outcome, detail, response, .. } => {
                Some((*outcome, detail.clone(), response.to_string()))
            }
            _ => None,
        };
        let (outcome, said, done) = agent.await_record("a decision", outcome).unwrap();
        assert_eq!((outcome, done.as_str()), (Outcome::WouldDo, response), "{said}");
        assert!(said.starts_with(would), "{said}");
        assert_eq!(Holds::of(&cgroup).unwrap(), Holds::nothing(FOUND));
        assert_eq!(agent.guard(cgroup.id()).unwrap().guard.state, GuardState::Free);
        agent.signal(rustix::process::Signal::TERM).unwrap();
        assert!(agent.ended().unwrap().success());
        let released = |record: &Record| matches!(record, Record::Release { .. });
        assert!(!agent.audit().unwrap().iter().any(released), "nothing was held");
        assert!(leak.end().unwrap().success(), "no process was killed");
    }
}

#[test]
fn status_shows_servers_totals_and_rates() {
    let cgroup = cgroup("status");
    let agent = Agent::start(&observing(&cgroup)).unwrap();
    let leak = Leak::start(&cgroup, 4).unwrap();
    let watched = agent.guard(cgroup.id()).unwrap();
    let status = &watched.guard;
    let procs = cgroup.procs().unwrap().into_iter();
    let mut procs: Vec<Pid> = procs.map(|pid| Pid(pid.cast_unsigned())).collect();
    procs.sort_unstable();
    assert_eq!(status.pids, procs);
    assert_eq!(status.processes, 9, "a gateway, and two processes for each of four servers");
    let servers = &status.identities[PACKAGE];
    assert_eq!((servers.live, servers.starts, servers.live_peak), (4, 4, 4));
    assert_eq!(servers.starts_per_second.ten, 0.4);
    assert_eq!(status.starts_per_second.ten, 0.4);
    assert!(status.forks_per_second.sixty > 0.0 && status.execs_per_second.sixty > 0.0);
    let totals = status.totals;
    assert_eq!((totals.process_forks, totals.execs, totals.arrivals), (8, 9, 1));
    assert_eq!(watched.pids_current, Some(cgroup.pids_current().unwrap()));
    assert_eq!(watched.pids_max, Some(FOUND.to_string()));

    let text = String::from_utf8(agent.cli(&["status"]).unwrap().stdout).unwrap();
    for expected in [
        "nothing lost",
        cgroup.path(),
        "9 processes",
        "8 forks",
        "9 execs",
        "launcher starts",
        PACKAGE,
        "mode observe",
    ] {
        assert!(text.contains(expected), "{expected} is not in {text}");
    }
    assert!(leak.end().unwrap().success());
    let servers = agent.guard(cgroup.id()).unwrap().guard.identities[PACKAGE].clone();
    assert_eq!((servers.live, servers.starts, servers.live_peak), (0, 4, 4));
}

#[test]
fn a_cgroup_made_later_is_guarded_with_those_made_below_it() {
    let above = cgroup("later");
    let path = format!("{}/late", above.path());
    let policy = format!("[[guard]]\ncgroup = \"{path}\"\n");
    let mut agent = Agent::start(&policy).unwrap();
    assert!(agent.status().unwrap().guards.is_empty());
    let late = above.child("late").unwrap();
    agent.wait_until("it is guarded", |agent| Ok(agent.guard(late.id()).is_ok())).unwrap();
    let nested = late.child("nested").unwrap();
    let deeper = nested.child("deeper").unwrap();
    let sleepers = [&late, &nested, &deeper].map(|cgroup| Sleeper::start(cgroup).unwrap());
    let status = agent.guard(late.id()).unwrap().guard;
    let mut expected = sleepers.each_ref().map(|sleeper| Pid(sleeper.pid()));
    expected.sort_unstable();
    assert_eq!(status.pids, expected);
    assert_eq!((status.totals.arrivals, status.totals.execs), (3, 3));
    let _outside = Sleeper::start(&above).unwrap();
    assert_eq!(
        agent.guard(late.id()).unwrap().guard.pids,
        expected,
        "the parent's processes do not count"
    );
}

#[test]
fn an_operators_freeze_thaw_and_kill_go_through_the_agent() {
    let cgroup = cgroup("by-hand");
    let mut sleeper = Sleeper::start(&cgroup).unwrap();
    // The policy names another cgroup, but an operator may act on any.
    let mut agent = Agent::start("[[guard]]\ncgroup = \"/mcp-guard-test-none\"\n").unwrap();
    let target = format!("pid:{}", sleeper.pid());
    let cli = |agent: &Agent, arguments: &[&str]| {
        let output = agent.cli(&[arguments, &[target.as_str()]].concat()).unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {said}");
        said
    };
    assert!(cli(&agent, &["freeze", "--dry-run"]).contains("would write 1 to cgroup.freeze"));
    assert_eq!(Holds::of(&cgroup).unwrap(), Holds::nothing(FOUND));
    cli(&agent, &["freeze", "--for", "1h"]);
    let holds = Holds::of(&cgroup).unwrap();
    assert!(holds.frozen, "{holds:?}");
    assert_eq!(
        holds.freeze_mark.unwrap().holder.0,
        agent.pid(),
        "the agent is the holder, because it outlives the CLI"
    );
    assert_eq!(agent.guard(cgroup.id()).unwrap().guard.state, GuardState::Frozen);
    cli(&agent, &["thaw"]);
    assert_eq!(Holds::of(&cgroup).unwrap(), Holds::nothing(FOUND));
    assert!(cli(&agent, &["kill", "--dry-run"]).contains("would write 1 to cgroup.kill"));
    assert!(sleeper.lives().unwrap());
    assert!(cli(&agent, &["kill"]).contains("populated 0 read back"));
    assert!(cgroup.procs().unwrap().is_empty());
    let outcomes = |record: &Record| match record {
        Record::Outcome { response, outcome, .. } => Some((response.to_string(), *outcome)),
        _ => None,
    };
    let recorded =
        |agent: &Agent| agent.audit().unwrap().iter().filter_map(outcomes).collect::<Vec<_>>();
    // The log is written by a thread of its own.
    agent.wait_until("all outcomes", |agent| Ok(recorded(agent).len() >= 4)).unwrap();
    let expected = [
        ("freeze", Outcome::WouldDo),
        ("freeze", Outcome::Done),
        ("kill", Outcome::WouldDo),
        ("kill", Outcome::Done),
    ];
    let expected = expected.map(|(response, outcome)| (response.to_owned(), outcome));
    assert_eq!(recorded(&agent), expected);
    agent.signal(rustix::process::Signal::TERM).unwrap();
    assert!(agent.ended().unwrap().success());
}

#[test]
fn a_repair_does_not_end_a_clamp() {
    let cgroup = cgroup("clamped");
    let leak = Leak::start(&cgroup, 4).unwrap();
    let mut agent = Agent::start(&LeakPolicy::enforcing(&cgroup, "clamp").toml()).unwrap();
    let done = |record: &Record| matches!(record, Record::Outcome { .. }).then_some(());
    agent.await_record("the clamp", done).unwrap();
    let clamped = Holds::of(&cgroup).unwrap();
    assert!(clamped.clamp_mark.is_some(), "{clamped:?}");
    let repair = |agent: &Agent, more: &[&str]| {
        let target = format!("cgroup:{}", cgroup.path());
        let words = [&["repair", &target, "--limit", "150"], more].concat();
        let output = agent.cli(&words).unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    for more in [&[][..], &["--dry-run"], &["--force"]] {
        let (code, said) = repair(&agent, more);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("mcp-guard has clamped it"), "{said}");
        assert_eq!(Holds::of(&cgroup).unwrap(), clamped);
    }
    assert!(agent.cli(&["thaw", &format!("cgroup:{}", cgroup.path())]).unwrap().status.success());
    let (code, said) = repair(&agent, &[]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(Holds::of(&cgroup).unwrap(), Holds::nothing(150));
    assert!(leak.end().unwrap().success());
}

/// Runs as root without the capabilities that BPF needs, as in a container.
#[test]
fn the_agents_memory_is_locked() {
    let agent = Agent::start("").unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
    let kib: u64 = locked.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kib > 0, "{locked}");
    assert!(!agent.log().contains("cannot lock"), "{}", agent.log());
}

#[test]
fn missing_bpf_rights_are_reported_in_one_clear_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let without_bpf = |arguments: &[&str]| {
        let program = workload("mcp-guard").unwrap();
        let mut command = std::process::Command::new("setpriv");
        command.args(["--bounding-set", "-sys_admin,-bpf,-perfmon"]).arg(program);
        command.arg("--run-dir").arg(folder.path()).arg("--audit").arg(folder.path().join("audit"));
        command.args(["--docker", "/nonexistent"]).args(arguments).output().unwrap()
    };
    for verb in ["demo", "run"] {
        let output = without_bpf(&[verb]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{verb}: {said}");
        assert!(output.stdout.is_empty(), "{verb}");
        let sentence = said.lines().last().unwrap();
        assert!(sentence.contains("BPF") && sentence.contains("CAP_BPF"), "{verb}: {said}");
    }
    let doctor = without_bpf(&["doctor"]);
    assert_eq!(doctor.status.code(), Some(1), "something is missing");
    let said = String::from_utf8(doctor.stdout).unwrap();
    assert!(said.lines().any(|line| line.starts_with("MISSING   BPF ")), "{said}");
}

/// Without a server, a request to it waits for ever. A user who may not use it gets the kernel's own answer.
#[test]
fn a_log_on_a_file_system_with_a_server_is_warned_about() {
    let folder = tempfile::tempdir().unwrap();
    let mount = folder.path().join("mount");
    fs::create_dir(&mount).unwrap();
    let script =
        "exec 3<>/dev/fuse; mount -i -t fuse -o \"$1\" none \"$2\" && shift 2 && exec \"$@\"";
    let storage = |user: u32, log: &std::path::Path| {
        let mut command = std::process::Command::new("unshare");
        command.args(["--mount", "sh", "-c", script, "sh"]);
        command.arg(format!("fd=3,rootmode=40000,user_id={user},group_id=0")).arg(&mount);
        command.arg(workload("mcp-guard").unwrap()).arg("--run-dir").arg(folder.path());
        command.arg("--audit").arg(log).args(["--docker", "/nonexistent", "doctor"]);
        let output = command.output().unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        let line = said.lines().find(|line| line.split_whitespace().nth(1) == Some("storage"));
        line.map(str::to_owned).ok_or(said).unwrap()
    };
    let dead = storage(0, &mount.join("audit.jsonl"));
    assert!(dead.starts_with("degraded") && dead.contains("does not answer within 1s"), "{dead}");
    let fuse = storage(65534, &mount);
    assert!(fuse.starts_with("degraded") && fuse.contains("is on a FUSE file system"), "{fuse}");
    assert!(fuse.contains("audit log") && !fuse.contains("run directory"), "{fuse}");
    let local = storage(0, &folder.path().join("audit.jsonl"));
    assert!(local.starts_with("ok"), "{local}");
}

/// A task has one guard. Counting it for two would make both counts wrong.
#[test]
fn a_guard_inside_another_is_refused_and_logged_once() {
    let outer = cgroup("outer");
    let inner = outer.child("inner").unwrap();
    let rules = format!("{}{}", observing(&outer), observing(&inner));
    let mut agent = Agent::start(&rules).unwrap();
    agent
        .wait_until("a second look at the cgroups", |agent| Ok(agent.status()?.uptime_ms > 2500))
        .unwrap();
    let guards = agent.status().unwrap().guards;
    assert_eq!(guards.len(), 1);
    assert_eq!(guards[0].cgroup_id.0, outer.id());
    let log = agent.log();
    assert_eq!(log.matches("it overlaps guard").count(), 1, "{log}");
}

/// A guard with many cgroups has only some of them in the kernel's map.
#[test]
fn a_guard_inside_a_cgroup_that_is_not_in_the_map_is_refused() {
    let outer = cgroup("outer-large");
    for number in 0..1100 {
        fs::create_dir(outer.unified_dir().join(number.to_string())).unwrap();
    }
    let late = outer.child("late").unwrap();
    let rules = format!("{}{}", observing(&outer), observing(&late));
    let path = late.path().to_owned();
    drop(late);
    let mut agent = Agent::start(&rules).unwrap();
    agent.guard(outer.id()).unwrap();
    // It comes when the guard has more than its part of the map.
    let late = outer.child("late").unwrap();
    assert_eq!(late.path(), path);
    let refused = |record: &Record| match record {
        Record::GuardRefused { guard, reason } => Some((guard.cgroup_id.0, reason.clone())),
        _ => None,
    };
    let (of, reason) = agent.await_record("it is refused", refused).unwrap();
    assert!(of == late.id() && reason.starts_with("it overlaps guard"), "{reason}");
    assert!(agent.guard(late.id()).is_err());
}

/// A tenant must not take all slots, and nobody is left out in silence.
#[test]
fn a_guard_that_enforces_takes_the_slot_of_one_that_observes() {
    const SLOTS: usize = 1024 - 16;
    let above = cgroup("slots");
    let many: Vec<_> =
        (0..SLOTS + 5).map(|number| above.child(&number.to_string()).unwrap()).collect();
    let first = Sleeper::start(&many[0]).unwrap();
    let late = above.child("late").unwrap();
    let enforcing = format!("[[guard]]\ncgroup = \"{}\"\nmode = \"enforce\"\n", late.path());
    let path = late.path().to_owned();
    drop(late);
    let rules: String = many.iter().map(observing).collect();
    let mut agent = Agent::start(&format!("{rules}{enforcing}")).unwrap();
    let is = |agent: &Agent, guards: usize, unguarded: usize| {
        let status = agent.status()?;
        Ok((status.guards.len(), status.unguarded) == (guards, unguarded))
    };
    agent.wait_until("the slots are full", |agent| is(agent, SLOTS, 5)).unwrap();
    let status = agent.cli(&["status"]).unwrap();
    assert_eq!(status.status.code(), Some(1));
    let shown = String::from_utf8(status.stdout).unwrap();
    assert!(shown.contains("NOT GUARDED: 5 cgroups"), "{shown}");
    let late = above.child("late").unwrap();
    assert_eq!(late.path(), path);
    let id = late.id();
    agent.wait_until("it is guarded", |agent| Ok(agent.guard(id).is_ok())).unwrap();
    agent.wait_until("another made room", |agent| is(agent, SLOTS, 6)).unwrap();
    let refused = |record: &Record| match record {
        Record::GuardRefused { reason, .. } => Some(reason.clone()),
        _ => None,
    };
    let reasons: Vec<_> = agent.audit().unwrap().iter().filter_map(refused).collect();
    assert_eq!(reasons, vec!["all guard slots are taken"; 6]);
    drop(first);
}
