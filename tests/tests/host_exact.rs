//! Totals are exact to the last process and thread.
//!
//! The workload counts each successful clone in shared memory, and reaps all its children before it prints
//! the sum. Neither side counts a fork that the workload's own pids.max refuses.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use mcp_guard::host::{
    bpf::{Kernel, KernelOptions},
    cgroup::Cgroup,
    kernel::{release, version},
    layout::Layout,
};
use mcp_guard_common::{Kind, Totals};
use mcp_guard_core::id::{CgroupId, GuardId};
use mcp_guard_tests::{cgroup::FixtureCgroup, workload};
use serde::Deserialize;

const GUARD: GuardId = GuardId(9);
const WORKERS: &str = "4";
const PIDS_MAX: u64 = 200;

/// How long each case runs, in seconds. Each runs with a worker for each of two CPUs, and two more to keep
/// them busy. MCP_GUARD_TEST_SECONDS sets another time.
fn seconds() -> String {
    std::env::var("MCP_GUARD_TEST_SECONDS").unwrap_or_else(|_| "10".to_owned())
}

/// How long the worst cases run, in seconds.
fn long_seconds() -> String {
    let seconds: u64 = seconds().parse().expect("a number of seconds");
    (3 * seconds).to_string()
}

/// The workload's own counts.
#[derive(Debug, PartialEq, Deserialize)]
struct Ledger {
    processes: u64,
    threads: u64,
    execs: u64,
    refused: u64,
}

struct Counted {
    ledger: Ledger,
    totals: Totals,
    kernel: Kernel,
}

/// Guards `fixture`, runs the workload in `place`, and returns both counts.
fn count(
    options: KernelOptions,
    fixture: &FixtureCgroup,
    place: &FixtureCgroup,
    arguments: &[&str],
) -> Counted {
    let mut kernel = Kernel::start(options).expect("the programs load");
    let layout = Layout::read().expect("layout");
    let cgroup = Cgroup::open(&layout, fixture.path()).expect("the fixture");
    kernel.clear_totals(GUARD).expect("slot");
    cgroup
        .walk(&mut |dir, _| {
            kernel.add_cgroup(dir.id()?, GUARD).map(drop).map_err(std::io::Error::other)
        })
        .expect("membership");
    let ledger = run(place, arguments);
    let totals = kernel.totals(GUARD).expect("totals");
    Counted { ledger, totals, kernel }
}

fn run(place: &FixtureCgroup, arguments: &[&str]) -> Ledger {
    let mut command = Command::new(workload("spawn-workload").expect("built"));
    command.args(["--workers", WORKERS]).args(arguments).stdout(Stdio::piped());
    let output = place.spawn(command).expect("starts").wait_with_output().expect("ends");
    assert!(output.status.success(), "{arguments:?}: {}", output.status);
    serde_json::from_slice(&output.stdout).expect("a ledger")
}

/// Compares both counts. The workload itself arrives in the cgroup and execs there, which is one exec more
/// than its ledger has.
fn assert_exact(case: &str, Counted { ledger, totals, kernel }: &Counted) {
    let missing = missing(
        case,
        [
            ("processes", ledger.processes, totals.process_forks),
            ("threads", ledger.threads, totals.thread_forks),
            ("execs", ledger.execs + 1, totals.execs),
            ("arrivals", 1, totals.attaches),
            ("process exits", ledger.processes + 1, totals.process_exits),
            ("thread exits", ledger.threads, totals.thread_exits),
        ],
    );
    let left_out = left_out(kernel);
    assert!(missing <= left_out, "{case}: {missing} missing, {left_out} reported: {totals:?}");
    assert!(
        ledger.processes > 100 || case == "threads",
        "{case} made too few processes: {ledger:?}"
    );
}

/// Returns how much the kernel side did not count. Fails if it counted anything twice.
fn missing<const N: usize>(case: &str, rows: [(&str, u64, u64); N]) -> u64 {
    let missing = rows.map(|(what, expected, counted)| {
        let less = expected.checked_sub(counted);
        less.unwrap_or_else(|| panic!("{case}: {what}: {counted} counted of {expected}"))
    });
    missing.iter().sum()
}

/// Returns how many program runs the kernel reports as left out. It must be none before Linux 7. From
/// Linux 7 on, a task may be preempted inside a program, and the program then does not run for other tasks
/// on that CPU.
fn left_out(kernel: &Kernel) -> u64 {
    let left_out = kernel.losses()["recursion"];
    let may_preempt = version(&release()).is_some_and(|version| version >= (7, 0));
    assert!(left_out == 0 || may_preempt, "{left_out} left out");
    left_out
}

fn exact(case: &str, more: &[&str]) -> Ledger {
    let fixture = FixtureCgroup::new("exact").expect("a cgroup");
    fixture.set_pids_max(PIDS_MAX).expect("pids.max");
    let seconds = seconds();
    // If an option is given twice, the workload uses the last.
    let arguments = [&["--case", case, "--seconds", &seconds], more].concat();
    let counted = count(KernelOptions::default(), &fixture, &fixture, &arguments);
    assert_exact(case, &counted);
    counted.ledger
}

#[test]
fn forks_are_counted_exactly() {
    exact("fork", &[]);
}

#[test]
fn vforks_are_counted_exactly() {
    exact("vfork", &[]);
}

#[test]
fn clone3_is_counted_exactly() {
    exact("clone3", &[]);
}

/// With CLONE_PARENT, the child becomes the caller's sibling.
#[test]
fn clone_parent_is_counted_exactly() {
    exact("clone-parent", &[]);
}

#[test]
fn threads_are_counted_exactly() {
    let ledger = exact("threads", &[]);
    assert!(ledger.threads > 1000, "{ledger:?}");
}

