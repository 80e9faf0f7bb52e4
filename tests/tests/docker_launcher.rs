//! Compares what the kernel side sees of each start of `npm exec` and `npx` with the recording that the
//! core's tests read.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use mcp_guard::host::bpf::{Kernel, KernelOptions, RingRecord};
use mcp_guard_common::Kind;
use mcp_guard_core::id::{CgroupId, GuardId};
use mcp_guard_tests::{
    docker::{Container, docker, node_image},
    workload,
};
use serde::{Deserialize, Serialize};

/// The slot of the only guard here.
const GUARD: GuardId = GuardId(0);

/// A start of npm takes a second, or ten in a guest without hardware virtualisation.
const PATIENCE: Duration = Duration::from_secs(120);

/// The recording. Compiled in, because a guest has only the test program and no source tree.
const RECORDING: &str = include_str!("../../mcp-guard/core/tests/golden/live-argv.json");

#[derive(Debug, Deserialize)]
struct Golden {
    starts: Vec<Start>,
}

#[derive(Debug, Deserialize)]
struct Start {
    shell: String,
    typed: Vec<String>,
    live: Vec<Exec>,
}

/// One exec. Processes are numbered in the order of their first exec. `parent` is the nearest ancestor that
/// has a number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Exec {
    process: usize,
    parent: Option<usize>,
    argv: Vec<String>,
}

fn golden() -> Golden {
    serde_json::from_str(RECORDING).unwrap()
}

/// A client that keeps the server's stdin open. Killed when dropped.
struct Client(Child);

impl Drop for Client {
    fn drop(&mut self) {
        // Its counterpart in the container ends when the container is removed, after this.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs the command line in a container, and records execs until its server runs.
fn record(start: &Start) -> Vec<Exec> {
    let shells = tempfile::tempdir().unwrap();
    let mut options = vec!["--env".to_owned(), "PATH=/opt/shell:/usr/bin:/bin".to_owned()];
    if start.shell == "dash" {
        // npm takes the first `sh` of the PATH. dash forks for its command, and busybox does not.
        // A dash beside this program comes from the host that made the image, so it runs with the image's
        // libraries.
        let dash = workload("dash").unwrap_or_else(|_| PathBuf::from("/bin/dash"));
        fs::copy(fs::canonicalize(dash).unwrap(), shells.path().join("sh")).unwrap();
        options.extend(["--volume".into(), format!("{}:/opt/shell:ro", shells.path().display())]);
    }
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let image = node_image().unwrap();
    let container = Container::run("launcher", &image, &options, &["sleep", "600"]).unwrap();
    let mut kernel = Kernel::start(KernelOptions::default()).unwrap();
    kernel.add_cgroup(CgroupId(container.cgroup().unwrap().id), GUARD).unwrap();

    let typed: Vec<&str> = start.typed.iter().map(String::as_str).collect();
    let words = [&["exec", "--interactive", &container.name], &typed[..]].concat();
    let mut client = docker(&words).unwrap();
    let client = Client(client.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap());
    let seen = Recorder::default().until_server(&mut kernel);
    drop(client);
    seen
}

/// Assembles the kernel side's records into numbered execs.
#[derive(Default)]
struct Recorder {
    parents: BTreeMap<u32, u32>,
    numbers: BTreeMap<u32, usize>,
    seen: Vec<Exec>,
}

impl Recorder {
    fn until_server(mut self, kernel: &mut Kernel) -> Vec<Exec> {
        let began = Instant::now();
        while !self.seen.last().is_some_and(is_server) {
            assert!(began.elapsed() < PATIENCE, "no server after {:?}", self.seen);
            match kernel.next_record() {
                Some(record) => self.take(&record),
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        self.seen
    }

    fn take(&mut self, record: &RingRecord) {
        let pid = record.event.tgid;
        match record.kind {
            Kind::Fork => drop(self.parents.insert(pid, record.event.parent)),
            Kind::Exec => self.exec(pid, &record.argv),
            Kind::Exit | Kind::Attach => {}
        }
    }

    fn exec(&mut self, pid: u32, argv: &[u8]) {
        let words = argv.strip_suffix(&[0]).unwrap_or(argv).split(|byte| *byte == 0);
        let argv: Vec<String> =
            words.map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        // Skips the execs of the container runtime, which come before the program that it starts.
        if self.seen.is_empty()
            && !argv.iter().any(|word| word.ends_with("/npm") || word.ends_with("/npx"))
        {
            return;
        }
        let parent = self.ancestor(pid);
        let next = self.numbers.len();
        let process = *self.numbers.entry(pid).or_insert(next);
        self.seen.push(Exec { process, parent, argv });
    }

    fn ancestor(&self, pid: u32) -> Option<usize> {
        let mut at = pid;
        while let Some(parent) = self.parents.get(&at) {
            if let Some(number) = self.numbers.get(parent) {
                return Some(*number);
            }
            at = *parent;
        }
        None
    }
}

/// Returns whether this is `node .../_npx/HASH/node_modules/.bin/BIN`, the last exec of a start.
fn is_server(exec: &Exec) -> bool {
    exec.argv[0] == "node" && exec.argv.get(1).is_some_and(|path| path.contains("/.bin/"))
}

/// Reduces each path to its last component, because the rest differs from host to host.
fn without_paths(execs: &[Exec]) -> Vec<Exec> {
    let base = |word: &String| match word.strip_prefix('/') {
        Some(path) => path.rsplit('/').next().unwrap_or(path).to_owned(),
        None => word.clone(),
    };
    let plain = |exec: &Exec| Exec { argv: exec.argv.iter().map(base).collect(), ..exec.clone() };
    execs.iter().map(plain).collect()
}

#[test]
fn the_kernel_side_still_shows_what_was_recorded() {
    let golden = golden();
    assert_eq!(golden.starts.len(), 4, "npm and npx, busybox and dash");
    let mut changed = String::new();
    for start in &golden.starts {
        let seen = record(start);
        if without_paths(&seen) != without_paths(&start.live) {
            let shown = serde_json::to_string(&seen).unwrap();
            changed += &format!("\n{:?} with {}: {shown}", start.typed, start.shell);
        }
    }
    assert!(changed.is_empty(), "the kernel side now shows{changed}");
}
