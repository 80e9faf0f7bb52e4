//! Tests of the fixtures themselves on the running kernel, because other tests rely on them.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]

use mcp_guard_tests::cgroup::FixtureCgroup;
use mcp_guard_tests::lines::Lines;
use mcp_guard_tests::workload;
use serde_json::Value;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(20);
const KILLED: Option<i32> = Some(9);

fn sleeper() -> Command {
    let mut command = Command::new("sleep");
    command.arg("600");
    command
}

/// Runs a workload inside `cgroup` to its end and returns its ledger.
fn ledger(cgroup: &FixtureCgroup, line: &str) -> Value {
    finish(start_workload(cgroup, line))
}

fn start_workload(cgroup: &FixtureCgroup, line: &str) -> Child {
    let mut command = Command::new(workload("spawn-workload").unwrap());
    command.args(line.split_whitespace()).stdout(Stdio::piped());
    cgroup.spawn(command).unwrap()
}

fn finish(child: Child) -> Value {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", output.status);
    serde_json::from_slice(&output.stdout).unwrap()
}

fn count(ledger: &Value, key: &str) -> u64 {
    ledger[key].as_u64().unwrap()
}

fn start_leak(cgroup: &FixtureCgroup, line: &str) -> Child {
    let mut command = Command::new(workload("launcher-lookalike").unwrap());
    command.arg("leak").args(line.split_whitespace());
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    cgroup.spawn(command).unwrap()
}

/// Returns the command lines in a cgroup, sorted, with their words separated by one space.
fn command_lines(cgroup: &FixtureCgroup) -> Vec<String> {
    let read = |pid: i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let lines = cgroup.procs().unwrap().into_iter().map(read);
    let mut lines: Vec<_> = lines.map(|l| l.trim_end_matches('\0').replace('\0', " ")).collect();
    lines.sort();
    lines
}

fn freeze(cgroup: &FixtureCgroup) {
    fs::write(cgroup.unified_dir().join("cgroup.freeze"), "1").unwrap();
    cgroup.wait_until("frozen", SOON, || cgroup.is_frozen().unwrap()).unwrap();
}

fn assert_gone(cgroup: &(PathBuf, PathBuf)) {
    assert!(!cgroup.0.exists() && !cgroup.1.exists(), "{cgroup:?} is left");
}

fn dirs(cgroup: &FixtureCgroup) -> (PathBuf, PathBuf) {
    (cgroup.unified_dir().to_path_buf(), cgroup.pids_dir().to_path_buf())
}

#[test]
fn a_program_is_in_both_cgroup_trees_from_its_start() {
    let cgroup = FixtureCgroup::new("inside").unwrap();
    let mut command = Command::new("cat");
    command.arg("/proc/self/cgroup").stdout(Stdio::piped());
    let output = cgroup.spawn(command).unwrap().wait_with_output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    let mine = |line: &&str| line.ends_with(cgroup.path());
    let inside: Vec<_> = table.lines().filter(mine).collect();
    let trees = if cgroup.pids_dir() == cgroup.unified_dir() { 1 } else { 2 };
    assert_eq!(inside.len(), trees, "{table}");
    assert!(inside.iter().any(|line| line.starts_with("0::")), "{table}");
}

#[test]
fn drop_removes_nested_frozen_cgroups_with_their_processes() {
    let cgroup = FixtureCgroup::new("frozen").unwrap();
    let nested = cgroup.child("nested").unwrap();
    let mut sleepers = [cgroup.spawn(sleeper()).unwrap(), nested.spawn(sleeper()).unwrap()];
    assert_eq!(cgroup.procs().unwrap().len(), 1);
    assert_eq!(cgroup.read("cgroup.procs").unwrap().trim(), sleepers[0].id().to_string());
    freeze(&nested);
    freeze(&cgroup);
    let places = [dirs(&cgroup), dirs(&nested)];
    drop(cgroup);
    places.iter().for_each(assert_gone);
    for sleeper in &mut sleepers {
        assert_eq!(sleeper.wait().unwrap().signal(), KILLED);
    }
    // The nested fixture is dropped last, and nothing is left for it to do.
}

#[test]
fn a_panicking_test_leaves_no_cgroup_and_no_process() {
    let cgroup = FixtureCgroup::new("panic").unwrap();
    let place = dirs(&cgroup);
    let mut child = cgroup.spawn(sleeper()).unwrap();
    let panicked = std::panic::catch_unwind(move || {
        let _cgroup = cgroup;
        panic!("as a failed assertion would");
    });
    assert!(panicked.is_err());
    assert_gone(&place);
    assert_eq!(child.wait().unwrap().signal(), KILLED);
}

#[test]
fn drop_kills_processes_that_are_in_the_pids_tree_only() {
    let cgroup = FixtureCgroup::new("pids-only").unwrap();
    let place = dirs(&cgroup);
    let mut child = sleeper().spawn().unwrap();
    fs::write(cgroup.pids_dir().join("cgroup.procs"), child.id().to_string()).unwrap();
    assert_eq!(cgroup.pids_current().unwrap(), 1);
    drop(cgroup);
    assert_gone(&place);
    assert_eq!(child.wait().unwrap().signal(), KILLED);
}

