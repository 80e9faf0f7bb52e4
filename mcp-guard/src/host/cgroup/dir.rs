//! An open directory of a cgroup, and its files.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use mcp_guard_core::id::{CgroupId, Pid};
use rustix::fs::{Access, AtFlags, Mode, OFlags, accessat, fstat, openat};

use crate::host::{
    cgroupfs::{self, Events},
    process::read_at_most,
};

/// Bytes read of one file.
const MAX_FILE: usize = 1 << 19;
/// The same of `cgroup.procs`: eight for each of as many processes as Linux can have (`PID_MAX_LIMIT`).
pub(super) const MAX_PROCS: usize = 8 * 4_194_304;

/// The directory of one cgroup in one hierarchy. Once that cgroup is gone, every read and write fails.
pub struct Dir(OwnedFd);

impl From<OwnedFd> for Dir {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Dir {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Dir {
    /// # Errors
    /// Out of descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// A cgroup right below this one.
    pub(super) fn child(&self, name: &CStr) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self(openat(&self.0, name, flags, Mode::empty())?))
    }

    /// Inode number: in the unified tree, the id that the kernel side uses.
    ///
    /// # Errors
    /// The descriptor cannot be looked at.
    pub fn id(&self) -> io::Result<CgroupId> {
        Ok(CgroupId(fstat(&self.0)?.st_ino))
    }

    /// Whether it has a file of this name.
    #[must_use]
    pub fn has(&self, file: &str) -> bool {
        accessat(&self.0, file, Access::EXISTS, AtFlags::empty()).is_ok()
    }

    /// # Errors
    /// There is no such file, or the cgroup is gone.
    pub fn open(&self, file: &str) -> io::Result<OwnedFd> {
        Ok(openat(&self.0, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// # Errors
    /// There is no such file, or the cgroup is gone.
    pub fn read(&self, file: &str) -> io::Result<String> {
        Ok(String::from_utf8_lossy(&read_at_most(&self.open(file)?, MAX_FILE)?).into_owned())
    }

    /// # Errors
    /// There is no such file, the kernel refuses the value, or the cgroup is gone.
    pub(super) fn write(&self, file: &str, value: &str) -> io::Result<()> {
        let fd = openat(&self.0, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::write(&fd, value.as_bytes())?;
        Ok(())
    }

    /// # Errors
    /// The cgroup is gone.
    pub fn events(&self) -> io::Result<Events> {
        Ok(Events::parse(&self.read("cgroup.events")?))
    }

    /// Processes in this cgroup alone. A list that was cut would end in the first digits of a pid, which
    /// name another process, so one of `limit` bytes is an error.
    pub(super) fn own_processes(&self, limit: usize) -> io::Result<Vec<Pid>> {
        let list = read_at_most(&self.open("cgroup.procs")?, limit)?;
        if list.len() >= limit {
            return Err(io::Error::other(format!("cgroup.procs is larger than {limit} bytes")));
        }
        Ok(cgroupfs::pids(&list))
    }
}
