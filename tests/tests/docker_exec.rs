//! `docker exec` into a guarded container, counted in the same run by the agent, by the program that
//! runs inside, and by the kernel through bpftrace.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]

use std::{
    collections::BTreeMap,
    fs,
    process::{Child, Command, Stdio},
};

use mcp_guard_core::status::TotalsStatus;
use mcp_guard_tests::{
    agent::Agent,
    docker::{Container, node_image, output, socket, wait_until},
    lines::Lines,
    workload,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const WORKLOAD: &str = "spawn-workload";
/// The workload's arguments: every way to create a process or thread, mixed and bounded. The time is long
/// enough for a slow guest.
const LINE: [&str; 8] = ["--case", "mix", "--seconds", "6", "--workers", "2", "--max", "20000"];
/// The comm of a program that runs to show that bpftrace counts.
const MARKER: &str = "mcpg-marker";
/// How many times the workload runs.
const RUNS: u64 = 2;

/// The bpftrace script. It uses the kernel's own tracepoints, none of which the agent uses in this form.
/// Each process is born in its parent's cgroup here, because the workload's `mix` does not use
/// CLONE_INTO_CGROUP.
fn script(cgroup: u64) -> String {
    format!(
        "tracepoint:sched:sched_process_exec /comm == \"{MARKER}\"/ {{ printf(\"first\\n\"); }}
         tracepoint:task:task_newtask /cgroup == {cgroup}/ {{
             if (args->clone_flags & 0x10000) {{ @threads[comm] = count(); }}
             else {{ @births[comm] = count(); }}
         }}
         tracepoint:cgroup:cgroup_attach_task /args->dst_root == 0 && args->dst_id == {cgroup}/ {{
             @arrivals[comm] = count();
         }}
         tracepoint:sched:sched_process_exec /cgroup == {cgroup}/ {{ @execs[comm] = count(); }}
         tracepoint:sched:sched_process_exec /comm == \"{MARKER}\"/ {{ printf(\"last\\n\"); }}"
    )
}

/// A running bpftrace. Killed when dropped.
struct Bpftrace {
    child: Child,
    lines: Lines,
    complaints: tempfile::NamedTempFile,
}

/// Counts per map, then per comm.
type Counts = BTreeMap<String, BTreeMap<String, u64>>;

impl Bpftrace {
    /// Starts bpftrace with a tracefs mount of its own, and waits until all its probes fire.
    fn start(cgroup: u64) -> Self {
        let mount = "mount -t tracefs tracefs /sys/kernel/tracing && exec bpftrace \"$@\"";
        let complaints = tempfile::NamedTempFile::new().unwrap();
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", mount, "bpftrace", "-f", "json", "-B", "line", "-e"])
            .arg(script(cgroup))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(complaints.reopen().unwrap());
        let installed = Command::new("bpftrace").arg("--version").output();
        installed.expect("bpftrace is needed: apt-get install --no-install-recommends bpftrace");
        let mut child = command.spawn().unwrap();
        let lines = Lines::of(child.stdout.take().unwrap());
        let bpftrace = Self { child, lines, complaints };
        bpftrace.await_markers();
        bpftrace
    }

    /// Runs the marker until both the first and the last probe have reported it. Probes are attached one
    /// after the other, so all of them count by then.
    fn await_markers(&self) {
        let folder = tempfile::tempdir().unwrap();
        let marker = folder.path().join(MARKER);
        fs::copy(fs::canonicalize("/bin/true").unwrap(), &marker).unwrap();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        std::thread::scope(|scope| {
            // Dropped here even if we panic, so that the thread that runs the marker ends too.
            let stop = stop;
            scope.spawn(move || {
                while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                    assert!(Command::new(&marker).status().unwrap().success());
                    std::thread::sleep(std::time::Duration::from_millis(50));
                }
            });
            let mut missing = vec!["first\n", "last\n"];
            while !missing.is_empty() {
                let complaints = || fs::read_to_string(self.complaints.path()).unwrap();
                let line = self.lines.next().unwrap();
                let line = line.unwrap_or_else(|| panic!("bpftrace ended: {}", complaints()));
                let line: Value = serde_json::from_str(&line).unwrap_or_default();
                missing.retain(|word| line["data"] != *word);
            }
            drop(stop);
        });
    }

    fn finish(mut self) -> Counts {
        kill_process(Pid::from_child(&self.child), Signal::INT).unwrap();
        let mut counts = Counts::new();
        while let Some(line) = self.lines.next().unwrap() {
            let line: Value = serde_json::from_str(&line).unwrap_or_default();
            assert_ne!(line["type"], "lost_events", "{line}");
            if line["type"] == "map" {
                counts.extend(serde_json::from_value::<Counts>(line["data"].clone()).unwrap());
            }
        }
        assert!(self.child.wait().unwrap().success());
        counts
    }
}

