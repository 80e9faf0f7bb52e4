//! A cgroup, held by directory descriptors.
//!
//! A path that was removed and made again is another cgroup: reads and writes through the held
//! descriptor of the old one fail with ENODEV or ENOENT and can hit nothing else.

use std::{
    ffi::OsStr,
    io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use cgroups_rs::fs::{MaxValue, pid::PidController};
use mcp_guard_core::{container::container_in, escape::escape};
use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2};
use tokio::io::Interest;

use super::{
    layout::Layout,
    mark::Slot,
    poll,
    process::{Process, pidfd, read_at_most, still_runs},
};

/// Nested cgroups looked at below one guard; the size of the kernel side's membership map.
const MAX_DESCENDANTS: usize = mcp_guard_common::MAX_CGROUPS as usize;
/// Bytes read of one cgroup file; cgroup.procs of 65,536 processes fits.
const MAX_FILE: usize = 1 << 19;
/// Bytes of a path in messages.
const SHOWN_PATH: usize = 512;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no cgroup2 tree is mounted on this host; see `mcp-guard doctor`")]
    NoUnified,
    #[error("cgroup {path}: {source}")]
    Open { path: String, source: io::Error },
    #[error("process {pid}: {source}")]
    Process { pid: u32, source: io::Error },
    #[error("process {pid} ended or moved while its cgroup was looked up; try again")]
    Moved { pid: u32 },
    #[error("process {pid} is in cgroup {path}, which is not the cgroup of container {container}")]
    NotTheContainer { pid: u32, path: String, container: String },
}

/// A limit as the kernel writes it: a number or "max".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Limit {
    Tasks(u64),
    Max,
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tasks(tasks) => write!(f, "{tasks}"),
            Self::Max => f.write_str("max"),
        }
    }
}

impl Limit {
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "max" => Some(Self::Max),
            number => number.parse().ok().map(Self::Tasks),
        }
    }
}

/// `cgroup.events`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Events {
    pub populated: bool,
    pub frozen: bool,
}

pub struct Cgroup {
    dir: OwnedFd,
    id: u64,
    path: String,
    pids: Option<Pids>,
}

/// Where `pids.max` of the same processes lies: the same directory, or one of the v1 tree.
struct Pids {
    dir: OwnedFd,
    v1: bool,
}

impl Cgroup {
    /// By path in the unified tree. On a hybrid host the pids directory is taken from a process
    /// in the cgroup, None while it is empty.
    ///
    /// # Errors
    /// It does not exist, or the host has no unified tree.
    pub fn open(layout: &Layout, path: &str) -> Result<Self, Error> {
        let dir = open_unified(layout, Path::new(path))?;
        let mut cgroup = Self::hold(dir, path.to_owned())?;
        cgroup.find_pids(layout);
        Ok(cgroup)
    }

    /// The cgroup a process is in. Both directories come from one read of `/proc/PID/cgroup`, with
    /// the process alive before and after. With `container`, the container's own cgroup: the
    /// process may sit below it.
    ///
    /// # Errors
    /// The process is gone, moved, or is not in that container.
    pub fn of_process(layout: &Layout, pid: u32, container: Option<&str>) -> Result<Self, Error> {
        let alive = pidfd(pid).map_err(|source| Error::Process { pid, source })?;
        let places = Process::open(pid)
            .and_then(|process| process.cgroup())
            .map_err(|source| Error::Process { pid, source })?;
        let line = |wanted: &dyn Fn(&[u8], &[u8]) -> bool| {
            places.split(|byte| *byte == b'\n').find_map(|line| {
                let mut fields = line.splitn(3, |byte| *byte == b':');
                let (number, controllers) = (fields.next()?, fields.next()?);
                wanted(number, controllers).then(|| fields.next()).flatten()
            })
        };
        let unified = line(&|number, _| number == b"0").ok_or(Error::NoUnified)?;
        let unified = trim(pid, unified, container)?;
        let dir = open_unified(layout, &unified)?;
        let mut cgroup = Self::hold(dir, show(&unified))?;
        match &layout.pids {
            Some(tree) if tree.v1 => {
                let has_pids =
                    |list: &[u8]| list.split(|byte| *byte == b',').any(|one| one == b"pids");
                if let Some(path) = line(&|_, controllers| has_pids(controllers)) {
                    let dir = open_below(&tree.mount, &trim(pid, path, container)?)?;
                    cgroup.pids = Some(Pids { dir, v1: true });
                }
            }
            Some(_) => cgroup.find_pids(layout),
            None => {}
        }
        if still_runs(&alive) { Ok(cgroup) } else { Err(Error::Moved { pid }) }
    }

