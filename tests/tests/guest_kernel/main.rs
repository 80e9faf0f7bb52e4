//! Facts about the kernel on pure cgroup v2 that the pure tests take for granted.
//!
//! They need only a kernel, this program and a few shell commands: no systemd and no engine.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]

mod lsm;
mod programs;

use std::{
    fs::{self, File},
    process::{Command, Stdio},
};

use mcp_guard::host::{
    cgroup::Cgroup,
    kernel,
    layout::Layout,
    mark::{self, Mark},
};
use mcp_guard_core::{
    Time,
    id::{Pid, Ticks},
    incident::Hold,
};
use mcp_guard_tests::{
    agent::DEADLINE, cgroup::FixtureCgroup, fact, holds::write_freeze, sleeper::Sleeper, workload,
};
use rustix::{
    fs::{XattrFlags, fgetxattr, fsetxattr},
    io::Errno,
};
use serde::Deserialize;

/// The workload's own counts.
#[derive(Debug, Deserialize)]
struct Ledger {
    processes: u64,
    refused: u64,
}

/// Runs the workload in `place` and returns its ledger. The exit status is ignored, because the workload
/// fails if even its workers cannot be born.
fn run(place: &FixtureCgroup, line: &str) -> Ledger {
    let mut command = Command::new(workload("spawn-workload").unwrap());
    command.args(line.split(' ')).stdout(Stdio::piped()).stderr(Stdio::null());
    let output = place.spawn(command).unwrap().wait_with_output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

fn yes_or_no(there: bool) -> &'static str {
    if there { "yes" } else { "no" }
}

#[test]
fn the_kernels_version_and_files_are_detected() {
    let (major, minor) = kernel::version(&kernel::release()).unwrap();
    fact::record("kernel", format!("{major}.{minor}")).unwrap();
    let layout = Layout::read().unwrap();
    assert!(layout.pids.as_ref().is_some_and(|tree| !tree.v1 && tree.is_handed_down()));
    let cgroup = FixtureCgroup::new("files").unwrap();
    let has = |file: &str| cgroup.unified_dir().join(file).exists();
    for file in ["cgroup.kill", "pids.peak"] {
        fact::record(file, yes_or_no(has(file))).unwrap();
    }
    let files = kernel::Files::of(&layout);
    assert_eq!(files.kill, has("cgroup.kill"));
    assert_eq!(files.peak, Some(has("pids.peak")));
    assert_eq!(files.own_refusals, Some(has("pids.events.local")));
    kernel::check(&layout).unwrap();
}

#[test]
fn the_peak_outlives_the_tasks() {
    let cgroup = FixtureCgroup::new("peak").unwrap();
    run(&cgroup, "--case bomb --seconds 30 --workers 1 --alive 10 --max 11");
    cgroup.wait_until("empty", DEADLINE, || cgroup.pids_current().unwrap() == 0).unwrap();
    let peak = fs::read_to_string(cgroup.pids_dir().join("pids.peak"));
    // The main program, its worker and ten children.
    match peak {
        Ok(peak) => assert_eq!(peak.trim(), "12"),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound),
    }
}

#[test]
fn a_limit_binds_births_but_not_arrivals() {
    let cgroup = FixtureCgroup::new("arrivals").unwrap();
    cgroup.set_pids_max(1).unwrap();
    let outside = FixtureCgroup::new("outside").unwrap();
    let sleepers: Vec<_> = (0..3).map(|_| Sleeper::start(&outside).unwrap()).collect();
    for sleeper in &sleepers {
        let procs = cgroup.unified_dir().join("cgroup.procs");
        fs::write(procs, sleeper.pid().to_string()).unwrap();
    }
    assert_eq!(cgroup.pids_current().unwrap(), 3, "three arrivals at a limit of one");
    assert_eq!(cgroup.refusals("pids.events").unwrap(), Some(0));
    // The fourth arrival is the workload itself. Its ledger counts only EAGAIN as a refusal.
    let ledger = run(&cgroup, "--case fork --seconds 1 --workers 2");
    assert_eq!((ledger.processes, ledger.refused), (0, 2));
    assert_eq!(cgroup.refusals("pids.events").unwrap(), Some(2));
}

