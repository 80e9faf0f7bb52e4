//! Bystanders are safe: mcp-guard refuses every request to act on one.
//!
//! Where a broken refusal would harm more than the test's own cgroup, the tests try dry runs only.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]

use std::{
    fs,
    process::{Output, Stdio},
};

use mcp_guard_core::refusal::ENGINES;
use mcp_guard_tests::{
    agent::{Agent, command},
    cgroup::FixtureCgroup,
    holds::Holds,
    leak::observing,
    sleeper::Sleeper,
};

const FOUND: u64 = 200;
const DRY: [&[&str]; 2] = [&["freeze", "--dry-run"], &["kill", "--dry-run"]];
/// For the test's own cgroup only.
const REAL: [&[&str]; 4] =
    [&["freeze", "--dry-run"], &["kill", "--dry-run"], &["freeze", "--for", "1s"], &["kill"]];

fn cgroup(what: &str) -> FixtureCgroup {
    let cgroup = FixtureCgroup::new(what).unwrap();
    cgroup.set_pids_max(FOUND).unwrap();
    cgroup
}

fn target(cgroup: &FixtureCgroup) -> String {
    format!("cgroup:{}", cgroup.path())
}

/// Runs the CLI without an agent.
fn cli(arguments: &[&str], target: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let mut command = command(folder.path(), "/nonexistent").unwrap();
    command.args(arguments).arg(target).output().unwrap()
}

fn assert_refused(output: &Output, reason: &str) {
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("refused: ") && said.contains(reason), "{said}, not: {reason}");
}

fn assert_untouched(cgroup: &FixtureCgroup) {
    assert_eq!(Holds::of(cgroup).unwrap(), Holds::nothing(FOUND));
}

#[test]
fn the_root_cgroup_and_that_of_pid_1_are_refused() {
    for verb in DRY {
        assert_refused(&cli(verb, "cgroup:/"), "it is the root cgroup");
        // With systemd this is init.scope, and without systemd it is the root.
        assert_refused(&cli(verb, "pid:1"), "");
    }
}

#[test]
fn mcp_guards_own_cgroup_and_those_above_it_are_refused() {
    let outer = cgroup("own");
    let inner = outer.child("inner").unwrap();
    let folder = tempfile::tempdir().unwrap();
    for verb in DRY {
        for place in [&inner, &outer] {
            let mut command = command(folder.path(), "/nonexistent").unwrap();
            command.args(verb).arg(target(place)).stdout(Stdio::piped());
            let output = inner.spawn(command).unwrap().wait_with_output().unwrap();
            assert_refused(&output, "mcp-guard itself runs in it");
        }
    }
    assert_untouched(&outer);
}

#[test]
fn logins_user_managers_and_init_are_refused() {
    for unit in ["session-1.scope", "user@1000.service", "init.scope"] {
        let above = cgroup("login");
        let inside = above.child(unit).unwrap();
        let mut sleeper = Sleeper::start(&inside).unwrap();
        for verb in REAL {
            for place in [&inside, &above] {
                assert_refused(&cli(verb, &target(place)), unit);
            }
        }
        assert_untouched(&above);
        assert!(sleeper.lives().unwrap());
    }
}

#[test]
fn processes_that_run_containers_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    // The kernel keeps 15 bytes of a name. `containerd-shim-runc-v2` is a real longer one.
    for name in ENGINES.iter().copied().chain(["containerd-shim-runc-v2"]) {
        let program = folder.path().join(name);
        fs::copy("/bin/sleep", &program).unwrap();
        let above = cgroup("engine");
        let inside = above.child("inside").unwrap();
        let mut sleeper = Sleeper::start_as(&inside, &program).unwrap();
        let shown = &name[..name.len().min(15)];
        for verb in REAL {
            for place in [&inside, &above] {
                assert_refused(&cli(verb, &target(place)), &format!("({shown})"));
            }
        }
        assert_untouched(&above);
        assert!(sleeper.lives().unwrap());
    }
}

#[test]
fn containers_side_by_side_are_refused_but_nested_ones_are_not() {
    let above = cgroup("side-by-side");
    let (id_a, id_b) = ("a".repeat(64), "b".repeat(64));
    let first = above.child(&id_a).unwrap();
    let nested = first.child(&id_b).unwrap();
    let mut sleeper = Sleeper::start(&nested).unwrap();
    for verb in DRY {
        for place in [&nested, &first, &above] {
            let output = cli(verb, &target(place));
            let said = String::from_utf8_lossy(&output.stdout);
            assert_eq!(output.status.code(), Some(0), "{verb:?} {}: {said}", place.path());
            assert!(said.contains("dry run"), "{said}");
        }
    }
    let _second = above.child(&id_b).unwrap();
    for verb in REAL {
        assert_refused(&cli(verb, &target(&above)), "2 containers side by side");
    }
    assert_untouched(&above);
    assert!(sleeper.lives().unwrap());
}

/// The root's tree contains every guard, so a refused request for the root must not affect them.
#[test]
fn the_other_guards_keep_counting_after_a_refused_request() {
    let guarded = cgroup("bystander");
    let mut sleeper = Sleeper::start(&guarded).unwrap();
    let agent = Agent::start(&observing(&guarded)).unwrap();
    let before = agent.guard(guarded.id()).unwrap().guard.totals.execs;
    for verb in DRY {
        assert_refused(&agent.cli(&[verb, &["cgroup:/"]].concat()).unwrap(), "root cgroup");
    }
    let mut second = Sleeper::start(&guarded).unwrap();
    let after = agent.guard(guarded.id()).unwrap().guard.totals;
    assert_eq!((before, after.execs), (0, 1), "the exec of the second process");
    assert!(sleeper.lives().unwrap() && second.lives().unwrap());
}
