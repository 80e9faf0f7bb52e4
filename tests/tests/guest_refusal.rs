//! A kernel that is too old is refused with the reason, and nothing on the host is changed.
//!
//! For the image with Linux 5.10 only. These tests fail on any other.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use mcp_guard::host::{
    kernel::{self, Files},
    layout::Layout,
};
use mcp_guard_tests::{
    agent::{DEADLINE, command},
    fact,
};
use rustix::fs::flistxattr;

/// A cgroup with one process. Not a `FixtureCgroup`, which needs cgroup.kill to end its processes.
struct Occupied {
    dir: PathBuf,
    process: Child,
}

impl Occupied {
    fn new() -> Self {
        let root = Layout::read().unwrap().unified.unwrap();
        let dir = root.join(format!("mcp-guard-test-old-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let process = Command::new("sleep").arg("600").spawn().unwrap();
        fs::write(dir.join("cgroup.procs"), process.id().to_string()).unwrap();
        Self { dir, process }
    }

    fn name(&self) -> &str {
        self.dir.file_name().unwrap().to_str().unwrap()
    }
}

impl Drop for Occupied {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        fs::remove_dir(&self.dir).unwrap();
    }
}

/// Returns everything that mcp-guard could change in each cgroup below `dir`: the limit, the freeze, the
/// processes and the marks.
fn state(dir: &Path) -> BTreeMap<PathBuf, (Vec<Option<String>>, Vec<u8>)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if !entry.is_dir() {
            continue;
        }
        let files = ["cgroup.freeze", "cgroup.procs", "pids.max"];
        let texts = files.map(|file| fs::read_to_string(entry.join(file)).ok()).to_vec();
        let mut marks = vec![0; 4096];
        let length = flistxattr(File::open(&entry).unwrap(), &mut marks[..]).unwrap();
        marks.truncate(length);
        found.extend(state(&entry));
        found.insert(entry, (texts, marks));
    }
    found
}

fn cli(folder: &Path, arguments: &[&str]) -> Output {
    command(folder, "/nonexistent").unwrap().args(arguments).output().unwrap()
}

/// Waits for the agent's end. Kills it after a deadline, because an agent that is not refused never ends.
fn ended(mut child: Child) -> Output {
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if began.elapsed() > DEADLINE {
            child.kill().unwrap();
        }
        thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

fn assert_doctor_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let doctor = cli(folder.path(), &["doctor"]);
    let said = String::from_utf8(doctor.stdout).unwrap();
    assert_eq!(doctor.status.code(), Some(1), "{said}");
    let line = |name: &str| said.lines().find(|line| line.starts_with(name)).unwrap();
    for part in [&kernel::release(), "cgroup.kill missing", "5.15 and newer"] {
        assert!(line("MISSING   kernel").contains(part), "{part}: {said}");
    }
    if Files::of(&Layout::read().unwrap()).own_refusals.is_some() {
        let files = line("MISSING   cgroup files");
        for part in ["cgroup.kill missing", "pids.events.local missing", "pids.peak missing"] {
            assert!(files.contains(part), "{part}: {said}");
        }
    }
    line("degraded  BPF LSM");
}

#[test]
fn doctor_lists_what_an_old_kernel_lacks() {
    // Only the root exists here, and no kernel has these files there.
    assert_doctor_says_why();
    let occupied = Occupied::new();
    assert_eq!(Files::of(&Layout::read().unwrap()).peak, Some(false));
    assert_doctor_says_why();
    drop(occupied);
    let (major, minor) = kernel::version(&kernel::release()).unwrap();
    fact::record("kernel", format!("{major}.{minor}")).unwrap();
    fact::record("cgroup.kill", "no").unwrap();
    fact::record("mcp-guard", "refused").unwrap();
}

#[test]
fn run_is_refused_before_it_changes_anything() {
    let occupied = Occupied::new();
    let root = occupied.dir.parent().unwrap();
    let policies = tempfile::tempdir().unwrap();
    let policy = policies.path().join("policy.toml");
    let rule = format!("mode = \"enforce\"\n[[guard]]\ncgroup = \"/{}\"\n", occupied.name());
    fs::write(&policy, rule).unwrap();
    let before = state(root);
    assert!(before.contains_key(&occupied.dir));
    let folder = tempfile::tempdir().unwrap();
    let mut run = command(folder.path(), "/nonexistent").unwrap();
    run.args(["run", "--policy", policy.to_str().unwrap()]);
    let run = ended(run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let said = String::from_utf8(run.stderr).unwrap();
    assert_eq!(run.status.code(), Some(2), "{said}");
    for part in ["cgroup.kill missing", "5.15 and newer", "mcp-guard doctor"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(run.stdout.is_empty());
    assert_eq!(state(root), before);
    let left = fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(left, 0, "no lock, no socket, no audit log");
}
