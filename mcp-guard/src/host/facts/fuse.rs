//! Looks for a process that serves a FUSE file system. While it is frozen, each process that reads there waits, also
//! outside the cgroup.

use std::io;

use mcp_guard_core::id::Pid;
use rustix::{
    fs::{Dir, Mode, OFlags, fstatfs, open, statfs},
    io::Errno,
};

use crate::host::{proc::fdinfo, process::OpenProcess, storage};

/// The number of `/dev/fuse`, see Documentation/admin-guide/devices.txt of the kernel.
const DEVICE: Option<(u32, u32)> = Some((10, 229));
/// Where the kernel lists each FUSE file system of the host, if `fusectl` is mounted there, as systemd does
/// (Documentation/filesystems/fuse/fuse.rst of the kernel).
const CONNECTIONS: &str = "/sys/fs/fuse/connections";
/// FUSE_CTL_SUPER_MAGIC and SYSFS_MAGIC in linux/magic.h and the kernel's fs/fuse/control.c.
const FUSECTL: u32 = 0x6573_5543;
const SYSFS: u32 = 0x6265_6572;
/// Most processes that are looked at. Servers live long, and the oldest processes are listed first.
const MOST: usize = 512;
/// Most descriptors of a process that are looked at, the lowest first: a server opens the device at its start.
const DESCRIPTORS: usize = 256;

/// The processes that may be servers. It is a warning and no rule, so that it may end early.
#[derive(Default)]
pub struct FuseServers {
    /// Not looked at yet, the oldest last.
    left: Option<Vec<Pid>>,
    seen: Vec<Pid>,
    found: Option<Pid>,
}

impl FuseServers {
    /// Takes note of a process.
    pub fn note(&mut self, pid: Pid) {
        if self.seen.len() < MOST {
            self.seen.push(pid);
        }
    }

    /// Looks at the next process. Returns whether there are no more. Only links are read, and the kernel's
    /// own record of the device: to ask a file system could wait for its server.
    pub fn step(&mut self) -> bool {
        let seen = &mut self.seen;
        let left = self.left.get_or_insert_with(|| {
            // To look at all descriptors is most of the work before a freeze.
            let is_none = is_none_served().unwrap_or(false);
            seen.drain(..).rev().filter(|_| !is_none).collect()
        });
        let Some(pid) = left.pop().filter(|_| self.found.is_none()) else { return true };
        self.found = serves(pid).then_some(pid);
        false
    }

    pub fn found(&self) -> Option<Pid> {
        self.found
    }
}

/// Whether the host has no FUSE file system at all.
///
/// # Errors
/// If that is not known.
fn is_none_served() -> io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let listed = match open(CONNECTIONS, flags, Mode::empty()) {
        Ok(listed) => listed,
        // The kernel has no FUSE, or has not loaded it yet.
        Err(Errno::NOENT) => return Ok(storage::number(&statfs("/sys/fs")?) == SYSFS),
        Err(error) => return Err(error.into()),
    };
    if storage::number(&fstatfs(&listed)?) != FUSECTL {
        return Ok(false);
    }
    for entry in Dir::new(listed)? {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

fn serves(pid: Pid) -> bool {
    let Ok(process) = OpenProcess::open(pid) else { return false };
    let open = process.first_descriptors(DESCRIPTORS).into_iter().flatten().flatten();
    // The name alone is anybody's.
    let is_named = |fd: &u32| process.descriptor(*fd).is_ok_and(|link| link == "/dev/fuse");
    open.filter(is_named).any(|fd| {
        // A descriptor of the path alone needs no permission.
        let is_open = process.fdinfo(fd).is_ok_and(|text| !fdinfo::is_path_only(&text));
        is_open && process.device(fd).is_ok_and(|it| it == DEVICE)
    })
}