#[test]
fn a_lower_limit_kills_nothing() {
    let cgroup = FixtureCgroup::new("lower").unwrap();
    cgroup.set_pids_max(10).unwrap();
    let mut sleepers: Vec<_> = (0..3).map(|_| Sleeper::start(&cgroup).unwrap()).collect();
    for limit in [2, 0] {
        cgroup.set_pids_max(limit).unwrap();
        assert_eq!(cgroup.pids_current().unwrap(), 3, "at a limit of {limit}");
        assert!(sleepers.iter_mut().all(|sleeper| sleeper.lives().unwrap()));
    }
}

/// CLONE_INTO_CGROUP is the only way into another cgroup that its limit binds. `host_exact` shows that the
/// kernel side counts such a child in the right cgroup.
#[test]
fn a_birth_into_a_cgroup_is_bound_by_its_limit() {
    let outside = FixtureCgroup::new("outside").unwrap();
    let target = FixtureCgroup::new("target").unwrap();
    let into = target.unified_dir().display();
    let line = format!("--case into-cgroup --workers 1 --seconds 1 --into {into}");
    target.set_pids_max(0).unwrap();
    let ledger = run(&outside, &line);
    assert_eq!(ledger.processes, 1, "only the worker is born, and it is born outside: {ledger:?}");
    assert!(ledger.refused > 0, "{ledger:?}");
    assert_eq!(target.refusals("pids.events").unwrap(), Some(ledger.refused));
    assert_eq!(outside.refusals("pids.events").unwrap(), Some(0));
    // The limit of the parent's cgroup does not bind it.
    target.set_pids_max(1).unwrap();
    outside.set_pids_max(2).unwrap();
    let ledger = run(&outside, &line);
    assert!(ledger.processes > 1 && ledger.refused == 0, "{ledger:?}");
}

/// The clamp reads these counters for the first sign that it does harm.
#[test]
fn a_refused_fork_is_counted_at_the_limit_or_at_the_forking_cgroup() {
    let parent = FixtureCgroup::new("refusals").unwrap();
    parent.hand_pids_down().unwrap();
    let [forking, limited] = ["forking", "limited"].map(|name| parent.child(name).unwrap());
    let bomb = "--case bomb --seconds 1 --workers 1 --alive 10";
    // Both limits leave room for the main program and its worker: first the limit above, then its own.
    parent.set_pids_max(2).unwrap();
    let above = run(&forking, bomb).refused;
    parent.set_pids_max(100).unwrap();
    limited.set_pids_max(2).unwrap();
    let own = run(&limited, bomb).refused;
    assert!(above > 0 && own > 0);

    let all = |cgroup: &FixtureCgroup| cgroup.refusals("pids.events").unwrap().unwrap();
    let local = |cgroup: &FixtureCgroup| cgroup.refusals("pids.events.local").unwrap();
    let totals = (all(&parent), all(&forking), all(&limited));
    let locals = (local(&parent), local(&forking), local(&limited));
    let layout = Layout::read().unwrap();
    let denials =
        |path: &FixtureCgroup| Cgroup::open(&layout, path.path()).unwrap().pids_denials().unwrap();
    if locals.0.is_some() {
        fact::record("pids.events", "own limit").unwrap();
        assert_eq!(totals, (above + own, 0, own), "counted at the limit that was hit and above it");
        assert_eq!(locals, (Some(above), Some(0), Some(own)));
        assert_eq!(denials(&parent), above);
    } else {
        fact::record("pids.events", "forking cgroup").unwrap();
        assert_eq!(totals, (0, above, own), "counted where the fork was tried");
        assert_eq!(locals, (None, None, None));
        assert_eq!(
            denials(&parent),
            above + own,
            "no refusal is missed, but refusals by a limit below count too"
        );
    }
    assert_eq!(denials(&limited), own);
}