impl Drop for Bpftrace {
    fn drop(&mut self) {
        // It has already ended, unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn sum(counts: &Counts, map: &str) -> u64 {
    counts.get(map).map_or(0, |by_comm| by_comm.values().sum())
}

fn of_workload(counts: &Counts, map: &str) -> u64 {
    counts.get(map).and_then(|by_comm| by_comm.get(WORKLOAD)).copied().unwrap_or(0)
}

fn totals(agent: &Agent, id: u64) -> TotalsStatus {
    agent.guard(id).unwrap().guard.totals
}

/// Starts a container from the node image. The image has the host's libraries, so the host's programs run
/// in it.
fn container() -> Container {
    let programs = workload(WORKLOAD).unwrap();
    let mount = format!("{}:/t:ro", programs.parent().unwrap().display());
    let image = node_image().unwrap();
    // Docker's default seccomp filter makes clone3 fail with ENOSYS, and glibc falls back to clone.
    let options = ["--volume", &mount, "--security-opt", "seccomp=unconfined"];
    let container = Container::run("exec", &image, &options, &["sleep", "600"]).unwrap();
    let comm = format!("/proc/{}/comm", container.init().unwrap());
    wait_until("its program runs", || Ok(fs::read_to_string(&comm)? == "sleep\n")).unwrap();
    container
}

/// Runs the workload through `docker exec`, [`RUNS`] times, and returns the sums of its ledgers.
fn run_workload(container: &Container) -> BTreeMap<String, u64> {
    let mut ledger = BTreeMap::new();
    for _ in 0..RUNS {
        let program = format!("/t/{WORKLOAD}");
        let words = [&["exec", &container.name, &program], &LINE[..]].concat();
        let report: Value = serde_json::from_str(&output(&words).unwrap()).unwrap();
        for key in ["processes", "threads", "execs"] {
            *ledger.entry(key.to_owned()).or_default() += report[key].as_u64().unwrap();
        }
    }
    ledger
}

#[test]
fn docker_exec_is_counted_as_the_kernel_counts_it() {
    let container = container();
    let id = container.cgroup().unwrap().id;
    let policy = format!("[[guard]]\nname = \"{}\"\n", container.name);
    let mut agent = Agent::start_with(&policy, &socket().unwrap(), &[]).unwrap();
    agent.wait_until("it is guarded", |agent| Ok(agent.guard(id).is_ok())).unwrap();
    let bpftrace = Bpftrace::start(id);
    let before = totals(&agent, id);
    let ledger = run_workload(&container);
    // The program has ended, but its exit may be reported a moment later.
    agent
        .wait_until("only sleep is left", |agent| Ok(agent.guard(id)?.guard.processes == 1))
        .unwrap();
    let after = totals(&agent, id);
    let counts = bpftrace.finish();

    let shown = format!("before {before:?}\nafter {after:?}\nkernel {counts:?}\nledger {ledger:?}");
    let agents = |field: fn(&TotalsStatus) -> u64| field(&after) - field(&before);
    let births = agents(|totals| totals.process_forks);
    assert_eq!(births, sum(&counts, "@births"), "{shown}");
    assert_eq!(agents(|totals| totals.thread_forks), sum(&counts, "@threads"), "{shown}");
    assert_eq!(agents(|totals| totals.execs), sum(&counts, "@execs"), "{shown}");
    let arrivals = agents(|totals| totals.arrivals);
    assert_eq!((arrivals, sum(&counts, "@arrivals")), (RUNS, RUNS), "{shown}");
    let exits = agents(|totals| totals.process_exits) + agents(|totals| totals.departures);
    assert_eq!(exits, births + arrivals, "every process that came has left: {shown}");

    // The other births are the container runtime's; those of the workload's comm match its ledger exactly.
    assert!(
        ledger["processes"] > 100 && ledger["threads"] > 100 && ledger["execs"] > 10,
        "{shown}"
    );
    assert_eq!(of_workload(&counts, "@births"), ledger["processes"], "{shown}");
    assert_eq!(of_workload(&counts, "@threads"), ledger["threads"], "{shown}");
    assert_eq!(of_workload(&counts, "@execs"), ledger["execs"] + RUNS, "{shown}");
}