    fn hold(dir: OwnedFd, path: String) -> Result<Self, Error> {
        let stat = fstat(&dir)
            .map_err(|source| Error::Open { path: path.clone(), source: source.into() })?;
        Ok(Self { dir, id: stat.st_ino, path, pids: None })
    }

    /// The roots of the trees in which marks of each slot lie.
    ///
    /// # Errors
    /// A tree that is mounted cannot be opened.
    pub fn roots(layout: &Layout) -> io::Result<Vec<(Slot, Self)>> {
        let mut roots = Vec::new();
        let freeze = layout.unified.as_ref().map(|mount| (Slot::Freeze, mount));
        let clamp = layout.pids.as_ref().map(|tree| (Slot::Clamp, &tree.mount));
        for (slot, mount) in freeze.into_iter().chain(clamp) {
            let dir = open_below(mount, Path::new("/")).map_err(io::Error::other)?;
            roots.push((slot, Self::hold(dir, "/".to_owned()).map_err(io::Error::other)?));
        }
        Ok(roots)
    }

    /// The cgroup of a directory found by a walk in the tree of `slot`.
    ///
    /// # Errors
    /// It is gone.
    pub fn at(dir: BorrowedFd<'_>, path: &str, slot: Slot, layout: &Layout) -> io::Result<Self> {
        let own = dir.try_clone_to_owned()?;
        let mut cgroup = Self::hold(own, path.to_owned()).map_err(io::Error::other)?;
        if slot == Slot::Clamp {
            let v1 = layout.pids.as_ref().is_some_and(|tree| tree.v1);
            cgroup.pids = Some(Pids { dir: dir.try_clone_to_owned()?, v1 });
        }
        Ok(cgroup)
    }

    /// Finds the pids directory where it is not known yet: a hybrid guard may have been empty.
    pub fn find_pids(&mut self, layout: &Layout) {
        let Some(tree) = layout.pids.as_ref().filter(|_| self.pids.is_none()) else { return };
        if !tree.v1 {
            self.pids = self.dir.try_clone().ok().map(|dir| Pids { dir, v1: false });
            return;
        }
        for pid in self.processes().unwrap_or_default() {
            if let Ok(Self { id, pids: Some(pids), .. }) = Self::of_process(layout, pid, None)
                && id == self.id
            {
                self.pids = Some(pids);
                return;
            }
        }
    }

