//! Cgroups whose names are not plain text: those that systemd escapes, and those that a container invents.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]

use std::{
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt as _,
    process::{Command, Output},
};

use mcp_guard_tests::{
    agent::{Agent, command},
    cgroup::FixtureCgroup,
    sleeper::Sleeper,
};
use serde_json::Value;

const FOUND: u64 = 200;

/// Makes a cgroup whose name has a dash in the form that systemd escapes it.
fn cgroup() -> FixtureCgroup {
    let cgroup = FixtureCgroup::new(r"a\x2db").unwrap();
    cgroup.set_pids_max(FOUND).unwrap();
    cgroup
}

fn target(cgroup: &FixtureCgroup) -> String {
    format!("cgroup:{}", cgroup.path())
}

/// Runs the CLI without an agent.
fn cli(arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    command(folder.path(), "/nonexistent").unwrap().args(arguments).output().unwrap()
}

fn diagnosed(target: &str) -> Value {
    let output = cli(&["diagnose", target, "--json"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{target}: {said}"))
}

#[test]
fn a_name_with_a_backslash_is_diagnosed_frozen_and_killed() {
    let cgroup = cgroup();
    let mut sleeper = Sleeper::start(&cgroup).unwrap();
    for target in [target(&cgroup), format!("pid:{}", sleeper.pid())] {
        let said = diagnosed(&target);
        assert_eq!(said["target"]["cgroup"], cgroup.path());
        assert_eq!(
            (&said["effective_limit"], &said["charged"]["tasks"]),
            (&FOUND.into(), &1.into())
        );
    }
    let agent = Agent::start(&format!("[[guard]]\ncgroup = '{}'\n", cgroup.path())).unwrap();
    assert_eq!(agent.guard(cgroup.id()).unwrap().cgroup, cgroup.path());
    let done = |arguments: &[&str]| {
        let target = target(&cgroup);
        let output = agent.cli(&[arguments, &[&target]].concat()).unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {said}");
    };
    done(&["freeze", "--for", "60s"]);
    assert!(cgroup.is_frozen().unwrap());
    done(&["thaw"]);
    assert!(!cgroup.is_frozen().unwrap() && sleeper.lives().unwrap());
    drop(agent);
    assert_eq!(cli(&["kill", &target(&cgroup)]).status.code(), Some(0));
    assert!(!sleeper.lives().unwrap());
}

#[test]
fn a_cgroup_with_an_unprintable_name_is_reached_by_pid_and_from_above() {
    let cgroup = cgroup();
    let mut sleeper = Sleeper::start(&cgroup).unwrap();
    for name in [&b"\xff"[..], b"a\x1b[2J"] {
        let below = cgroup.unified_dir().join(OsStr::from_bytes(name));
        fs::create_dir(&below).unwrap();
        let mut inside = Command::new("sleep").arg("600").spawn().unwrap();
        fs::write(below.join("cgroup.procs"), inside.id().to_string()).unwrap();
        let by_pid = cli(&["freeze", "--dry-run", &format!("pid:{}", inside.id())]);
        let killed = cli(&["kill", &target(&cgroup)]);
        let _ = inside.kill();
        let status = inside.wait().unwrap();
        fs::remove_dir(&below).unwrap();
        assert_eq!(by_pid.status.code(), Some(0), "{}", String::from_utf8_lossy(&by_pid.stderr));
        let said = String::from_utf8_lossy(&by_pid.stdout);
        assert!(said.contains("/?") && !said.contains('\x1b'), "{said}");
        assert_eq!(killed.status.code(), Some(0), "{status}");
    }
    assert!(!sleeper.lives().unwrap(), "the first kill reaches the whole tree");
    let output = cli(&["freeze", "--dry-run", "cgroup:/?a"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("pid:N"));
}
