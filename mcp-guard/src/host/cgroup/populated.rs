//! Walks through the cgroups that have processes.

use std::{
    ffi::{CStr, CString},
    io,
};

use mcp_guard_core::{escape::cgroup_name, id::Pid};
use rustix::fs::FileType;

use super::{Dir, dir::MAX_PROCS, scan::ProcessScan, step::WalkStep};

/// Most bytes of a path below the first cgroup, however long it is when it is escaped.
const PATH_MAX: usize = libc::PATH_MAX.cast_unsigned() as usize;
/// Most cgroups and processes that a walk meets from cgroup to cgroup: twice as many cgroups as all guards
/// have room for.
const MOST_MET: usize = 2 * super::walk::MAX_DESCENDANTS;

/// A walk through a cgroup, and through those below it that are populated: they, or a cgroup below them,
/// have a process. A cgroup without processes costs a few system calls and no memory, so that nobody can
/// hide a process behind thousands of them.
///
/// It goes from cgroup to cgroup. Somebody inside can make cgroups in front of it, and move processes into
/// them, without end. So a walk that does not come to its end begins again, and goes from process to process:
/// there is an end of them.
///
/// Each cgroup is entered before its children are listed. One whose path is longer than any program can
/// open is not entered: it would cost descriptors for each level of a tree as deep as a container likes.
pub struct PopulatedWalk {
    /// The cgroups from the first one to the present one.
    way: Vec<PopulatedLevel>,
    too_deep: usize,
    /// Number of cgroups and processes that it met.
    met: usize,
    /// `None` while it goes from cgroup to cgroup.
    scan: Option<ProcessScan>,
}

impl PopulatedWalk {
    /// Begins in a cgroup, which is the first [`PopulatedWalk::here`].
    ///
    /// # Errors
    /// If the process has no descriptors left.
    pub fn begin(dir: &Dir, path: &str) -> io::Result<Self> {
        let first = PopulatedLevel::new(dir.try_clone()?, path.to_owned(), 0);
        Ok(Self { way: vec![first], too_deep: 0, met: 0, scan: None })
    }

    /// Returns the present cgroup and its path. `None` if the walk is over.
    #[must_use]
    pub fn here(&self) -> Option<(&Dir, &str)> {
        let last = self.way.last().map(|level| (&level.dir, level.path.as_str()));
        self.scan.as_ref().and_then(ProcessScan::here).or(last)
    }

    /// Returns the first cgroup and its path. `None` if the walk is over.
    #[must_use]
    pub fn first(&self) -> Option<(&Dir, &str)> {
        self.way.first().map(|level| (&level.dir, level.path.as_str()))
    }

    /// Number of populated cgroups that were not entered, because they are nested too deep.
    #[must_use]
    pub fn too_deep(&self) -> usize {
        self.too_deep + self.scan.as_ref().map_or(0, ProcessScan::too_deep)
    }

    /// # Errors
    /// If the first cgroup is gone, or if a cgroup cannot be opened or listed. Others that disappear
    /// are passed.
    pub fn step(&mut self) -> io::Result<WalkStep> {
        if self.met > MOST_MET && self.scan.is_none() {
            return self.begin_again();
        }
        if let Some(scan) = &mut self.scan {
            let step = scan.step()?;
            if step == WalkStep::Over {
                self.way.clear();
            }
            return Ok(step);
        }
        self.met += 1;
        let is_first = self.way.len() == 1;
        let Some(level) = self.way.last_mut() else { return Ok(WalkStep::Over) };
        let name = match level.next_child() {
            Ok(Some(name)) => name,
            Err(error) if !is_gone(&error) || is_first => return Err(error),
            Ok(None) | Err(_) => {
                self.way.pop();
                return Ok(WalkStep::Passed);
            }
        };
        match level.enter(&name) {
            Ok(Some(below)) if below.length > PATH_MAX => self.too_deep += 1,
            Ok(Some(below)) => {
                self.way.push(below);
                return Ok(WalkStep::Entered);
            }
            Ok(None) => {}
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(WalkStep::Passed)
    }

    fn begin_again(&mut self) -> io::Result<WalkStep> {
        self.way.truncate(1);
        self.too_deep = 0;
        let Some(first) = self.way.first() else { return Ok(WalkStep::Over) };
        self.scan = Some(ProcessScan::begin(&first.dir, &first.path)?);
        Ok(WalkStep::Again)
    }

    /// Returns the processes of the present cgroup alone; none if it is gone. A walk from process to process
    /// returns one at a time.
    ///
    /// # Errors
    /// If the first cgroup is gone, or if a list cannot be read to the end.
    pub fn processes_here(&mut self) -> io::Result<Vec<Pid>> {
        if let Some(scan) = &self.scan {
            return Ok(scan.process_here().into_iter().collect());
        }
        let Some(level) = self.way.last() else { return Ok(Vec::new()) };
        let is_first = self.way.len() == 1;
        match level.dir.own_processes(MAX_PROCS) {
            // The kernel does not list the processes of a threaded cgroup. If one is below the first
            // cgroup, the domain above it lists them, so only the first cgroup must answer.
            Err(error) if !is_first && (is_gone(&error) || is_threaded(&error)) => Ok(Vec::new()),
            read => {
                let processes = read?;
                self.met += processes.len();
                Ok(processes)
            }
        }
    }
}

/// The processes in a cgroup and below it.
#[derive(Default)]
pub struct Members {
    /// Without those of another pid namespace.
    pub processes: Vec<Pid>,
    /// See [`PopulatedWalk::too_deep`].
    pub too_deep: usize,
}

impl Dir {
    /// Lists the processes in this cgroup and below it. `go_on` is asked after each step, with the number
    /// of processes so far. `None` if it says no.
    ///
    /// # Errors
    /// If the cgroup is gone, or if a list cannot be read to the end.
    pub fn members(&self, mut go_on: impl FnMut(usize) -> bool) -> io::Result<Option<Members>> {
        let mut walk = PopulatedWalk::begin(self, "")?;
        let mut processes = walk.processes_here()?;
        loop {
            if !go_on(processes.len()) {
                return Ok(None);
            }
            match walk.step()? {
                WalkStep::Entered => processes.extend(walk.processes_here()?),
                WalkStep::Again => processes.clear(),
                WalkStep::Passed => {}
                WalkStep::Over => break,
            }
        }
        processes.retain(|pid| *pid != Pid(0));
        Ok(Some(Members { processes, too_deep: walk.too_deep() }))
    }
}

/// A cgroup of a walk, and what is left of its list of children.
struct PopulatedLevel {
    dir: Dir,
    path: String,
    /// Bytes of the path below the first cgroup, which are fewer than those of `path` if that is escaped.
    length: usize,
    /// `None` if it is not listed yet.
    children: Option<rustix::fs::Dir>,
}

impl PopulatedLevel {
    fn new(dir: Dir, path: String, length: usize) -> Self {
        Self { dir, path, length, children: None }
    }

