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
    id::{Pid, Ticks},
    registry::ticks,
};
use rustix::fs::{CWD, Mode, OFlags, fstat, openat, readlink};

use super::{Dir, place::push_name, step::WalkStep};
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
    present: Option<Pid>,
    /// The present cgroup and its path, unless it is the first one.
    here: Option<(Dir, String)>,
    way: Way,
}

/// The way to the cgroup of a process, by its path below the first cgroup. The cgroups on it are not held
/// open: a tree is as deep as a container likes.
#[derive(Default)]
struct Way {
    path: Vec<u8>,
    /// The lengths of the paths that are still to be entered, the shortest one last.
    ahead: Vec<usize>,
}

impl ProcessScan {
    /// `shown`: the path of the first cgroup as it is shown.
    pub(super) fn begin(first: &Dir, shown: &str) -> io::Result<Self> {
        Self::at((first.try_clone()?, path_in_tree(first)?), shown)
    }

    /// `first`: the first cgroup, and its path in the tree.
    fn at(first: (Dir, Vec<u8>), shown: &str) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            first,
            shown: shown.trim_end_matches('/').to_owned(),
            listing: rustix::fs::Dir::new(openat(CWD, "/proc", flags, Mode::empty())?)?,
            began: ticks(clock::now()),
            entered: HashSet::new(),
            hasher: RandomState::new(),
            too_deep: 0,
            present: None,
            here: None,
            way: Way::default(),
        })
    }

    /// Returns the present cgroup and its path. `None` if it is the first one.
    pub(super) fn here(&self) -> Option<(&Dir, &str)> {
        self.here.as_ref().map(|(dir, path)| (dir, path.as_str()))
    }

    /// Returns the present process, if the present cgroup is its own.
    pub(super) fn process_here(&self) -> Option<Pid> {
        self.present.filter(|_| self.way.ahead.is_empty())
    }

    /// Number of processes of the host, perhaps in the first cgroup, whose cgroup the kernel does not name.
    pub(super) fn too_deep(&self) -> usize {
        self.too_deep
    }

    /// Enters the next cgroup on the way to that of a process.
    pub(super) fn step(&mut self) -> io::Result<WalkStep> {
        if let Some(length) = self.way.ahead.pop() {
            return self.enter(length);
        }
        self.here = None;
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
        let Some(length) = self.way.ahead.pop() else {
            return Ok(if self.present.is_some() { WalkStep::Entered } else { WalkStep::Passed });
        };
        self.enter(length)
    }

    /// Enters the cgroup at the first `length` bytes of the way.
    fn enter(&mut self, length: usize) -> io::Result<WalkStep> {
        let below = &self.way.path[..length];
        match open(&self.first.0, below) {
            Ok(dir) => {
                let names = below.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
                let mut shown = self.shown.clone();
                names.for_each(|name| push_name(&mut shown, name));
                self.here = Some((dir, shown));
                Ok(WalkStep::Entered)
            }
            // It was there a moment ago. Its process may have moved, and is looked at where the walk is.
            Err(error) if process::is_gone(&error) => Ok(WalkStep::Entered),
            Err(error) => Err(error),
        }
    }

    fn find(&mut self, pid: Pid) -> io::Result<()> {
        let process = OpenProcess::open(pid)?;
        let membership = process.membership()?;
        let path = membership.unified().unwrap_or_default();
        // The start is read last: that can hang, and a process elsewhere must not hold up this walk.
        if let Some(below @ ([] | [b'/', ..])) = path.strip_prefix(&*self.first.1)
            && process.start_ticks()? <= self.began
        {
            self.way = self.way_to(below)?;
            self.present = Some(pid);
        }
        Ok(())
    }

    /// Finds the cgroups on the way to one below the first that were not entered yet, and that one, as far as
    /// they are there: the process may have moved, and a path that is too long is cut.
    fn way_to(&mut self, below: &[u8]) -> io::Result<Way> {
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
        let mut way = Way { path: names[..from].join(&b'/'), ahead: Vec::new() };
        let mut above = match open(&self.first.0, &way.path) {
            Err(error) if process::is_gone(&error) => return Ok(Way::default()),
            opened => opened?,
        };
        for (name, hash) in names.iter().zip(&hashes).skip(from) {
            above = match above.child(&CString::new(*name)?) {
                Err(error) if process::is_gone(&error) => break,
                opened => opened?,
            };
            self.entered.insert(*hash);
            way.path.push(b'/');
            way.path.extend_from_slice(name);
            way.ahead.push(way.path.len());
        }
        way.ahead.reverse();
        Ok(way)
    }
}

/// Opens the cgroup at a path below the first one.
fn open(first: &Dir, below: &[u8]) -> io::Result<Dir> {
    first.below(Path::new(OsStr::from_bytes(below)))
}

/// Returns the path of a cgroup as `/proc/PID/cgroup` shows it; that of the root is empty.
///
/// # Errors
/// If it is gone, or the process has no descriptors left.
pub fn path_in_tree(dir: &Dir) -> io::Result<Vec<u8>> {
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

#[cfg(test)]
mod tests {
    use std::{fs, os::fd::OwnedFd};

    use super::*;
    use crate::host::cgroup::place::tests::held_open;

    /// A scan of a folder, in whose place the root of the tree would be.
    fn scan(folder: &Path) -> ProcessScan {
        let first = Dir::from(OwnedFd::from(fs::File::open(folder).unwrap()));
        ProcessScan::at((first, Vec::new()), "/top").unwrap()
    }

    #[test]
    fn a_process_that_started_after_the_scan_is_not_met() {
        let folder = tempfile::tempdir().unwrap();
        let mut scan = scan(folder.path());
        let this = process::this();
        let start = OpenProcess::open(this).unwrap().start_ticks().unwrap();
        scan.began = Ticks(start.0 - 1);
        scan.find(this).unwrap();
        assert_eq!(scan.present, None);
        scan.began = start;
        scan.find(this).unwrap();
        assert_eq!(scan.present, Some(this));
    }

    #[test]
    fn each_cgroup_is_entered_once_before_that_of_a_process() {
        let folder = tempfile::tempdir().unwrap();
        for path in ["a/b/c", "a/d"] {
            fs::create_dir_all(folder.path().join(path)).unwrap();
        }
        let mut scan = scan(folder.path());
        let mut entered = |below: &str| {
            scan.way = scan.way_to(below.as_bytes()).unwrap();
            let mut paths = Vec::new();
            while let Some(length) = scan.way.ahead.pop() {
                assert_eq!(scan.enter(length).unwrap(), WalkStep::Entered);
                paths.push(scan.here().unwrap().1.to_owned());
                assert!(held_open(folder.path()) <= 2, "one for each level");
            }
            paths
        };
        assert_eq!(entered("/a/b/c"), ["/top/a", "/top/a/b", "/top/a/b/c"]);
        assert_eq!(entered("/a/b/c"), ["/top/a/b/c"], "for another process");
        assert_eq!(entered("/a/b"), ["/top/a/b"]);
        assert_eq!(entered("/a/d"), ["/top/a/d"]);
        assert_eq!(entered("/a/d/gone/e"), [""; 0], "the process is looked at where the scan is");
        assert_eq!(entered(""), [""; 0], "it is in the first cgroup");
    }
}
