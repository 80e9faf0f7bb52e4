//! A leak that touches more memory than the guest has left, and swap. The agent, as the package's unit, stays in
//! memory, and freezes what leaks.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use mcp_guard_core::{
    audit::{Record, Timing},
    policy::Response,
};
use mcp_guard_tests::{cgroup::FixtureCgroup, fact, leak::Leak, unit::Unit};
use rustix::fs::{FallocateFlags, fallocate};

/// So many cgroups leak. Each is frozen once, and gives one time.
const LEAKS: usize = 24;
/// Memory that is left to everything in the guest, in MiB.
const LEFT: u64 = 400;
const SWAP: u64 = 2048;
/// Each of two servers touches this much from the beginning to the end.
const THRASH: u64 = 350;
/// Each server of a leak touches this much.
const TOUCH: u64 = 8;
const PAGES: &str = "/proc/sys/vm/nr_hugepages";

/// A guest with little memory and a file to swap to. Huge pages are never swapped, so that those which are
/// reserved are memory that the guest does not have. Restored on drop.
struct Scarce {
    file: PathBuf,
    pages: String,
}

impl Scarce {
    fn begin() -> Self {
        let file = PathBuf::from("/var/tmp/mcp-guard-test-swap");
        let pages = fs::read_to_string(PAGES).unwrap();
        let scarce = Self { file, pages };
        let swap = File::create(&scarce.file).unwrap();
        fallocate(&swap, FallocateFlags::empty(), 0, SWAP << 20).unwrap();
        run("chmod", "600", &scarce.file);
        run("mkswap", "--quiet", &scarce.file);
        run("swapon", "--verbose", &scarce.file);
        let spare = mebibytes("/proc/meminfo", "MemAvailable:").saturating_sub(LEFT);
        fs::write(PAGES, (spare / mebibytes("/proc/meminfo", "Hugepagesize:")).to_string())
            .unwrap();
        let left = mebibytes("/proc/meminfo", "MemAvailable:");
        assert!(left < LEFT + LEFT / 2, "{left} MiB are left");
        scarce
    }
}

impl Drop for Scarce {
    fn drop(&mut self) {
        let _ = fs::write(PAGES, &self.pages);
        let _ = Command::new("swapoff").arg(&self.file).status();
        let _ = fs::remove_file(&self.file);
    }
}

fn run(program: &str, option: &str, file: &Path) {
    let status = Command::new(program).arg(option).arg(file).status().unwrap();
    assert!(status.success(), "{program}: {status}");
}

/// Reads a number of a file of `/proc` in which it is in kB.
fn mebibytes(file: &str, field: &str) -> u64 {
    kilobytes(file, field) / 1024
}

fn kilobytes(file: &str, field: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    value.trim().trim_end_matches(" kB").parse().unwrap()
}

fn pages_read_back() -> u64 {
    kilobytes("/proc/vmstat", "pswpin ")
}

/// A policy under which the third start within a minute is frozen, if two servers are five seconds old by then.
/// That start is a record of the kernel, and its time the one from which the freeze is measured.
fn policy(leaks: &[FixtureCgroup]) -> String {
    let rule = |leak: &FixtureCgroup| {
        format!("[[guard]]\ncgroup = \"{}\"\nhighest = \"freeze\"\n", leak.path())
    };
    let rules: String = leaks.iter().map(rule).collect();
    format!(
        "mode = \"enforce\"\n\
         [detect.burst]\nwarn_10s = 1000\nwarn_60s = 3\nsurvivors = 2\nsurvivor_age = \"5s\"\n{rules}"
    )
}

/// The first time of each freeze: from its decision to its write.
fn times(records: &[Record]) -> Vec<Timing> {
    let mut seen = BTreeSet::new();
    let frozen = records.iter().filter_map(|record| {
        let Record::Outcome { guard, response: Response::Freeze, timing, .. } = record else {
            return None;
        };
        timing.filter(|_| seen.insert(guard.cgroup_id))
    });
    frozen.collect()
}

fn percentile(sorted: &[u64], percent: usize) -> u64 {
    sorted[(sorted.len() * percent).div_ceil(100).saturating_sub(1)]
}

#[test]
fn a_leak_that_thrashes_is_frozen_and_the_agent_is_not_swapped_out() {
    let cgroups: Vec<_> = (0..LEAKS).map(|_| FixtureCgroup::new("thrash").unwrap()).collect();
    let thrash = FixtureCgroup::new("thrash").unwrap();
    let scarce = Scarce::begin();
    let unit = Unit::start(&policy(&cgroups), &[]).unwrap();
    let agent = unit.main_pid().unwrap();
    let status = format!("/proc/{agent}/status");
    assert_ne!(kilobytes(&status, "VmLck:"), 0, "{}", unit.journal());
    let protected = fs::read_to_string("/sys/fs/cgroup/mcp-guard.service/memory.min").unwrap();
    assert_eq!(protected.trim(), (32_u64 << 20).to_string());

    let before = pages_read_back();
    let touch = THRASH.to_string();
    let thrashing = ["--count", "2", "--for", "380", "--touch", &touch];
    let hogs = Leak::begin(&thrash, "thrash", &thrashing).unwrap();
    // From here on, each page that a server touches has to come from the disk.
    unit.wait_until("it thrashes", |_| Ok(pages_read_back() > before + 1000)).unwrap();
    let touch = TOUCH.to_string();
    let leaking = ["--count", "6", "--every", "10000", "--for", "380", "--touch", &touch];
    let leaks: Vec<_> =
        cgroups.iter().map(|cgroup| Leak::begin(cgroup, "leaks", &leaking).unwrap()).collect();
    let mut frozen = Vec::new();
    for count in 1..=LEAKS {
        let what = format!("{count} of {LEAKS} are frozen");
        unit.wait_until(&what, |unit| {
            frozen = times(&unit.audit()?);
            Ok(frozen.len() >= count)
        })
        .unwrap();
    }
    let thrashed = pages_read_back() - before;
    let kept = (unit.main_pid().unwrap(), kilobytes(&status, "VmSwap:"));
    assert_eq!(kept, (agent, 0), "{}", unit.journal());
    assert_eq!(unit.state().unwrap().restarts, 0);

    let mut micros: Vec<u64> = frozen.iter().map(|timing| timing.written_us).collect();
    micros.sort_unstable();
    let [p50, p99] = [50, 99].map(|percent| percentile(&micros, percent));
    let shown = format!(
        "p50 {p50} us, p99 {p99} us, {} freezes, {thrashed} pages swapped in",
        micros.len()
    );
    fact::measure("decision to freeze under thrashing", shown).unwrap();

    // The memory is free before the agent thaws anything.
    drop((leaks, hogs, thrash, cgroups));
    drop(unit);
    drop(scarce);
}