#[test]
fn a_freeze_and_a_kill_reach_nested_cgroups() {
    let parent = FixtureCgroup::new("nested").unwrap();
    let child = parent.child("child").unwrap();
    let deeper = child.child("deeper").unwrap();
    let all = [&parent, &child, &deeper];
    let mut sleepers = all.map(|cgroup| Sleeper::start(cgroup).unwrap());
    write_freeze(&parent, "1").unwrap();
    for cgroup in all {
        cgroup.wait_until("frozen", DEADLINE, || cgroup.is_frozen().unwrap()).unwrap();
    }
    let asked = all.map(|cgroup| cgroup.read("cgroup.freeze").unwrap());
    assert_eq!(asked, ["1\n", "0\n", "0\n"], "only the parent was asked to freeze");
    fs::write(parent.unified_dir().join("cgroup.kill"), "1").unwrap();
    parent
        .wait_until("killed while frozen", DEADLINE, || {
            parent.read("cgroup.events").unwrap().contains("populated 0")
        })
        .unwrap();
    let mut all_ended = || sleepers.iter_mut().all(|sleeper| !sleeper.lives().unwrap());
    parent.wait_until("ended", DEADLINE, &mut all_ended).unwrap();
}

#[test]
fn a_thaw_above_leaves_a_cgroup_with_its_own_freeze_frozen() {
    let parent = FixtureCgroup::new("thaw").unwrap();
    let child = parent.child("child").unwrap();
    let deeper = child.child("deeper").unwrap();
    let all = [&parent, &child, &deeper];
    let _sleepers = all.map(|cgroup| Sleeper::start(cgroup).unwrap());
    let becomes = |expected: [bool; 3]| {
        for (cgroup, frozen) in all.into_iter().zip(expected) {
            let reached = || cgroup.is_frozen().unwrap() == frozen;
            cgroup.wait_until(&format!("frozen {frozen}"), DEADLINE, reached).unwrap();
        }
    };
    write_freeze(&child, "1").unwrap();
    becomes([false, true, true]);
    write_freeze(&parent, "1").unwrap();
    becomes([true, true, true]);
    write_freeze(&parent, "0").unwrap();
    becomes([false, true, true]);
    write_freeze(&child, "0").unwrap();
    becomes([false, false, false]);
}

/// A mark is on the cgroup itself, so it cannot outlive the cgroup.
#[test]
fn a_mark_belongs_to_the_cgroup_and_not_to_its_path() {
    const NAME: &str = "trusted.mcp-guard.test";
    let parent = FixtureCgroup::new("marks").unwrap();
    let marked = parent.child("again").unwrap();
    let dir = File::open(marked.unified_dir()).unwrap();
    fsetxattr(&dir, NAME, b"ours", XattrFlags::empty()).unwrap();
    let mut value = [0; 16];
    let length = fgetxattr(&dir, NAME, &mut value[..]).unwrap();
    assert_eq!(&value[..length], b"ours");
    let mark = Mark {
        incident: "i".into(),
        reason: "r".to_owned(),
        deadline: Time(1),
        boot_id: "b".to_owned(),
        holder: Pid(1),
        holder_start: Ticks(2),
        found: None,
        wrote: None,
        before: None,
        freeze: None,
        of_a_server: false,
    };
    for slot in [Hold::Freeze, Hold::Clamp] {
        mark::write(&dir, slot, &mark).unwrap();
        assert_eq!(mark::read(&dir, slot).unwrap().as_ref(), Some(&mark));
    }
    let (path, id) = (marked.path().to_owned(), marked.id());
    drop(marked);
    let again = parent.child("again").unwrap();
    assert_eq!(again.path(), path);
    assert_ne!(again.id(), id);
    let dir = File::open(again.unified_dir()).unwrap();
    assert_eq!(fgetxattr(&dir, NAME, &mut value[..]), Err(Errno::NODATA));
    for slot in [Hold::Freeze, Hold::Clamp] {
        assert_eq!(mark::read(&dir, slot).unwrap(), None);
    }
}
