//! An open directory of a cgroup, and its files.

use std::{
    ffi::{CStr, OsStr},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use mcp_guard_core::id::{CgroupId, Pid};
use rustix::{
    fs::{
        Access, AtFlags, Mode, OFlags, ResolveFlags, accessat, fgetxattr, fstat, openat, openat2,
    },
    io::Errno,
};

use crate::host::{
    cgroupfs::{self, Events},
    process::read_at_most,
};

/// Most bytes read of one file.
const MAX_FILE: usize = 1 << 19;
/// Most bytes read of `cgroup.procs`: eight for each process that Linux can have (`PID_MAX_LIMIT`).
pub const MAX_PROCS: usize = 8 * 4_194_304;

/// The directory of one cgroup in one hierarchy. Once that cgroup is gone, every read and write
/// fails.
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
    /// If the process has no descriptors left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// Opens a cgroup directly below this one.
    pub(super) fn child(&self, name: &CStr) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self(openat(&self.0, name, flags, Mode::empty())?))
    }

    /// Opens the cgroup above this one.
    pub(super) fn above(&self) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(openat(&self.0, "..", flags, Mode::empty())?))
    }

    /// Opens a cgroup at or below this one, without following links or leaving the tree.
    ///
    /// # Errors
    /// If there is none.
    pub(super) fn below(&self, path: &Path) -> io::Result<Self> {
        let inside = path.strip_prefix("/").unwrap_or(path);
        if inside.as_os_str().is_empty() {
            return self.try_clone();
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH
            | ResolveFlags::NO_SYMLINKS
            | ResolveFlags::NO_MAGICLINKS
            | ResolveFlags::NO_XDEV;
        Ok(Self(openat2(&self.0, inside, flags, Mode::empty(), resolve)?))
    }

    /// Opens another cgroup of the same tree. `own`: the path of this one.
    ///
    /// # Errors
    /// If there is none.
    pub fn elsewhere(&self, own: &str, path: &[u8]) -> io::Result<Self> {
        let mut root = self.try_clone()?;
        for _ in own.split('/').filter(|name| !name.is_empty()) {
            root = root.above()?;
        }
        root.below(Path::new(OsStr::from_bytes(path)))
    }

    /// Returns the owner of the cgroup that is this many levels above.
    ///
    /// # Errors
    /// If one of them cannot be opened.
    pub fn owner_above(&self, levels: usize) -> io::Result<u32> {
        let mut dir = self.try_clone()?;
        for _ in 0..levels {
            dir = dir.above()?;
        }
        dir.owner()
    }

    /// Returns the inode number, which in the unified tree is the id that the kernel side uses.
    ///
    /// # Errors
    /// If fstat(2) fails.
    pub fn id(&self) -> io::Result<CgroupId> {
        Ok(CgroupId(fstat(&self.0)?.st_ino))
    }

    /// Returns the uid of its owner: root, or a user to whom it was delegated.
    ///
    /// # Errors
    /// If fstat(2) fails.
    pub fn owner(&self) -> io::Result<u32> {
        Ok(fstat(&self.0)?.st_uid)
    }

    /// Whether it carries an extended attribute.
    ///
    /// # Errors
    /// If that cannot be read.
    pub fn carries(&self, attribute: &str) -> io::Result<bool> {
        match fgetxattr(&self.0, attribute, &mut [0; 256]) {
            Ok(_) | Err(Errno::RANGE) => Ok(true),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the cgroup `name` directly below this one has a process in it or below it.
    pub(super) fn is_populated_below(&self, name: &CStr) -> io::Result<bool> {
        let file = [name.to_bytes(), b"/cgroup.events"].concat();
        let fd = openat(&self.0, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        // Two short lines. A walk reads thousands of them.
        let mut events = [0; 64];
        let read = rustix::io::read(&fd, &mut events)?;
        Ok(Events::parse(&String::from_utf8_lossy(&events[..read])).populated)
    }

    /// Whether it has a file of this name.
    #[must_use]
    pub fn has(&self, file: &str) -> bool {
        accessat(&self.0, file, Access::EXISTS, AtFlags::empty()).is_ok()
    }

    /// # Errors
    /// If there is no such file, or the cgroup is gone.
    pub fn open(&self, file: &str) -> io::Result<OwnedFd> {
        Ok(openat(&self.0, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// # Errors
    /// If there is no such file, or the cgroup is gone.
    pub fn read(&self, file: &str) -> io::Result<String> {
        Ok(String::from_utf8_lossy(&read_at_most(&self.open(file)?, MAX_FILE)?).into_owned())
    }

    /// Reads a file that holds one word. One read returns all of it, unlike that of a longer file.
    ///
    /// # Errors
    /// If there is no such file, or the cgroup is gone.
    pub(super) fn read_word(&self, file: &str) -> io::Result<String> {
        let mut bytes = [0; 64];
        let length = rustix::io::read(&self.open(file)?, &mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes[..length]).trim().to_owned())
    }

    /// # Errors
    /// If there is no such file, or the cgroup is gone.
    pub(super) fn open_to_write(&self, file: &str) -> io::Result<OwnedFd> {
        Ok(openat(&self.0, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// # Errors
    /// If there is no such file, the kernel refuses the value, or the cgroup is gone.
    pub(super) fn write(&self, file: &str, value: &str) -> io::Result<()> {
        rustix::io::write(self.open_to_write(file)?, value.as_bytes())?;
        Ok(())
    }

    /// # Errors
    /// If the cgroup is gone.
    pub fn events(&self) -> io::Result<Events> {
        Ok(Events::parse(&self.read("cgroup.events")?))
    }

    /// Returns the processes in this cgroup alone.
    ///
    /// # Errors
    /// If the cgroup is threaded or gone, or if its list is too long.
    pub fn own_processes(&self, limit: usize) -> io::Result<Vec<Pid>> {
        self.listed("cgroup.procs", limit)
    }

    /// Returns the first processes in this cgroup alone: about a hundred.
    pub(super) fn first_processes(&self) -> io::Result<Vec<Pid>> {
        let mut list = read_at_most(&self.open("cgroup.procs")?, 1024)?;
        // The last id may be cut.
        let whole = list.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        list.truncate(whole);
        Ok(cgroupfs::pids(&list))
    }

    /// Reads a list of ids. A list of `limit` bytes is an error: a truncated list could end in the
    /// first digits of an id, which name another process.
    pub(super) fn listed(&self, file: &str, limit: usize) -> io::Result<Vec<Pid>> {
        let list = read_at_most(&self.open(file)?, limit)?;
        if list.len() >= limit {
            return Err(io::Error::other(format!("{file} is larger than {limit} bytes")));
        }
        Ok(cgroupfs::pids(&list))
    }
}
