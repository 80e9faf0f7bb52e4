//! Our BPF programs on this kernel, and the agent on a host that lacks something.

use std::{collections::BTreeMap, fs, path::Path, process::Command, thread};

use mcp_guard::host::{
    bpf::{Kernel, KernelOptions, RingRecord, VMLINUX},
    btf::Btf,
    kernel::release,
};
use mcp_guard_common::Kind;
use mcp_guard_core::{
    audit,
    id::{CgroupId, GuardId},
    incident::Outcome,
};
use mcp_guard_tests::{
    agent::{Agent, DEADLINE, command},
    cgroup::FixtureCgroup,
    fact,
    leak::{Leak, LeakPolicy, PACKAGE, observing},
};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use serde_json::Value;

use super::{lsm, run};

const GUARD: GuardId = GuardId(9);
/// `USER_HZ`: a clock tick of `/proc/PID/stat` is a hundredth of a second.
const TICK_NS: u64 = 10_000_000;
const SIGKILL: u32 = 9;

/// The facts of a process from `/proc`.
struct Shown {
    parent: u32,
    start_ticks: u64,
    argv: Vec<u8>,
    exe: Vec<u8>,
}

fn shown(pid: u32) -> Shown {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, after_name) = stat.rsplit_once(')').unwrap();
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let argv = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    let exe =
        fs::read_link(format!("/proc/{pid}/exe")).unwrap().into_os_string().into_encoded_bytes();
    let (parent, start_ticks) = (fields[1].parse().unwrap(), fields[19].parse().unwrap());
    Shown { parent, start_ticks, argv, exe }
}

/// Returns whether the tracepoint reports which thread was the last of its process.
fn group_dead_is_reported() -> bool {
    let btf = Btf::read(Path::new(VMLINUX)).unwrap();
    btf.tracepoint_arguments("sched_process_exit").is_some_and(|count| count >= 2)
}

/// Compares the kernel's records of a gateway, a launcher and a server with `/proc`.
#[test]
fn the_programs_read_the_same_facts_as_proc() {
    // It finds all offsets and loads all programs.
    let mut kernel = Kernel::start(KernelOptions::default()).unwrap();
    fact::record("BTF", "yes").unwrap();
    fact::record("exit", if group_dead_is_reported() { "reported" } else { "detected" }).unwrap();
    let cgroup = FixtureCgroup::new("btf").unwrap();
    kernel.clear_totals(GUARD).unwrap();
    kernel.add_cgroup(CgroupId(cgroup.id()), GUARD).unwrap();
    let leak = Leak::start(&cgroup, 1).unwrap();
    let gateway = leak.pid();
    let pids = cgroup.procs().unwrap().into_iter().map(i32::cast_unsigned);
    let all: BTreeMap<u32, Shown> = pids.map(|pid| (pid, shown(pid))).collect();
    assert_eq!(all.len(), 3);
    // The gateway ends by SIGKILL, the others by the end of their input.
    drop(leak);
    cgroup.wait_until("ended", DEADLINE, || cgroup.procs().unwrap().is_empty()).unwrap();

    let records: Vec<RingRecord> = std::iter::from_fn(|| kernel.next_record()).collect();
    for (pid, shown) in &all {
        let came = if *pid == gateway { Kind::Attach } else { Kind::Fork };
        let mine: Vec<&RingRecord> = records.iter().filter(|one| one.event.tgid == *pid).collect();
        let kinds: Vec<Kind> = mine.iter().map(|one| one.kind).collect();
        assert_eq!(kinds, [came, Kind::Exec, Kind::Exit], "{pid}");
        let [birth, exec, exit] = mine[..] else { panic!("as just seen") };
        for record in [birth, exec] {
            assert_eq!((record.event.guard, record.event.cgroup), (GUARD.0, cgroup.id()));
            assert_eq!(record.event.start_ns / TICK_NS, shown.start_ticks);
        }
        if came == Kind::Fork {
            assert_eq!(birth.event.parent, shown.parent);
        }
        assert_eq!((&exec.argv, &exec.exe), (&shown.argv, &shown.exe));
        assert_eq!(exit.event.exit_code, if *pid == gateway { SIGKILL } else { 0 });
    }
    let totals = kernel.totals(GUARD).unwrap();
    let counted = [totals.attaches, totals.process_forks, totals.execs, totals.process_exits];
    assert_eq!(counted, [1, 2, 3, 3]);
}

/// The agent pins nothing, so it needs no bpffs.
#[test]
fn the_agent_needs_no_bpffs() {
    let without_bpffs = || {
        leave_mounts_behind();
        let scene = FixtureCgroup::new("bpffs").unwrap();
        let agent = Agent::start(&observing(&scene)).unwrap();
        let _leak = Leak::start(&scene, 2).unwrap();
        let guard = agent.guard(scene.id()).unwrap().guard;
        assert_eq!((guard.totals.process_forks, guard.totals.execs), (4, 5));
        assert_eq!(guard.identities[PACKAGE].live, 2);
        let checks = doctor();
        assert_eq!(checks["BPF"].0, "ok", "{checks:?}");
    };
    // In a thread of its own, because its view of the mounts ends with it.
    thread::spawn(without_bpffs).join().unwrap();
}

