//! A cgroup of ours below one of a container, for the processes of a single server.
//!
//! It has no controllers, so limits and counts of the cgroup above go on to apply. A process that is started in it
//! sees no memory limit, though: `memory.max` is a file of the cgroup above. So nothing stays in it that runs.

use std::{
    ffi::CString,
    io,
    num::NonZeroU32,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use mcp_guard_core::id::Pid;
use rustix::{
    fs::{AtFlags, Mode, mkdirat, unlinkat},
    io::Errno,
};

use super::{Dir, MAX_PROCS, populated::is_gone};
use crate::host::process::OpenProcess;

/// How often a state of the kernel is read again. It notifies of a freeze only after some milliseconds.
const STEP: Duration = Duration::from_micros(200);
/// How long its tasks may take to stop before they are moved back, and the kernel to let go of it afterwards.
const STOPS: Duration = Duration::from_millis(50);
const EMPTIES: Duration = Duration::from_millis(20);
/// How often its processes are listed again, in case a list was incomplete.
const LISTS: usize = 4;

pub struct ChildCgroup {
    parent: Dir,
    dir: Dir,
    name: CString,
}

/// Open files of the cgroup and of the one above it: they wake a server and move its processes back.
pub struct ChildFiles {
    pub freeze: OwnedFd,
    pub procs: OwnedFd,
    pub parent_procs: OwnedFd,
}

impl ChildCgroup {
    /// Makes it below a cgroup.
    ///
    /// # Errors
    /// The cgroup is threaded, enables controllers for those below it, or allows none; or the name is taken.
    pub fn make(parent: Dir, name: &str) -> io::Result<Self> {
        let kind = parent.read_word("cgroup.type")?;
        if kind != "domain" {
            return Err(io::Error::other(format!("its cgroup is of the type {kind:?}")));
        }
        if !parent.read_word("cgroup.subtree_control")?.is_empty() {
            return Err(io::Error::other("its cgroup has controllers for those below it"));
        }
        let name = CString::new(name).map_err(io::Error::other)?;
        mkdirat(&parent, name.as_c_str(), Mode::from_raw_mode(0o755))?;
        match parent.child(&name) {
            Ok(dir) => Ok(Self { parent, dir, name }),
            Err(error) => {
                let _ = unlinkat(&parent, name.as_c_str(), AtFlags::REMOVEDIR);
                Err(error)
            }
        }
    }

    /// Finds one that was made earlier. `dir`: its directory; `name`: the last component of its path.
    ///
    /// # Errors
    /// It is gone, or the cgroup above it is.
    pub fn found(dir: Dir, name: &[u8]) -> io::Result<Self> {
        let name = CString::new(name).map_err(io::Error::other)?;
        Ok(Self { parent: dir.above()?, dir, name })
    }

    #[must_use]
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Opens what wakes it and empties it.
    ///
    /// # Errors
    /// It is gone.
    pub fn files(&self) -> io::Result<ChildFiles> {
        Ok(ChildFiles {
            freeze: self.dir.open_to_write("cgroup.freeze")?,
            procs: self.dir.open("cgroup.procs")?,
            parent_procs: self.parent.open_to_write("cgroup.procs")?,
        })
    }

    /// Moves a process into it.
    ///
    /// # Errors
    /// The process is gone, or the kernel refuses.
    pub fn take(&self, pid: Pid) -> io::Result<()> {
        moved_to(&self.dir, pid)
    }

    /// # Errors
    /// It is gone.
    pub fn processes(&self) -> io::Result<Vec<Pid>> {
        self.dir.own_processes(MAX_PROCS)
    }

    /// Freezes it, and waits until all its tasks have stopped. Returns false if `limit` passes first.
    ///
    /// # Errors
    /// It is gone.
    pub fn freeze(&self, limit: Duration) -> io::Result<bool> {
        self.dir.write("cgroup.freeze", "1")?;
        within(limit, || Ok(self.dir.events()?.frozen))
    }

    /// # Errors
    /// It is gone.
    pub fn thaw(&self) -> io::Result<()> {
        self.dir.write("cgroup.freeze", "0")
    }

    /// Whether it is not frozen any more, or is gone.
    #[must_use]
    pub fn is_thawed(&self) -> bool {
        self.dir.read_word("cgroup.freeze").map_or_else(|error| is_gone(&error), |word| word != "1")
    }

    /// Moves its processes to the cgroup above, where they run, and removes it.
    ///
    /// # Errors
    /// Its tasks do not stop for the move, a process cannot be moved, or the kernel does not let go of it. Then it is
    /// thawed, and this may be tried again. It is no error if it is gone, or the cgroup above it.
    pub fn give_back(&self) -> io::Result<()> {
        match self.empty().and_then(|()| self.remove()) {
            Err(error) if is_gone(&error) => Ok(()),
            ended => ended,
        }
    }

    /// Moves all processes while they are frozen: then they cannot start others, or end in the middle.
    fn empty(&self) -> io::Result<()> {
        let moved = match self.processes() {
            Ok(all) if all.is_empty() => Ok(()),
            Ok(_) => self.move_frozen(),
            Err(error) => Err(error),
        };
        self.thaw()?;
        moved
    }

    fn move_frozen(&self) -> io::Result<()> {
        if !self.freeze(STOPS)? {
            return Err(io::Error::other("its threads do not stop, so it cannot be moved now"));
        }
        for _ in 0..LISTS {
            let processes = self.processes()?;
            if processes.is_empty() {
                return Ok(());
            }
            for pid in processes {
                match OpenProcess::open(pid).and_then(|process| process.stat()) {
                    Ok(stat) if stat.ending => continue,
                    // Only the rest of it would move, and no list would have it.
                    Ok(stat) if stat.first_ends => {
                        return Err(io::Error::other(format!(
                            "the first thread of process {pid} has ended, so it cannot be moved"
                        )));
                    }
                    Ok(_) => {}
                    // It has ended.
                    Err(_) => continue,
                }
                match moved_to(&self.parent, pid) {
                    Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                    moved => moved?,
                }
            }
        }
        Err(io::Error::other("other processes were moved into it"))
    }

    fn remove(&self) -> io::Result<()> {
        let removed = within(EMPTIES, || {
            match unlinkat(&self.parent, self.name.as_c_str(), AtFlags::REMOVEDIR) {
                Ok(()) => Ok(true),
                Err(Errno::BUSY) => Ok(false),
                Err(error) => Err(error.into()),
            }
        })?;
        if removed { Ok(()) } else { Err(Errno::BUSY.into()) }
    }
}

/// Moves a process. Pid 0 would mean the caller.
fn moved_to(dir: &Dir, Pid(pid): Pid) -> io::Result<()> {
    let pid = NonZeroU32::new(pid).ok_or_else(|| io::Error::other("pid 0 is no process"))?;
    dir.write("cgroup.procs", &pid.to_string())
}

fn within(limit: Duration, mut reached: impl FnMut() -> io::Result<bool>) -> io::Result<bool> {
    let end = Instant::now() + limit;
    loop {
        if reached()? {
            return Ok(true);
        }
        if Instant::now() >= end {
            return Ok(false);
        }
        thread::sleep(STEP);
    }
}
