//! Scratch cgroups for tests: created under a unique name, emptied and removed on drop.

mod cleanup;
mod events;
mod mounts;

use anyhow::{Context, Result, bail, ensure};
use events::Events;
use mounts::Mounts;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A cgroup in the cgroup2 tree and, if pids is a v1 controller, another of the same name in the
/// pids tree.
#[derive(Debug)]
pub struct FixtureCgroup {
    path: String,
    unified: PathBuf,
    pids: PathBuf,
    id: u64,
}

impl FixtureCgroup {
    /// Creates `mcp-guard-test-<what>-<pid>-<n>` at the top of the trees.
    ///
    /// If the name exists, that is an error: a fixture never adopts a cgroup that it did not
    /// create, and so never removes one.
    pub fn new(what: &str) -> Result<Self> {
        Self::with_ending(what, "")
    }

    /// Creates one that has the name of a unit: it ends with `.service`.
    pub fn like_a_unit(what: &str) -> Result<Self> {
        Self::with_ending(what, ".service")
    }

    fn with_ending(what: &str, ending: &str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let mounts = Mounts::of_this_host()?;
        let name = plain(&format!("mcp-guard-test-{what}-{}-{n}{ending}", std::process::id()))?;
        Self::make(format!("/{name}"), mounts.unified.join(&name), mounts.pids.join(&name))
    }

    /// Creates a cgroup inside this one.
    ///
    /// On pure v2 it has no pids files, like a nested cgroup that a container creates: enabling the
    /// controller below a cgroup that has processes would make the nested cgroup threaded.
    pub fn child(&self, name: &str) -> Result<Self> {
        let name = plain(name)?;
        let path = format!("{}/{name}", self.path);
        Self::make(path, self.unified.join(&name), self.pids.join(&name))
    }

    /// On pure v2, gives nested cgroups their own pids files. This cgroup must have no processes.
    pub fn hand_pids_down(&self) -> Result<()> {
        let control = self.unified.join("cgroup.subtree_control");
        fs::write(&control, "+pids").with_context(|| control.display().to_string())
    }

    fn make(path: String, unified: PathBuf, pids: PathBuf) -> Result<Self> {
        fs::create_dir(&unified).with_context(|| unified.display().to_string())?;
        if pids != unified
            && let Err(error) = fs::create_dir(&pids)
        {
            fs::remove_dir(&unified)?;
            return Err(error).with_context(|| pids.display().to_string());
        }
        let id = fs::metadata(&unified).with_context(|| unified.display().to_string())?.ino();
        Ok(Self { path, unified, pids, id })
    }

    /// Returns the path that /proc/PID/cgroup shows. It is the same in both trees.
    pub fn path(&self) -> &str {
        &self.path
    }

    pub fn unified_dir(&self) -> &Path {
        &self.unified
    }

    /// Returns the directory with pids.max. On pure v2 it is `unified_dir`.
    pub fn pids_dir(&self) -> &Path {
        &self.pids
    }

    /// Returns the cgroup id that BPF programs see: the inode of the v2 directory.
    pub fn id(&self) -> u64 {
        self.id
    }

    pub fn set_pids_max(&self, limit: u64) -> Result<()> {
        fs::write(self.pids.join("pids.max"), limit.to_string()).context("pids.max")
    }

    /// Returns how many forks were ever refused, according to `file` (`pids.events` or
    /// `pids.events.local`), or None if the file does not exist.
    pub fn refusals(&self, file: &str) -> Result<Option<u64>> {
        let path = self.pids.join(file);
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let count = text.lines().find_map(|line| line.strip_prefix("max "));
        let count = count.with_context(|| format!("{}: {text}", path.display()))?;
        Ok(Some(count.parse()?))
    }

    pub fn pids_current(&self) -> Result<u64> {
        let text = fs::read_to_string(self.pids.join("pids.current")).context("pids.current")?;
        text.trim().parse().with_context(|| format!("pids.current: {text}"))
    }

    /// Returns the processes of this cgroup, without those of nested cgroups.
    pub fn procs(&self) -> Result<Vec<i32>> {
        cleanup::members(&self.unified)
    }

    /// Reads one of the cgroup's files, from the v2 directory or else from the pids directory.
    pub fn read(&self, file: &str) -> Result<String> {
        let place = [&self.unified, &self.pids].map(|dir| dir.join(file));
        let place = place.iter().find(|path| path.exists());
        let place = place.with_context(|| format!("{} has no {file}", self.path))?;
        fs::read_to_string(place).with_context(|| place.display().to_string())
    }

    /// Starts a program that is in both trees from its first instruction.
    ///
    /// The process is forked outside and moves in before the exec, as with `docker exec`: the
    /// cgroup sees one process move in, no fork, and one exec.
    pub fn spawn(&self, mut command: Command) -> Result<Child> {
        let mut doors = vec![door(&self.unified)?];
        if self.pids != self.unified {
            doors.push(door(&self.pids)?);
        }
        let enter = move || doors.iter_mut().try_for_each(|door| door.write_all(b"0"));
        #[allow(unsafe_code, reason = "the process must move between its fork and its exec")]
        // SAFETY: the closure runs between fork and exec and only writes to descriptors opened
        // before the fork; it neither allocates nor locks.
        unsafe {
            command.pre_exec(enter);
        }
        command.spawn().with_context(|| format!("cannot start {command:?} in {}", self.path))
    }

    /// Returns whether the kernel has confirmed the freeze in cgroup.events. A request alone does
    /// not count.
    pub fn is_frozen(&self) -> Result<bool> {
        Events::open(&self.unified)?.is_set("frozen")
    }

    /// Waits until `closure` returns true.
    ///
    /// A change of cgroup.events wakes it at once. The kernel sends no event for other changes, so
    /// those are polled every 5 ms. The error shows the state and processes of the cgroup.
    pub fn wait_until(
        &self,
        what: &str,
        deadline: Duration,
        mut closure: impl FnMut() -> bool,
    ) -> Result<()> {
        let end = Instant::now() + deadline;
        let events = Events::open(&self.unified)?;
        loop {
            events.is_set("populated")?;
            if closure() {
                return Ok(());
            }
            if Instant::now() >= end {
                let state = self.read("cgroup.events")?.replace('\n', " ");
                let procs = self.procs();
                bail!("{}: not within {deadline:?}: {what}; {state}{procs:?}", self.path);
            }
            events.wait(Duration::from_millis(5))?;
        }
    }
}

impl Drop for FixtureCgroup {
    /// Panics if the cgroup cannot be removed. During a panic it prints a message instead.
    fn drop(&mut self) {
        let Err(error) = cleanup::clear(&self.unified, &self.pids) else { return };
        let message = format!("cannot remove {}: {error:#}", self.path);
        if std::thread::panicking() {
            // A failing stderr cannot be reported anywhere.
            let _ = writeln!(std::io::stderr(), "{message}");
        } else {
            panic!("{message}");
        }
    }
}

fn door(dir: &Path) -> Result<File> {
    let path = dir.join("cgroup.procs");
    File::options().write(true).open(&path).with_context(|| path.display().to_string())
}

fn plain(name: &str) -> Result<String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '@' | '\\');
    let is_plain = !name.is_empty() && name.chars().all(fits) && !name.starts_with('.');
    ensure!(is_plain, "not a plain cgroup name: {name:?}");
    Ok(name.to_string())
}
