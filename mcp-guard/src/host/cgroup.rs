//! A cgroup, held open by directory descriptors.
//!
//! A cgroup that is re-created at the same path is another cgroup. Reads and writes through the
//! descriptor of the old one fail with ENODEV or ENOENT, and cannot reach the new one.

mod child;
mod dir;
mod find;
mod pids;
mod place;
mod populated;
mod scan;
mod search;
mod step;
mod tasks;
mod walk;

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    time::Duration,
};

use mcp_guard_core::id::CgroupId;
use tokio::io::{Interest, unix::AsyncFd};

pub use self::{
    child::{ChildCgroup, ChildFiles},
    dir::{Dir, MAX_PROCS},
    find::Error,
    pids::{ChargedTasks, SharedPids},
    populated::{Members, PopulatedWalk},
    scan::path_in_tree,
    search::CgroupSearch,
    step::WalkStep,
    tasks::TaskCount,
    walk::is_too_deep,
};
use self::{pids::Pids, walk::Visit};
use super::{cgroupfs::Events, poll, process::read_at_most};

pub struct Cgroup {
    dir: Dir,
    id: CgroupId,
    path: String,
    pids: Option<Pids>,
}

impl Cgroup {
    /// Returns the id that the kernel side uses: the directory's inode number.
    #[must_use]
    pub fn id(&self) -> CgroupId {
        self.id
    }

    /// Returns the path in the unified tree, as [`mcp_guard_core::escape::cgroup_path`] writes it.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns the uid of its owner. See [`Dir::owner`].
    ///
    /// # Errors
    /// If fstat(2) fails.
    pub fn owner(&self) -> io::Result<u32> {
        self.dir.owner()
    }

    /// Whether it was delegated to a user: he owns it, or a cgroup above it.
    ///
    /// # Errors
    /// If a cgroup cannot be opened.
    pub fn is_delegated_to(&self, user: u32) -> io::Result<bool> {
        Ok(self.owner()? == user || self.is_below(|dir| Ok(dir.owner()? == user))?)
    }

    /// Whether it is below a cgroup that satisfies a condition. The root of the tree is not asked
    /// about: nobody delegates or guards it.
    ///
    /// # Errors
    /// If a cgroup cannot be opened, or the condition fails.
    pub fn is_below(&self, mut is_it: impl FnMut(&Dir) -> io::Result<bool>) -> io::Result<bool> {
        let mut dir = self.dir.try_clone()?;
        for _ in self.path.split('/').skip(2) {
            dir = dir.above()?;
            if is_it(&dir)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    #[must_use]
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Opens the cgroup once more, for another thread.
    ///
    /// # Errors
    /// If the process has no descriptors left.
    pub fn try_clone(&self) -> io::Result<Self> {
        let pids = match &self.pids {
            Some(Pids { dir, v1 }) => Some(Pids { dir: dir.try_clone()?, v1: *v1 }),
            None => None,
        };
        Ok(Self { dir: self.dir.try_clone()?, id: self.id, path: self.path.clone(), pids })
    }

    /// Opens the directory once more, for another thread.
    ///
    /// # Errors
    /// If the process has no descriptors left.
    pub fn try_clone_dir(&self) -> io::Result<Dir> {
        self.dir.try_clone()
    }

    /// # Errors
    /// If the cgroup is gone.
    pub fn events(&self) -> io::Result<Events> {
        self.dir.events()
    }

    /// Whether any process has requested a freeze. `Events::frozen` reports whether it was reached.
    ///
    /// # Errors
    /// If the cgroup is gone.
    pub fn freeze_requested(&self) -> io::Result<bool> {
        Ok(self.dir.read_word("cgroup.freeze")? == "1")
    }

    /// # Errors
    /// If the cgroup is gone.
    pub fn request_freeze(&self, frozen: bool) -> io::Result<()> {
        self.dir.write("cgroup.freeze", if frozen { "1" } else { "0" })
    }

    /// Sends SIGKILL to every process in it and below, including forks in flight (cgroup.kill,
    /// Linux 5.14).
    ///
    /// # Errors
    /// If the cgroup is gone.
    pub fn kill(&self) -> io::Result<()> {
        self.dir.write("cgroup.kill", "1")
    }

    /// Returns it as one that we have made below a container's.
    ///
    /// # Errors
    /// The process has no descriptors left, or the cgroup above is gone.
    pub fn child_of_ours(&self) -> io::Result<ChildCgroup> {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        ChildCgroup::found(self.dir.try_clone()?, name.as_bytes())
    }

    /// See [`Dir::members`].
    ///
    /// # Errors
    /// If the cgroup is gone, or if a list cannot be read to the end.
    pub fn members(&self, go_on: impl FnMut(usize) -> bool) -> io::Result<Option<Members>> {
        self.dir.members(go_on)
    }

    /// # Errors
    /// If the process has no descriptors left.
    pub fn walk_populated(&self) -> io::Result<PopulatedWalk> {
        PopulatedWalk::begin(&self.dir, &self.path)
    }

    /// See [`Dir::walk`].
    ///
    /// # Errors
    /// If this cgroup is gone, or if a cgroup cannot be opened, listed or visited.
    pub fn walk(&self, visit: Visit<'_>) -> io::Result<()> {
        self.dir.walk(&self.path, visit)
    }

    /// See [`Dir::walk_all`].
    ///
    /// # Errors
    /// If a cgroup could not be visited, or if this cgroup is gone.
    pub fn walk_all(&self, visit: Visit<'_>) -> io::Result<()> {
        self.dir.walk_all(&self.path, visit)
    }
}

/// The open `cgroup.events` of a directory.
pub struct EventsWatch(AsyncFd<OwnedFd>);

impl EventsWatch {
    /// # Errors
    /// If the cgroup is gone, or the process has no descriptors left.
    pub fn open(dir: &Dir) -> io::Result<Self> {
        // kernfs signals POLLPRI after a change since the last read of this descriptor.
        poll::register(dir.open("cgroup.events")?, Interest::PRIORITY).map(Self)
    }

    /// Waits until the kernel reports a state. Returns false if `limit` passes first. The wait may
    /// be repeated.
    ///
    /// # Errors
    /// If the cgroup is gone.
    pub async fn wait(
        &self,
        limit: Duration,
        reached: impl Fn(Events) -> bool,
    ) -> io::Result<bool> {
        let changed = async {
            loop {
                let mut guard = self.0.ready(Interest::PRIORITY).await?;
                if reached(self.read()?) {
                    return Ok(());
                }
                guard.clear_ready();
            }
        };
        if reached(self.read()?) {
            return Ok(true);
        }
        match tokio::time::timeout(limit, changed).await {
            Ok(result) => result.map(|()| true),
            Err(_) => Ok(reached(self.read()?)),
        }
    }

    fn read(&self) -> io::Result<Events> {
        let text = read_at_most(self.0.get_ref(), 64)?;
        Ok(Events::parse(&String::from_utf8_lossy(&text)))
    }
}