#[test]
fn execs_are_counted_exactly() {
    exact("exec", &[]);
}

/// A thread that is not the leader calls exec and becomes the process.
#[test]
fn an_exec_from_a_thread_is_counted_exactly() {
    // An emulated guest makes less than ten processes a second.
    exact("exec-thread", &["--seconds", &long_seconds()]);
}

/// Runs on both CPUs for half a minute, and tries far more forks than pids.max allows.
#[test]
fn a_fork_bomb_on_all_cpus_is_counted_exactly() {
    let ledger = exact("bomb", &["--alive", "120", "--seconds", &long_seconds()]);
    assert!(ledger.refused > 1000, "pids.max refused too few forks: {ledger:?}");
}

#[test]
fn a_mix_of_everything_is_counted_exactly() {
    let ledger = exact("mix", &["--seconds", &long_seconds()]);
    assert!(ledger.refused > 0 && ledger.threads > 0 && ledger.execs > 0, "{ledger:?}");
}

/// A nested cgroup that is made later belongs to the guard from its first moment.
#[test]
fn a_nested_cgroup_made_after_the_guard_is_counted_exactly() {
    let fixture = FixtureCgroup::new("exact").expect("a cgroup");
    let mut kernel = Kernel::start(KernelOptions::default()).expect("the programs load");
    kernel.clear_totals(GUARD).expect("slot");
    kernel.add_cgroup(CgroupId(fixture.id()), GUARD).expect("membership");
    let nested = fixture.child("late").expect("nested");
    let deeper = nested.child("deeper").expect("nested");
    let arguments =
        ["--case", "mix", "--seconds", &seconds(), "--into", text(deeper.unified_dir())];
    let ledger = run(&nested, &arguments);
    let totals = kernel.totals(GUARD).expect("totals");
    assert_exact("nested", &Counted { ledger, totals, kernel });
}

/// With CLONE_INTO_CGROUP, the parent is outside every guard and its children are born inside one.
#[test]
fn children_born_into_another_cgroup_are_counted_exactly() {
    let outside = FixtureCgroup::new("outside").expect("a cgroup");
    outside.set_pids_max(PIDS_MAX).expect("pids.max");
    let guarded = FixtureCgroup::new("exact").expect("a cgroup");
    let into = text(guarded.unified_dir()).to_owned();
    // Bounded by a number and not by time, so that a slow guest makes as many.
    let arguments = ["--case", "into-cgroup", "--seconds", "60", "--max", "5000", "--into", &into];
    let counted = count(KernelOptions::default(), &guarded, &outside, &arguments);
    let Counted { ledger, totals, kernel } = counted;
    let workers: u64 = WORKERS.parse().expect("number");
    let expected = ledger.processes - workers;
    let rows = [
        ("all but the workers", expected, totals.process_forks),
        ("process exits", expected, totals.process_exits),
    ];
    assert!(missing("into-cgroup", rows) <= left_out(&kernel), "{totals:?}");
    assert_eq!((totals.execs, totals.attaches), (0, 0));
    assert!(totals.process_forks > 1000);
}

/// Kernels before 6.18 do not report which thread was the last, and the programs must detect it. The hard
/// case is threads that end together with their process.
#[test]
fn process_exits_are_exact_without_the_tracepoints_group_dead() {
    for case in ["mix", "threads"] {
        let fixture = FixtureCgroup::new("exact").expect("a cgroup");
        fixture.set_pids_max(PIDS_MAX).expect("pids.max");
        let options = KernelOptions { use_group_dead: false, ..KernelOptions::default() };
        let arguments = ["--case", case, "--seconds", &seconds()];
        let counted = count(options, &fixture, &fixture, &arguments);
        assert_exact(case, &counted);
    }
}

/// A ring of one page overflows at once. The lost records are counted, and totals stay exact.
#[test]
fn a_full_ring_loses_records_but_no_count() {
    let fixture = FixtureCgroup::new("exact").expect("a cgroup");
    fixture.set_pids_max(PIDS_MAX).expect("pids.max");
    let options = KernelOptions { ring_bytes: 4096, ..KernelOptions::default() };
    let arguments = ["--case", "mix", "--seconds", &seconds()];
    let mut counted = count(options, &fixture, &fixture, &arguments);
    assert_exact("mix", &counted);
    let mut received = 0;
    while let Some(record) = counted.kernel.next_record() {
        assert!(matches!(record.kind, Kind::Fork | Kind::Exec | Kind::Exit | Kind::Attach));
        received += 1;
    }
    let totals = counted.totals;
    let due = totals.process_forks + totals.execs + totals.process_exits + totals.attaches;
    assert!(totals.dropped > 0, "the ring did not overflow");
    assert_eq!(received + totals.dropped, due, "each record is received or counted as dropped");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Only moves are reported, because they may be departures.
#[test]
fn a_task_outside_every_guard_is_not_counted() {
    let guarded = FixtureCgroup::new("exact").expect("a cgroup");
    let outside = FixtureCgroup::new("outside").expect("a cgroup");
    let arguments = ["--case", "fork", "--seconds", "1"];
    let Counted { totals, mut kernel, .. } =
        count(KernelOptions::default(), &guarded, &outside, &arguments);
    assert_eq!(totals.process_forks + totals.execs + totals.process_exits, 0);
    let mut attached_elsewhere = 0;
    while let Some(record) = kernel.next_record() {
        assert_eq!(record.kind, Kind::Attach);
        assert_eq!(record.event.guard, mcp_guard_common::NO_GUARD);
        attached_elsewhere += 1;
    }
    assert!(attached_elsewhere >= 1, "no move was reported");
}
