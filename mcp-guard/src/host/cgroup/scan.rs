//! Finds the processes in a cgroup by looking at all processes of the host.

use std::{
    collections::HashSet,
    ffi::{CString, OsStr},
    hash::{BuildHasher as _, Hasher as _, RandomState},
    io,
    os::{fd::AsRawFd as _, unix::ffi::OsStrExt as _},
    path::Path,
};

use mcp_guard_core::{
    escape::cgroup_name,
    id::{Pid, Ticks},
    registry::ticks,
};
use rustix::fs::{CWD, Mode, OFlags, fstat, openat, readlink};

use super::{Dir, step::WalkStep};
use crate::host::{
    clock,
    process::{self, OpenProcess},
};

/// A walk through the cgroups of the processes in a cgroup and below it, one process after the other. Only
/// processes that were there when it began are met, each once, and each cgroup on their way is entered once
/// before their own. So this ends, whatever the processes do meanwhile.
pub(super) struct ProcessScan {
    /// The first cgroup: its directory, and its path in the tree.
    first: (Dir, Vec<u8>),
    /// Its path as it is shown.
    shown: String,
    /// `/proc`.
    listing: rustix::fs::Dir,
    /// A process that started later is like one that starts after the walk.
    began: Ticks,
    /// Hashes of the paths below the first cgroup that were entered. The hasher's keys are random.
    entered: HashSet<u64>,
    hasher: RandomState,
    /// Number of processes whose cgroup is nested too deep to be named.
    too_deep: usize,
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
            began: ticks(clock::now()),
            entered: HashSet::new(),
            hasher: RandomState::new(),
            too_deep: 0,
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

    /// Number of processes of the host, perhaps in the first cgroup, whose cgroup the kernel does not name.
    pub(super) fn too_deep(&self) -> usize {
        self.too_deep
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
                Err(error) if error.raw_os_error() == Some(libc::ENAMETOOLONG) => {
                    self.too_deep += 1;
                }
                found => found?,
            }
        }
        Ok(if self.present.is_some() { WalkStep::Entered } else { WalkStep::Passed })
    }

    fn find(&mut self, pid: Pid) -> io::Result<()> {
        let process = OpenProcess::open(pid)?;
        if process.start_ticks()? > self.began {
            return Ok(());
        }
        let membership = process.membership()?;
        let path = membership.unified().unwrap_or_default();
        if let Some(below @ ([] | [b'/', ..])) = path.strip_prefix(&*self.first.1) {
            self.way = self.way_to(below)?;
            self.present = Some(pid);
        }
        Ok(())
    }

    /// Opens the cgroups on the way to one below the first that were not entered yet, and that one, as far as
    /// they are there: the process may have moved, and a path that is too long is cut.
    fn way_to(&mut self, below: &[u8]) -> io::Result<Vec<(Dir, String)>> {
        let names: Vec<&[u8]> =
            below.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).collect();
        let mut hasher = self.hasher.build_hasher();
        let hashes = names.iter().map(|name| {
            hasher.write(name);
            hasher.write_u8(b'/');
            hasher.finish()
        });
        let hashes: Vec<u64> = hashes.collect();
        let known = hashes.iter().take_while(|hash| self.entered.contains(hash)).count();
        // The process is looked at in its own cgroup, even if that was entered for another one.
        let from = known.min(names.len().saturating_sub(1));
        let mut shown = self.shown.clone();
        for name in &names[..from] {
            shown = shown + "/" + &cgroup_name(name);
        }
        let mut above =
            match self.first.0.below(Path::new(OsStr::from_bytes(&names[..from].join(&b'/')))) {
                Err(error) if process::is_gone(&error) => return Ok(Vec::new()),
                opened => opened?,
            };
        let mut way: Vec<(Dir, String)> = Vec::new();
        for (name, hash) in names.iter().zip(&hashes).skip(from) {
            let dir = match above.child(&CString::new(*name)?) {
                Err(error) if process::is_gone(&error) => break,
                opened => opened?,
            };
            shown = shown + "/" + &cgroup_name(name);
            above = dir.try_clone()?;
            self.entered.insert(*hash);
            way.push((dir, shown.clone()));
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
