//! Containers with many cgroups and many processes. They are contained like others, and the agent's loop
//! goes on meanwhile.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]
#![allow(clippy::print_stderr, reason = "the measured times are a result")]
#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "a test looks for one record and ignores the rest"
)]

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use mcp_guard::host::{
    bpf::{Kernel, KernelOptions},
    cgroup::Cgroup,
    facts,
    layout::Layout,
};
use mcp_guard_core::{
    audit::Record,
    id::{CgroupId, GuardId},
    incident::Outcome,
    policy::Response,
    refusal::BystanderFacts,
};
use mcp_guard_tests::{
    agent::{Agent, DEADLINE},
    cgroup::FixtureCgroup,
    holds::Holds,
    leak::observing,
    sleeper::Sleeper,
    wait,
};

/// As many as a guard may have in the kernel's map, all guards together.
const EMPTY: usize = 16_384;
const POPULATED: usize = 2_000;
/// The longest turn of the loop in a debug build beside other work.
const LONGEST_TURN: Duration = Duration::from_secs(1);
/// Starts a process in each of the cgroups whose names begin with `p`.
const FILL: &str = "for dir in \"$1\"/p*; do sleep 600 & echo $! >\"$dir/cgroup.procs\"; done; \
                    echo done; exec sleep 600";

struct Large {
    shell: Child,
    cgroup: FixtureCgroup,
}

impl Drop for Large {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

impl Large {
    fn new(empty: usize, populated: usize) -> Self {
        let cgroup = FixtureCgroup::new("large").unwrap();
        for number in 0..empty {
            fs::create_dir(cgroup.unified_dir().join(format!("e{number}"))).unwrap();
        }
        for number in 0..populated {
            fs::create_dir(cgroup.unified_dir().join(format!("p{number}"))).unwrap();
        }
        let mut command = Command::new("sh");
        command.args(["-c", FILL, "sh"]).arg(cgroup.unified_dir());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let shell = cgroup.spawn(command).unwrap();
        let name = format!("/proc/{}/comm", shell.id());
        let is_full = || fs::read_to_string(&name).is_ok_and(|name| name == "sleep\n");
        cgroup.wait_until("its cgroups are full", 3 * DEADLINE, is_full).unwrap();
        Self { shell, cgroup }
    }