#[test]
fn the_workloads_ledgers_are_right() {
    let cgroup = FixtureCgroup::new("ledgers").unwrap();
    // Case, number of workers, and the processes, threads and execs that 61 births make. The workers count
    // as births.
    let table = [
        ("fork", 2, [61, 0, 0]),
        ("vfork", 2, [61, 0, 0]),
        ("clone3", 2, [61, 0, 0]),
        ("clone-parent", 2, [61, 0, 0]),
        ("threads", 2, [2, 59, 0]),
        ("exec", 2, [61, 0, 59]),
        // One worker only. With two, the last two births may be two processes without their threads.
        ("exec-thread", 1, [31, 30, 30]),
        ("bomb", 2, [61, 0, 0]),
    ];
    for (case, workers, expected) in table {
        let line = format!("--case {case} --seconds 30 --workers {workers} --max 61 --alive 20");
        let ledger = ledger(&cgroup, &line);
        let found = ["processes", "threads", "execs"].map(|key| count(&ledger, key));
        assert_eq!(found, expected, "{ledger}");
        assert_eq!(count(&ledger, "refused"), 0, "{ledger}");
    }
    cgroup.wait_until("empty", SOON, || cgroup.pids_current().unwrap() == 0).unwrap();
}

#[test]
fn pids_max_refuses_the_forks_of_a_bomb() {
    let cgroup = FixtureCgroup::new("bomb").unwrap();
    cgroup.set_pids_max(30).unwrap();
    let ledger = ledger(&cgroup, "--case bomb --seconds 1 --workers 2 --alive 40");
    assert!(count(&ledger, "refused") > 0 && count(&ledger, "processes") > 30, "{ledger}");
    let events = fs::read_to_string(cgroup.pids_dir().join("pids.events")).unwrap();
    assert_eq!(events.trim(), format!("max {}", count(&ledger, "refused")), "{ledger}");
}

/// A child that is born into a frozen cgroup stops before its first instruction, so the test can examine it.
#[test]
fn into_cgroup_children_are_born_in_the_nested_cgroup() {
    let cgroup = FixtureCgroup::new("into").unwrap();
    let nested = cgroup.child("nested").unwrap();
    freeze(&nested);
    let into = nested.unified_dir().display();
    let line = format!("--case into-cgroup --seconds 1 --workers 1 --into {into}");
    let child = start_workload(&cgroup, &line);
    nested.wait_until("a birth", SOON, || !nested.procs().unwrap().is_empty()).unwrap();
    let born = nested.procs().unwrap();
    let table = fs::read_to_string(format!("/proc/{}/cgroup", born[0])).unwrap();
    assert!(table.lines().any(|l| l == format!("0::{}", nested.path())), "{table}");
    assert!(!born.contains(&child.id().cast_signed()));
    fs::write(nested.unified_dir().join("cgroup.freeze"), "0").unwrap();
    let ledger = finish(child);
    assert!(count(&ledger, "processes") >= 2, "{ledger}");
}

#[test]
fn a_lookalike_tree_has_the_documented_argv() {
    let leaf = "node /opt/npm-cache/_npx/0123456789abcdef/node_modules/.bin/files";
    let a = "npm exec --yes @scope/files@1.2";
    for (switch, tree) in [("", vec![leaf, a]), ("--shell", vec![leaf, a, "sh -c 'files'"])] {
        let cgroup = FixtureCgroup::new("argv").unwrap();
        let mut gateway =
            start_leak(&cgroup, &format!("--package @scope/files@1.2 --count 3 {switch}"));
        let mut expected: Vec<_> = [&tree[..]; 3].concat().into_iter().map(String::from).collect();
        let program = workload("launcher-lookalike").unwrap();
        let own = format!("{} leak --package @scope/files@1.2 --count 3", program.display());
        expected.push(format!("{own} {switch}").trim_end().to_string());
        expected.sort();
        cgroup
            .wait_until("three trees", SOON, || command_lines(&cgroup) == expected)
            .unwrap_or_else(|error| panic!("{error}: {:#?}", command_lines(&cgroup)));
        drop(gateway.stdin.take());
        assert!(gateway.wait().unwrap().success());
        cgroup.wait_until("ended", SOON, || cgroup.procs().unwrap().is_empty()).unwrap();
    }
}

#[test]
fn crashing_trees_leave_no_process_and_no_zombie() {
    let cgroup = FixtureCgroup::new("crash").unwrap();
    let mut gateway = start_leak(&cgroup, "--package files --count 5 --crash --shell");
    let said = Lines::of(gateway.stdout.take().unwrap());
    while said.next().unwrap().expect("it ended before `started 5`") != "started 5" {}
    let children = format!("/proc/{0}/task/{0}/children", gateway.id());
    let no_child = || fs::read_to_string(&children).unwrap().is_empty();
    cgroup.wait_until("no child of the gateway", SOON, no_child).unwrap();
    assert_eq!(cgroup.procs().unwrap(), [gateway.id().cast_signed()]);
    drop(gateway.stdin.take());
    assert!(gateway.wait().unwrap().success());
}

/// When the gateway is killed, the kernel closes the servers' stdins, and its trees end as real servers do.
#[test]
fn trees_end_when_their_gateway_is_killed() {
    let cgroup = FixtureCgroup::new("orphans").unwrap();
    let mut gateway = start_leak(&cgroup, "--package files --count 4 --shell");
    cgroup.wait_until("four trees", SOON, || cgroup.procs().unwrap().len() == 13).unwrap();
    gateway.kill().unwrap();
    gateway.wait().unwrap();
    cgroup.wait_until("ended", SOON, || cgroup.procs().unwrap().is_empty()).unwrap();
}
