//! A cgroup, held by directory descriptors.
//!
//! A path that was removed and made again is another cgroup: reads and writes through the held
//! descriptor of the old one fail with ENODEV or ENOENT and can hit nothing else.

mod dir;
mod find;
mod pids;
mod walk;

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    time::Duration,
};

use mcp_guard_core::id::{CgroupId, Pid};
use tokio::io::Interest;

pub use self::{dir::Dir, find::Error, walk::MAX_DESCENDANTS};
use self::{pids::Pids, walk::Visit};
use super::{cgroupfs::Events, poll, process::read_at_most};

pub struct Cgroup {
    dir: Dir,
    id: CgroupId,
    path: String,
    pids: Option<Pids>,
}

impl Cgroup {
    /// The id that the kernel side uses: the directory's inode number.
    #[must_use]
    pub fn id(&self) -> CgroupId {
        self.id
    }

    /// Path in the unified tree, as [`mcp_guard_core::escape::cgroup_path`] writes it.
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
        self.dir.events()
    }

    /// What was asked of the kernel, by anybody; `Events::frozen` is what was reached.
    ///
    /// # Errors
    /// The cgroup is gone.
    pub fn freeze_requested(&self) -> io::Result<bool> {
        Ok(self.dir.read("cgroup.freeze")?.trim() == "1")
    }

    /// # Errors
    /// The cgroup is gone.
    pub fn request_freeze(&self, frozen: bool) -> io::Result<()> {
        self.dir.write("cgroup.freeze", if frozen { "1" } else { "0" })
    }

    /// SIGKILL to every process in it and below, forks in flight included (cgroup.kill, Linux 5.14).
    ///
    /// # Errors
    /// The cgroup is gone.
    pub fn kill(&self) -> io::Result<()> {
        self.dir.write("cgroup.kill", "1")
    }

    /// See [`Dir::processes`].
    ///
    /// # Errors
    /// The cgroup is gone, or its list cannot be read to the end.
    pub fn processes(&self) -> io::Result<Vec<Pid>> {
        self.dir.processes()
    }

    /// Paths and ids of the cgroups below it.
    ///
    /// # Errors
    /// The cgroup is gone.
    pub fn descendants(&self) -> io::Result<Vec<(String, CgroupId)>> {
        let mut found = Vec::new();
        self.walk(&mut |dir, path| {
            found.push((path.to_owned(), dir.id()?));
            Ok(())
        })?;
        found.remove(0); // The walk begins with the cgroup itself.
        Ok(found)
    }

    /// See [`Dir::walk`].
    ///
    /// # Errors
    /// This cgroup is gone, or one cannot be opened, listed or visited.
    pub fn walk(&self, visit: Visit<'_>) -> io::Result<()> {
        self.dir.walk(&self.path, visit)
    }

    /// See [`Dir::walk_all`].
    ///
    /// # Errors
    /// What could not be visited, or this cgroup is gone.
    pub fn walk_all(&self, visit: Visit<'_>) -> io::Result<()> {
        self.dir.walk_all(&self.path, visit)
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
    let dir = Dir::from(dir);
    // kernfs signals POLLPRI for a change since the last read of this descriptor.
    let events = poll::register(dir.open("cgroup.events")?, Interest::PRIORITY)?;
    let changed = async {
        loop {
            let mut guard = events.ready(Interest::PRIORITY).await?;
            read_at_most(events.get_ref(), 64)?;
            if reached(dir.events()?) {
                return Ok(());
            }
            guard.clear_ready();
        }
    };
    read_at_most(events.get_ref(), 64)?;
    if reached(dir.events()?) {
        return Ok(true);
    }
    match tokio::time::timeout(limit, changed).await {
        Ok(result) => result.map(|()| true),
        Err(_) => Ok(reached(dir.events()?)),
    }
}
