//! The demo's scratch cgroup and files. They are removed however the demo ends.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process::Child,
    time::{Duration, Instant},
};

use mcp_guard_core::id::Pid;

use super::leak;
use crate::{
    cli::Failure,
    host::{
        cgroupfs::{self, Events},
        layout::Layout,
    },
};

/// The demo's policy: the shipped detector with shortened ages.
const POLICY: &str = r#"mode = "enforce"
[detect.duplicates]
warn = 3
warn_age = "1s"
act = 6
act_age = "2s"
response = "freeze"
[[guard]]
cgroup = "PATH"
"#;
/// Most tasks the demo can create, in case containment fails.
const PIDS_MAX: &str = "200";
const CLEAN_UP: Duration = Duration::from_secs(5);

pub struct Scratch {
    folder: PathBuf,
    unified: PathBuf,
    /// Its directory in the pids tree; equal to `unified` without a version 1 tree.
    pids: Option<PathBuf>,
    path: String,
    leak: Option<Child>,
}

impl Scratch {
    pub fn new(layout: &Layout) -> Result<Self, Failure> {
        let unified = layout.unified.as_ref().ok_or_else(|| {
            Failure::could_not("no cgroup2 tree is mounted; `mcp-guard doctor` shows details")
        })?;
        let name = format!("mcp-guard-test-demo-{}", std::process::id());
        let scratch = Self {
            folder: std::env::temp_dir().join(&name),
            unified: unified.join(&name),
            pids: layout.pids.as_ref().map(|tree| tree.mount.join(&name)),
            path: format!("/{name}"),
            leak: None,
        };
        scratch.make().map_err(|error| {
            Failure::could_not(format!("cannot create the demo's cgroup: {error}"))
        })?;
        Ok(scratch)
    }

    fn make(&self) -> io::Result<()> {
        fs::DirBuilder::new().mode(0o700).create(&self.folder)?;
        fs::write(self.policy(), POLICY.replace("PATH", &self.path))?;
        fs::create_dir(&self.unified)?;
        if let Some(pids) = &self.pids {
            if *pids != self.unified {
                fs::create_dir(pids)?;
            }
            // Missing if no cgroup above has enabled the controller for its children.
            match fs::write(pids.join("pids.max"), PIDS_MAX) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    pub fn start_leak(&mut self, servers: u32, every: Duration) -> Result<(), Failure> {
        let places: Vec<&Path> =
            std::iter::once(self.unified.as_path()).chain(self.pids.as_deref()).collect();
        let child = leak::start(&self.folder, &places, servers, every)
            .map_err(|error| Failure::could_not(format!("cannot start the leak: {error}")))?;
        self.leak = Some(child);
        Ok(())
    }

    pub fn path(&self) -> &str {
        &self.path
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn audit(&self) -> PathBuf {
        self.folder.join("audit.jsonl")
    }

    pub fn policy(&self) -> PathBuf {
        self.folder.join("policy.toml")
    }

    pub fn is_frozen(&self) -> bool {
        fs::read_to_string(self.unified.join("cgroup.events"))
            .is_ok_and(|text| Events::parse(&text).frozen)
    }

    pub fn processes(&self) -> usize {
        self.pids().len()
    }

    pub fn launchers(&self) -> usize {
        let is_launcher = |pid: &Pid| {
            fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| line.starts_with(b"npm\0exec\0"))
        };
        self.pids().iter().filter(|pid| is_launcher(pid)).count()
    }

    fn pids(&self) -> Vec<Pid> {
        cgroupfs::pids(&fs::read(self.unified.join("cgroup.procs")).unwrap_or_default())
    }

    pub fn clean_up(&mut self) -> Result<(), Failure> {
        self.remove().map_err(|error| {
            let paths = [Some(&self.unified), self.pids.as_ref(), Some(&self.folder)];
            let left: Vec<_> = paths
                .into_iter()
                .flatten()
                .filter(|path| path.exists())
                .map(|path| path.display().to_string())
                .collect();
            Failure::could_not(format!(
                "cannot clean up: {error}; left behind: {}",
                left.join(", ")
            ))
        })
    }

    fn remove(&mut self) -> io::Result<()> {
        if self.unified.exists() {
            // cgroup.kill kills frozen processes too.
            fs::write(self.unified.join("cgroup.kill"), "1")?;
        }
        if let Some(mut leak) = self.leak.take() {
            leak.wait()?;
        }
        let cgroups = std::iter::once(&self.unified).chain(&self.pids);
        for cgroup in cgroups {
            remove_cgroup(cgroup)?;
        }
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// Removes a cgroup. The kernel refuses until its last zombie is reaped, which takes init a moment.
fn remove_cgroup(cgroup: &Path) -> io::Result<()> {
    let began = Instant::now();
    loop {
        match fs::remove_dir(cgroup) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(_) if began.elapsed() < CLEAN_UP => std::thread::sleep(Duration::from_millis(10)),
            other => return other,
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = self.remove();
    }
}