    /// Returns the name of the next child.
    fn next_child(&mut self) -> io::Result<Option<CString>> {
        let children = match &mut self.children {
            Some(children) => children,
            None => self.children.insert(rustix::fs::Dir::read_from(&self.dir)?),
        };
        while let Some(entry) = children.read() {
            let entry = entry?;
            let name = entry.file_name();
            let is_parent = matches!(name.to_bytes(), b"." | b"..");
            if entry.file_type() == FileType::Directory && !is_parent {
                return Ok(Some(name.to_owned()));
            }
        }
        Ok(None)
    }

    /// Opens a child if it is populated.
    fn enter(&self, name: &CStr) -> io::Result<Option<Self>> {
        if !self.dir.is_populated_below(name)? {
            return Ok(None);
        }
        let dir = self.dir.child(name)?;
        let path = format!("{}/{}", self.path.trim_end_matches('/'), cgroup_name(name.to_bytes()));
        let length = self.length + 1 + name.to_bytes().len();
        Ok(Some(Self::new(dir, path, length)))
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

fn is_threaded(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EOPNOTSUPP)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::fd::{AsRawFd as _, OwnedFd},
        path::Path,
    };

    use super::*;

    fn open(folder: &Path) -> Dir {
        Dir::from(OwnedFd::from(fs::File::open(folder).unwrap()))
    }

    fn make(folder: &Path, populated: bool) {
        fs::create_dir_all(folder).unwrap();
        let events = format!("populated {}\nfrozen 0\n", u8::from(populated));
        fs::write(folder.join("cgroup.events"), events).unwrap();
    }

    fn walked(folder: &Path) -> Vec<String> {
        let mut walk = PopulatedWalk::begin(&open(folder), "/").unwrap();
        let mut seen = vec!["/".to_owned()];
        loop {
            match walk.step().unwrap() {
                WalkStep::Entered => seen.push(walk.here().unwrap().1.to_owned()),
                WalkStep::Passed | WalkStep::Again => {}
                WalkStep::Over => break,
            }
        }
        seen.sort();
        seen
    }

    #[test]
    fn only_populated_cgroups_are_entered() {
        let folder = tempfile::tempdir().unwrap();
        for (path, populated) in
            [("a", true), ("a/b", true), ("a/c", false), ("d", false), ("d/e", true)]
        {
            make(&folder.path().join(path), populated);
        }
        fs::create_dir(folder.path().join("removed-meanwhile")).unwrap();
        assert_eq!(walked(folder.path()), ["/", "/a", "/a/b"], "d has no process, so e has none");
    }

    #[test]
    fn thousands_of_empty_cgroups_hide_no_other_cgroup() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..20_000 {
            fs::create_dir(folder.path().join(number.to_string())).unwrap();
        }
        make(&folder.path().join("last"), true);
        assert_eq!(walked(folder.path()), ["/", "/last"]);
    }

    #[test]
    fn members_are_those_of_all_populated_cgroups_that_are_not_too_deep() {
        let folder = tempfile::tempdir().unwrap();
        let list = |dir: &Dir, pids: &str| {
            let here = format!("/proc/self/fd/{}", dir.as_raw_fd());
            fs::write(format!("{here}/cgroup.events"), "populated 1\n").unwrap();
            fs::write(format!("{here}/cgroup.procs"), pids).unwrap();
        };
        let top = open(folder.path());
        list(&top, "7\n0\n");
        // Escaped, it is four times as long.
        let name = CString::new([0xff; 255]).unwrap();
        let mut dir = top.try_clone().unwrap();
        for pid in 100..120 {
            rustix::fs::mkdirat(&dir, &*name, 0o755.into()).unwrap();
            dir = dir.child(&name).unwrap();
            list(&dir, &format!("{pid}\n"));
        }
        let members = top.members(|_| true).unwrap().unwrap();
        let expected: Vec<_> = [7].into_iter().chain(100..116).map(Pid).collect();
        assert_eq!((members.processes, members.too_deep), (expected, 1), "16 * 256 bytes fit");
        assert!(top.members(|found| found < 10).unwrap().is_none());
    }
}
