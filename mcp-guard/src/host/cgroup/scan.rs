//! Finds the processes in a cgroup by looking at all processes of the host.

use std::{ffi::CString, io, os::fd::AsRawFd as _};

use mcp_guard_core::{escape::cgroup_name, id::Pid};
use rustix::fs::{CWD, Mode, OFlags, fstat, openat, readlink};

use super::{Dir, step::WalkStep};
use crate::host::process::{self, OpenProcess};

/// A walk through the cgroups of the processes in a cgroup and below it, one process after the other. Each
/// pid is met once, so this ends, whatever the processes do.
pub(super) struct ProcessScan {
    /// The first cgroup: its directory, and its path in the tree.
    first: (Dir, Vec<u8>),
    /// Its path as it is shown.
    shown: String,
    /// `/proc`.
    listing: rustix::fs::Dir,
    /// The cgroups below the first one, from that of the present process up to the present one.
    way: Vec<(Dir, String)>,
    present: Option<Pid>,
}

impl ProcessScan {
    /// `shown`: the path of the first cgroup as it is shown.
    pub(super) fn begin(first: &Dir, shown: &str) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            first: (first.try_clone()?, path_in_tree(first)?),
            shown: shown.trim_end_matches('/').to_owned(),
            listing: rustix::fs::Dir::new(openat(CWD, "/proc", flags, Mode::empty())?)?,
            way: Vec::new(),
            present: None,
        })
    }

    /// Returns the present cgroup and its path. `None` if it is the first one.
    pub(super) fn here(&self) -> Option<(&Dir, &str)> {
        self.way.last().map(|(dir, path)| (dir, path.as_str()))
    }

    /// Returns the present process, if the present cgroup is its own.
    pub(super) fn process_here(&self) -> Option<Pid> {
        self.present.filter(|_| self.way.len() <= 1)
    }

    /// Enters the next cgroup on the way to that of a process.
    pub(super) fn step(&mut self) -> io::Result<WalkStep> {
        if self.way.len() > 1 {
            self.way.pop();
            return Ok(WalkStep::Entered);
        }
        self.way.clear();
        self.present = None;
        let Some(entry) = self.listing.read() else { return Ok(WalkStep::Over) };
        let pid = entry?.file_name().to_str().ok().and_then(|name| name.parse().ok());
        if let Some(pid) = pid.map(Pid) {
            match self.find(pid) {
                Err(error) if process::is_gone(&error) => {}
                // Its cgroup is nested too deep to be named.
                Err(error) if error.raw_os_error() == Some(libc::ENAMETOOLONG) => {}
                found => found?,
            }
        }
        Ok(if self.present.is_some() { WalkStep::Entered } else { WalkStep::Passed })
    }

    fn find(&mut self, pid: Pid) -> io::Result<()> {
        let membership = OpenProcess::open(pid)?.membership()?;
        let path = membership.unified().unwrap_or_default();
        if let Some(below @ ([] | [b'/', ..])) = path.strip_prefix(&*self.first.1) {
            self.way = self.way_to(below)?;
            self.present = Some(pid);
        }
        Ok(())
    }

    /// Opens the cgroups on the way to one below the first, as far as they are there: the process may have
    /// moved, and a path that is too long is cut.
    fn way_to(&self, below: &[u8]) -> io::Result<Vec<(Dir, String)>> {
        let mut way: Vec<(Dir, String)> = Vec::new();
        for name in below.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            let (above, shown) = match way.last() {
                Some((dir, shown)) => (dir, shown),
                None => (&self.first.0, &self.shown),
            };
            let shown = format!("{shown}/{}", cgroup_name(name));
            match above.child(&CString::new(name)?) {
                Ok(dir) => way.push((dir, shown)),
                Err(error) if process::is_gone(&error) => break,
                Err(error) => return Err(error),
            }
        }
        way.reverse();
        Ok(way)
    }
}

/// Returns the path of a cgroup as `/proc/PID/cgroup` shows it; that of the root is empty.
fn path_in_tree(dir: &Dir) -> io::Result<Vec<u8>> {
    let device = fstat(dir)?.st_dev;
    let mut root = dir.try_clone()?;
    loop {
        let above = root.above()?;
        let is_outside = fstat(&above)?.st_dev != device || above.id()? == root.id()?;
        if is_outside {
            break;
        }
        root = above;
    }
    let mounted = |dir: &Dir| readlink(format!("/proc/self/fd/{}", dir.as_raw_fd()), Vec::new());
    let (path, mount) = (mounted(dir)?.into_bytes(), mounted(&root)?.into_bytes());
    let below = path.strip_prefix(&*mount).ok_or(io::ErrorKind::NotFound)?;
    Ok(below.to_vec())
}