/// Gives this thread, and what it starts, a view of the mounts without bpffs.
#[allow(unsafe_code, reason = "unshare is unsafe for what it may do to other threads")]
fn leave_mounts_behind() {
    // SAFETY: a new mount namespace unshares no memory and no descriptors. It also unshares the root and the
    // working directory, which keep their values.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
    let run = |line: &str| {
        let mut words = line.split(' ');
        let status = Command::new(words.next().unwrap()).args(words).status().unwrap();
        assert!(status.success(), "{line}");
    };
    run("mount --make-rprivate /");
    let mounted = || {
        let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        table.lines().filter(|line| line.contains(" - bpf ")).count()
    };
    for _ in 0..mounted() {
        run("umount /sys/fs/bpf");
    }
    assert_eq!(mounted(), 0);
}

/// For example a cgroup that a container made, or one below a root that does not hand the controller down.
#[test]
fn a_cgroup_without_the_pids_controller_is_counted_and_frozen_but_not_clamped() {
    let above = FixtureCgroup::new("no-pids").unwrap();
    let cgroup = above.child("inside").unwrap();
    assert!(!cgroup.pids_dir().join("pids.max").exists());
    let leak = Leak::start(&cgroup, 4).unwrap();
    let mut agent = Agent::start(&LeakPolicy::enforcing(&cgroup, "clamp").toml()).unwrap();
    let outcome = |record: &audit::Record| {
        let audit::Record::Outcome { outcome, detail, .. } = record else { return None };
        Some((*outcome, detail.clone()))
    };
    let (outcome, detail) = agent.await_record("an outcome", outcome).unwrap();
    assert_eq!((outcome, detail.as_str()), (Outcome::Failed, "the cgroup has no pids controller"));
    let watched = agent.guard(cgroup.id()).unwrap();
    assert_eq!((watched.pids_max, watched.pids_current), (None, None));
    assert_eq!((watched.guard.processes, watched.guard.identities[PACKAGE].live), (9, 4));

    let target = format!("cgroup:{}", cgroup.path());
    let frozen = agent.cli(&["freeze", "--for", "1h", &target]).unwrap();
    assert!(frozen.status.success(), "{}", String::from_utf8_lossy(&frozen.stdout));
    assert!(cgroup.is_frozen().unwrap());
    assert!(agent.cli(&["thaw", &target]).unwrap().status.success());
    assert!(!cgroup.is_frozen().unwrap());
    assert!(leak.end().unwrap().success());
}

/// From Linux 7 on, a task may be preempted inside a program, and the program then does not run for other
/// tasks on that CPU. The kernel reports how often, and the agent still corrects its registry.
#[test]
fn missed_program_runs_are_reported_and_the_registry_is_corrected() {
    let cgroup = FixtureCgroup::new("storm").unwrap();
    let mut agent = Agent::start(&observing(&cgroup)).unwrap();
    fact::record("mcp-guard", "starts").unwrap();
    let ledger = run(&cgroup, "--case bomb --seconds 5 --workers 4 --alive 50");
    let mut known = Vec::new();
    agent
        .wait_until("no process is listed", |agent| {
            known = agent.guard(cgroup.id())?.guard.pids;
            Ok(known.is_empty())
        })
        .unwrap_or_else(|error| panic!("{known:?}: {error}"));
    let totals = agent.guard(cgroup.id()).unwrap().guard.totals;
    let left_out = agent.status().unwrap().losses["recursion"];
    let missing =
        (ledger.processes - totals.process_forks) + (ledger.processes + 1 - totals.process_exits);
    assert!(missing <= left_out, "{missing} missing, {left_out} reported");
    fact::record("programs", if left_out == 0 { "all run" } else { "some left out" }).unwrap();
}

/// Runs `doctor`, and returns each check's state and detail by its name.
fn doctor() -> BTreeMap<String, (String, String)> {
    let folder = tempfile::tempdir().unwrap();
    let mut doctor = command(folder.path(), "/nonexistent").unwrap();
    let output = doctor.args(["doctor", "--json"]).output().unwrap();
    let checks: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let text = |check: &Value, key: &str| check[key].as_str().unwrap().to_owned();
    assert_eq!(output.status.code(), Some(0), "nothing is missing: {checks:#?}");
    let found = checks
        .iter()
        .map(|check| (text(check, "name"), (text(check, "state"), text(check, "detail"))));
    found.collect()
}

#[test]
fn doctor_describes_a_pure_cgroup_v2_host_without_an_engine() {
    // Doctor needs a cgroup to check, because the root has none of the files in question.
    let cgroup = FixtureCgroup::new("doctor").unwrap();
    let checks = doctor();
    let root = cgroup.unified_dir().parent().unwrap().display();
    let own = cgroup.unified_dir().join("pids.events.local").exists();
    let state = |good: bool| if good { "ok" } else { "degraded" };
    for (name, expected, part) in [
        ("kernel", "ok", release()),
        ("BTF", "ok", VMLINUX.to_owned()),
        ("BPF", "ok", "all six programs".to_owned()),
        ("cgroups", "ok", format!("version 2 at {root}")),
        ("pids controller", "ok", format!("version 2 at {root}")),
        ("cgroup files", state(own), "cgroup.kill present".to_owned()),
        ("Docker", "degraded", "/nonexistent".to_owned()),
    ] {
        let (found, detail) = &checks[name];
        assert_eq!(found, expected, "{name}: {detail}");
        assert!(detail.contains(&part), "{name}: {detail}");
    }
    let missing = checks["cgroup files"].1.contains("pids.events.local missing");
    assert_eq!(missing, !own);
    if Path::new("/sys/kernel/security/lsm").exists() {
        assert_eq!(checks["BPF LSM"].0, state(lsm::is_listed()));
    } else {
        assert!(checks["BPF LSM"].1.contains("securityfs must be mounted"));
    }
}
