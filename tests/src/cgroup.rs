//! Scratch cgroups for tests: made under a name of their own, emptied and removed when dropped.

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

/// A cgroup in the cgroup2 tree and, where pids is a v1 controller, one of the same name in the
/// pids tree.
#[derive(Debug)]
pub struct FixtureCgroup {
    path: String,
    unified: PathBuf,
    pids: PathBuf,
    id: u64,
}

impl FixtureCgroup {
    /// Makes `mcp-guard-test-<what>-<pid>-<n>` at the top of the trees. A name that exists is an
    /// error: a fixture never adopts, and so never removes, what it did not make.
    pub fn new(what: &str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let mounts = Mounts::of_this_host()?;
        let name = plain(&format!("mcp-guard-test-{what}-{}-{n}", std::process::id()))?;
        Self::make(format!("/{name}"), mounts.unified.join(&name), mounts.pids.join(&name))
    }

    /// A cgroup inside this one. On pure v2 it has no pids files, like a nested cgroup that a
    /// container makes: to enable the controller below a cgroup with processes would turn it into a
    /// threaded one.
    pub fn child(&self, name: &str) -> Result<Self> {
        let name = plain(name)?;
        let path = format!("{}/{name}", self.path);
        Self::make(path, self.unified.join(&name), self.pids.join(&name))
    }

    /// On pure v2: nested cgroups have pids files of their own from now on. Only while it has no
    /// process of its own.
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

    /// The path as /proc/PID/cgroup shows it, the same in both trees.
    pub fn path(&self) -> &str {
        &self.path
    }

    pub fn unified_dir(&self) -> &Path {
        &self.unified
    }

    /// Where pids.max is; the same as `unified_dir` on pure v2.
    pub fn pids_dir(&self) -> &Path {
        &self.pids
    }

    /// The cgroup id that the kernel's programs see: the inode of the v2 directory.
    pub fn id(&self) -> u64 {
        self.id
    }

    pub fn set_pids_max(&self, limit: u64) -> Result<()> {
        fs::write(self.pids.join("pids.max"), limit.to_string()).context("pids.max")
    }

    /// Forks refused here, ever, by a file of `pids.events` or `pids.events.local`; None without it.
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

    /// The processes of this cgroup itself, without nested ones.
    pub fn procs(&self) -> Result<Vec<i32>> {
        cleanup::members(&self.unified)
    }

    /// One of the cgroup's files, from the v2 directory or else from the pids directory.
    pub fn read(&self, file: &str) -> Result<String> {
        let place = [&self.unified, &self.pids].map(|dir| dir.join(file));
        let place = place.iter().find(|path| path.exists());
        let place = place.with_context(|| format!("{} has no {file}", self.path))?;
        fs::read_to_string(place).with_context(|| place.display().to_string())
    }

    /// Starts a program inside both trees from its first instruction. Its process is forked outside
    /// and moves in before the exec, as `docker exec` does: the cgroup sees one arrival, no birth,
    /// and one exec.
    pub fn spawn(&self, mut command: Command) -> Result<Child> {
        let mut doors = vec![door(&self.unified)?];
        if self.pids != self.unified {
            doors.push(door(&self.pids)?);
        }
        let enter = move || doors.iter_mut().try_for_each(|door| door.write_all(b"0"));
        #[allow(unsafe_code, reason = "only code between fork and exec starts a program inside")]
        // SAFETY: the closure runs between fork and exec and only writes to descriptors opened
        // before the fork; it neither allocates nor locks.
        unsafe {
            command.pre_exec(enter);
        }
        command.spawn().with_context(|| format!("start of {command:?} in {}", self.path))
    }

    /// Whether the kernel has confirmed the freeze (cgroup.events), not merely been asked for it.
    pub fn is_frozen(&self) -> Result<bool> {
        Events::open(&self.unified)?.is_set("frozen")
    }

    /// Waits until `closure` holds. A change of cgroup.events wakes it at once; other things, of
    /// which the kernel sends no event, are looked at every 5 ms. The error shows what the cgroup
    /// held in the end.
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
                bail!("{}: {what}: not within {deadline:?}; {state}{:?}", self.path, self.procs());
            }
            events.wait(Duration::from_millis(5))?;
        }
    }
}

impl Drop for FixtureCgroup {
    /// Also runs while a failed assertion unwinds; only then is a failure to clean up a mere
    /// message.
    fn drop(&mut self) {
        let Err(error) = cleanup::clear(&self.unified, &self.pids) else { return };
        let message = format!("{} is left behind: {error:#}", self.path);
        if std::thread::panicking() {
            // Nowhere to report a failing stderr to.
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
    ensure!(!name.is_empty() && name.chars().all(fits) && !name.starts_with('.'), "name {name:?}");
    Ok(name.to_string())
}