    fn target(&self) -> String {
        format!("cgroup:{}", self.cgroup.path())
    }
}

fn longest_turn(agent: &Agent) -> Duration {
    Duration::from_micros(agent.status().unwrap().longest_turn_us)
}

/// Returns how long after its decision each freeze was written.
fn written(agent: &Agent) -> Vec<Duration> {
    let outcomes = agent.audit().unwrap().into_iter().filter_map(|record| match record {
        Record::Outcome { response: Response::Freeze, outcome: Outcome::Done, timing, .. } => {
            Some(Duration::from_micros(timing.unwrap().written_us))
        }
        _ => None,
    });
    outcomes.collect()
}

#[test]
fn a_container_with_thousands_of_cgroups_is_frozen_and_stalls_no_loop() {
    let large = Large::new(EMPTY, POPULATED);
    let agent = Agent::start("").unwrap();
    for _ in 0..5 {
        let frozen = agent.cli(&["freeze", "--for", "60s", &large.target()]).unwrap();
        assert!(frozen.status.success(), "{frozen:?}");
        assert!(Holds::of(&large.cgroup).unwrap().frozen);
        let thawed = agent.cli(&["thaw", &large.target()]).unwrap();
        assert!(thawed.status.success(), "{thawed:?}");
    }
    eprintln!(
        "cgroup.freeze written after {:?}, longest turn {:?}",
        written(&agent),
        longest_turn(&agent)
    );
    assert!(longest_turn(&agent) < LONGEST_TURN, "{:?}", longest_turn(&agent));
}

/// A cgroup whose processes move from one cgroup below it to the next, in the order in which the kernel lists
/// these. They have the name of an engine, so that each look at one takes time.
struct Runaway {
    cgroup: FixtureCgroup,
    dirs: Vec<PathBuf>,
    pids: Vec<i32>,
    shell: Child,
    programs: tempfile::TempDir,
}

impl Drop for Runaway {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

impl Runaway {
    fn new(cgroups: usize, processes: usize) -> Self {
        let programs = tempfile::tempdir().unwrap();
        fs::set_permissions(programs.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let program = programs.path().join("dockerd");
        fs::copy("/bin/sleep", &program).unwrap();
        let cgroup = FixtureCgroup::new("runaway").unwrap();
        for number in 0..cgroups {
            fs::create_dir(cgroup.unified_dir().join(number.to_string())).unwrap();
        }
        let entries = fs::read_dir(cgroup.unified_dir()).unwrap().map(|entry| entry.unwrap());
        let dirs = entries.filter(|entry| entry.file_type().unwrap().is_dir());
        let dirs = dirs.map(|entry| entry.path()).collect();
        let starts = format!(
            "for n in $(seq {processes}); do {} 600 & done; exec sleep 600",
            program.display()
        );
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--clear-groups", "sh", "-c", &starts]);
        let shell = cgroup.spawn(command).unwrap();
        let all = processes + 1;
        let has_all = || cgroup.procs().is_ok_and(|pids| pids.len() == all);
        cgroup.wait_until("its processes", DEADLINE, has_all).unwrap();
        let pids = cgroup.procs().unwrap();
        Self { cgroup, dirs, pids, shell, programs }
    }

    fn run(&self, goes_on: &AtomicBool) {
        for dir in self.dirs.iter().cycle() {
            let door = fs::File::options().write(true).open(dir.join("cgroup.procs")).unwrap();
            for pid in &self.pids {
                if !goes_on.load(Ordering::Relaxed) {
                    return;
                }
                rustix::io::write(&door, pid.to_string().as_bytes()).unwrap();
            }
        }
    }

    /// Looks at it while its processes run away.
    fn facts(&self) -> (Option<BystanderFacts>, Duration) {
        let held = Cgroup::open(&Layout::read().unwrap(), self.cgroup.path()).unwrap();
        let (goes_on, (done, is_done)) = (AtomicBool::new(true), mpsc::channel());
        thread::scope(|scope| {
            scope.spawn(|| self.run(&goes_on));
            scope.spawn(move || {
                let _ = done.send(facts::gather(&held).unwrap());
            });
            let began = Instant::now();
            let found = is_done.recv_timeout(3 * DEADLINE).ok();
            goes_on.store(false, Ordering::Relaxed);
            (found, began.elapsed())
        })
    }
}

#[test]
fn a_check_ends_though_the_processes_move_in_front_of_it() {
    // More cgroups than a walk meets before it goes from process to process.
    let runaway = Runaway::new(2 * EMPTY + 1, 200);
    let (found, took) = runaway.facts();
    eprintln!("a look at processes that run away took {took:?}");
    let found = found.expect("the look has no end");
    assert_eq!(found.engines, [], "they have but the name");
    assert_eq!(found.processes, Some(runaway.pids.len()), "each is met once");
    let inside = runaway.cgroup.child("inside").unwrap();
    let engine = Sleeper::start_as(&inside, &runaway.programs.path().join("dockerd")).unwrap();
    let (found, _) = runaway.facts();
    let engines = found.expect("the look has no end").engines;
    assert_eq!(engines.iter().map(|one| one.pid.0).collect::<Vec<_>>(), [engine.pid()]);
}

/// A guard that begins with more cgroups than are followed one by one counts in each of them, also once
/// most of them are removed.
#[test]
fn cgroups_that_were_not_followed_are_counted_though_the_others_are_removed() {
    let cgroup = FixtureCgroup::new("large").unwrap();
    for number in 0..EMPTY + 1_000 {
        fs::create_dir(cgroup.unified_dir().join(number.to_string())).unwrap();
    }
    let agent = Agent::start(&observing(&cgroup)).unwrap();
    let entries = fs::read_dir(cgroup.unified_dir()).unwrap().map(|entry| entry.unwrap());
    let dirs: Vec<_> = entries.filter(|entry| entry.file_type().unwrap().is_dir()).collect();
    let (removed, left) = dirs.split_at(EMPTY + 950);
    removed.iter().for_each(|dir| fs::remove_dir(dir.path()).unwrap());
    // The agent compares what it knows with the host once in a second.
    let turns = || agent.status().unwrap().uptime_ms;
    let after = turns() + 2_500;
    assert!(wait::until(DEADLINE, || Ok(turns() > after)).unwrap());
    let before = agent.guard(cgroup.id()).unwrap().guard.totals;
    let script = "echo $$ >\"$1/cgroup.procs\"; for i in 1 2 3; do sleep 0; done";
    for dir in left {
        let mut shell = Command::new("sh");
        shell.args(["-c", script, "sh"]).arg(dir.path());
        assert!(shell.status().unwrap().success());
    }
    let forks = |agent: &Agent| agent.guard(cgroup.id()).unwrap().guard.totals.process_forks;
    assert_eq!(forks(&agent) - before.process_forks, 3 * left.len() as u64);
    assert_eq!(agent.status().unwrap().losses.values().sum::<u64>(), 0);
}

#[test]
fn the_end_of_guards_takes_no_longer_for_large_ones() {
    let mut kernel = Kernel::start(KernelOptions::default()).unwrap();
    let (guards, each) = (16_u64, EMPTY as u64 / 16);
    let guard = |number: u64| GuardId(u32::try_from(number % guards).unwrap());
    for number in 0..guards * each {
        // No cgroup of this host has such an id.
        kernel.add_cgroup(CgroupId(u64::MAX - number), guard(number)).unwrap();
    }
    let ended = BTreeSet::from([GuardId(3), GuardId(7)]);
    let began = Instant::now();
    assert_eq!(kernel.remove_cgroups_of(&ended), ended);
    let took = began.elapsed();
    eprintln!("two guards of {each} cgroups, among {EMPTY}, removed in {took:?}");
    assert!(took < LONGEST_TURN, "{took:?}");
    assert_eq!(kernel.remove_cgroups_of(&ended), BTreeSet::new(), "nothing is left of them");
    for number in 0..guards * each {
        let found = kernel.guard_of(CgroupId(u64::MAX - number));
        assert_eq!(found, Some(guard(number)).filter(|guard| !ended.contains(guard)));
    }
}
