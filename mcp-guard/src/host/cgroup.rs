//! A cgroup, held by directory descriptors.
//!
//! A path that was removed and made again is another cgroup: reads and writes through the held
//! descriptor of the old one fail with ENODEV or ENOENT and can hit nothing else.

mod find;
mod pids;

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use mcp_guard_core::escape::escape;
use rustix::fs::{Dir, FileType, Mode, OFlags, fstat, openat};
use tokio::io::Interest;

pub use find::Error;
use pids::Pids;

use super::{poll, process::read_at_most};

/// Nested cgroups looked at below one guard; the size of the kernel side's membership map.
const MAX_DESCENDANTS: usize = mcp_guard_common::MAX_CGROUPS as usize;
/// Bytes read of one cgroup file; cgroup.procs of 65,536 processes fits.
const MAX_FILE: usize = 1 << 19;
/// Bytes of a path in messages.
const SHOWN_PATH: usize = 512;

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

impl Cgroup {
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
    fn read(&self, file: &str) -> io::Result<String> {
        read_file(self.dir.as_fd(), file)
    }

    fn write(&self, file: &str, value: &str) -> io::Result<()> {
        let fd = openat(&self.dir, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::write(&fd, value.as_bytes())?;
        Ok(())
    }
}

/// Waits until `cgroup.events` of a directory reports a state; false where `limit` passes first.
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
fn read_file(dir: BorrowedFd<'_>, file: &str) -> io::Result<String> {
    let fd = openat(dir, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(String::from_utf8_lossy(&read_at_most(&fd, MAX_FILE)?).into_owned())
}