    /// The id that the kernel side uses: the directory's inode number.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Path in the unified tree, escaped for messages.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    #[must_use]
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// The directory that has `pids.max`.
    #[must_use]
    pub fn pids_dir(&self) -> Option<BorrowedFd<'_>> {
        self.pids.as_ref().map(|pids| pids.dir.as_fd())
    }

    /// False once it was removed, also where its path exists again.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.events().is_ok()
    }

    /// # Errors
    /// The cgroup is gone.
    pub fn events(&self) -> io::Result<Events> {
        let text = self.read("cgroup.events")?;
        let set = |key: &str| text.lines().any(|line| line.strip_prefix(key) == Some(" 1"));
        Ok(Events { populated: set("populated"), frozen: set("frozen") })
    }

    /// What was asked of the kernel, by anybody; `Events::frozen` is what was reached.
    ///
    /// # Errors
    /// The cgroup is gone.
    pub fn freeze_requested(&self) -> io::Result<bool> {
        Ok(self.read("cgroup.freeze")?.trim() == "1")
    }

    /// # Errors
    /// The cgroup is gone.
    pub fn request_freeze(&self, frozen: bool) -> io::Result<()> {
        self.write("cgroup.freeze", if frozen { "1" } else { "0" })
    }

    /// SIGKILL to every process in it and below, forks in flight included (cgroup.kill, Linux 5.14).
    ///
    /// # Errors
    /// The cgroup is gone.
    pub fn kill(&self) -> io::Result<()> {
        self.write("cgroup.kill", "1")
    }

    /// Waits until the kernel reports a state; false where `limit` passes first.
    ///
    /// # Errors
    /// The cgroup is gone.
    pub async fn wait(
        &self,
        limit: Duration,
        reached: impl Fn(Events) -> bool,
    ) -> io::Result<bool> {
        wait_events(self.dir.try_clone()?, limit, reached).await
    }

    /// Processes in it and below. 0, a process of another pid namespace, is left out.
    ///
    /// # Errors
    /// The cgroup is gone.
    pub fn processes(&self) -> io::Result<Vec<u32>> {
        let mut pids = Vec::new();
        self.walk(&mut |dir, _| {
            let list = read_file(dir, "cgroup.procs")?;
            pids.extend(list.lines().filter_map(|line| line.parse::<u32>().ok()));
            Ok(())
        })?;
        pids.retain(|pid| *pid != 0);
        Ok(pids)
    }

    /// Paths and ids of the cgroups below it.
    ///
    /// # Errors
    /// The cgroup is gone.
    pub fn descendants(&self) -> io::Result<Vec<(String, u64)>> {
        let mut found = Vec::new();
        self.walk(&mut |dir, path| {
            found.push((path.to_owned(), fstat(dir)?.st_ino));
            Ok(())
        })?;
        found.remove(0); // The walk begins with the cgroup itself.
        Ok(found)
    }

    /// Visits this cgroup, then those below; each is visited before its children are listed, so that
    /// a child made meanwhile is either seen or was made below a visited parent.
    ///
    /// # Errors
    /// This cgroup is gone, or `visit` fails on it. A descendant that goes away is stepped over.
    pub fn walk(
        &self,
        visit: &mut dyn FnMut(BorrowedFd<'_>, &str) -> io::Result<()>,
    ) -> io::Result<()> {
        visit(self.dir.as_fd(), &self.path)?;
        let mut waiting = vec![(self.dir.try_clone()?, self.path.clone())];
        let mut seen = 0;
        while let Some((dir, path)) = waiting.pop() {
            for entry in Dir::read_from(&dir)?.flatten() {
                let name = entry.file_name().to_bytes();
                let is_child =
                    entry.file_type() == FileType::Directory && !matches!(name, b"." | b"..");
                if !is_child || seen >= MAX_DESCENDANTS {
                    continue;
                }
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let Ok(child) = openat(&dir, entry.file_name(), flags, Mode::empty()) else {
                    continue;
                };
                seen += 1;
                let parent = path.trim_end_matches('/');
                let child_path = format!("{parent}/{}", escape(name, SHOWN_PATH));
                if visit(child.as_fd(), &child_path).is_ok() {
                    waiting.push((child, child_path));
                }
            }
        }
        Ok(())
    }

    /// # Errors
    /// There is no pids controller, or the cgroup is gone.
    pub fn pids_max(&self) -> io::Result<Limit> {
        match self.pids_controller()?.get_pid_max().map_err(cause)? {
            MaxValue::Max => Ok(Limit::Max),
            MaxValue::Value(tasks) => Ok(Limit::Tasks(u64::try_from(tasks).unwrap_or(0))),
        }
    }

    /// # Errors
    /// There is no pids controller, or the cgroup is gone.
    pub fn set_pids_max(&self, limit: Limit) -> io::Result<()> {
        let value = match limit {
            Limit::Max => MaxValue::Max,
            Limit::Tasks(tasks) => MaxValue::Value(i64::try_from(tasks).unwrap_or(i64::MAX)),
        };
        self.pids_controller()?.set_pid_max(value).map_err(cause)
    }

    /// Tasks charged, threads and zombies included.
    ///
    /// # Errors
    /// There is no pids controller, or the cgroup is gone.
    pub fn pids_current(&self) -> io::Result<u64> {
        self.pids_controller()?.get_pid_current().map_err(cause)
    }

    /// Forks refused, ever.
    ///
    /// # Errors
    /// There is no pids controller, or the cgroup is gone.
    pub fn pids_denials(&self) -> io::Result<u64> {
        self.pids_controller()?.get_pid_events().map_err(cause)
    }

    /// Processes that share the pids directory; more than the guard's own means that a clamp would
    /// hit bystanders.
    ///
    /// # Errors
    /// There is no pids controller, or the cgroup is gone.
    pub fn pids_processes(&self) -> io::Result<Vec<u32>> {
        let pids = self.pids.as_ref().ok_or_else(no_pids)?;
        let dir = pids.dir.try_clone()?;
        let same = Self { dir, id: 0, path: String::new(), pids: None };
        same.processes()
    }

    /// cgroups-rs over the held descriptor: its paths then cannot be replaced under us.
    fn pids_controller(&self) -> io::Result<PidController> {
        let pids = self.pids.as_ref().ok_or_else(no_pids)?;
        // It creates files that are missing, so the directory must be a live cgroup's.
        read_file(pids.dir.as_fd(), "pids.current")?;
        let held = PathBuf::from(format!("/proc/self/fd/{}", pids.dir.as_raw_fd()));
        Ok(PidController::new(held, PathBuf::new(), !pids.v1))
    }

    fn read(&self, file: &str) -> io::Result<String> {
        read_file(self.dir.as_fd(), file)
    }

    fn write(&self, file: &str, value: &str) -> io::Result<()> {
        let fd = openat(&self.dir, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::write(&fd, value.as_bytes())?;
        Ok(())
    }
}

/// Waits on `cgroup.events` of a directory; see [`Cgroup::wait`].
///
/// # Errors
/// The cgroup is gone.
pub async fn wait_events(
    dir: OwnedFd,
    limit: Duration,
    reached: impl Fn(Events) -> bool,
) -> io::Result<bool> {
    let cgroup = Cgroup { dir, id: 0, path: String::new(), pids: None };
    let events =
        openat(&cgroup.dir, "cgroup.events", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    // kernfs signals POLLPRI for a change since the last read of this descriptor.
    let events = poll::register(events, Interest::PRIORITY)?;
    let changed = async {
        loop {
            let mut guard = events.ready(Interest::PRIORITY).await?;
            read_at_most(events.get_ref(), 64)?;
            if reached(cgroup.events()?) {
                return Ok(());
            }
            guard.clear_ready();
        }
    };
    read_at_most(events.get_ref(), 64)?;
    if reached(cgroup.events()?) {
        return Ok(true);
    }
    match tokio::time::timeout(limit, changed).await {
        Ok(result) => result.map(|()| true),
        Err(_) => Ok(reached(cgroup.events()?)),
    }
}

fn open_unified(layout: &Layout, path: &Path) -> Result<OwnedFd, Error> {
    open_below(layout.unified.as_ref().ok_or(Error::NoUnified)?, path)
}

/// Opens a directory below a mount point without following links or leaving the mount.
fn open_below(mount: &Path, path: &Path) -> Result<OwnedFd, Error> {
    let open = || -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(CWD, mount, flags, Mode::empty())?;
        let inside = path.strip_prefix("/").unwrap_or(path);
        if inside.as_os_str().is_empty() {
            return Ok(root);
        }
        let resolve = ResolveFlags::BENEATH
            | ResolveFlags::NO_SYMLINKS
            | ResolveFlags::NO_MAGICLINKS
            | ResolveFlags::NO_XDEV;
        openat2(&root, inside, flags, Mode::empty(), resolve)
    };
    open().map_err(|source| Error::Open { path: show(path), source: source.into() })
}

/// The container's own part of a process's cgroup path, or the whole path.
fn trim(pid: u32, path: &[u8], container: Option<&str>) -> Result<PathBuf, Error> {
    let Some(id) = container else { return Ok(OsStr::from_bytes(path).into()) };
    let text = String::from_utf8_lossy(path);
    match container_in(&text) {
        Some(found) if found.id == id => Ok(found.path.into()),
        _ => Err(Error::NotTheContainer {
            pid,
            path: escape(path, SHOWN_PATH),
            container: id.to_owned(),
        }),
    }
}

fn show(path: &Path) -> String {
    escape(path.as_os_str().as_bytes(), SHOWN_PATH)
}

pub(super) fn read_file(dir: BorrowedFd<'_>, file: &str) -> io::Result<String> {
    let fd = openat(dir, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(String::from_utf8_lossy(&read_at_most(&fd, MAX_FILE)?).into_owned())
}

fn no_pids() -> io::Error {
    io::Error::other("no pids controller is known for it")
}

/// cgroups-rs keeps the errno in its source.
fn cause(error: cgroups_rs::fs::error::Error) -> io::Error {
    let errno = std::error::Error::source(&error)
        .and_then(|source| source.downcast_ref::<io::Error>())
        .and_then(io::Error::raw_os_error);
    errno.map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error)
}
