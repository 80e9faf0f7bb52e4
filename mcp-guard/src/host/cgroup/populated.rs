//! Walks through the cgroups that have processes.

use std::{ffi::CString, io, sync::Arc};

use mcp_guard_core::id::Pid;
use rustix::fs::FileType;

use super::{
    Dir,
    dir::MAX_PROCS,
    place::{PlaceBelow, push_name},
    scan::ProcessScan,
    step::WalkStep,
};

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
/// Each cgroup is entered before its children are listed. Only the present one is open, however deep the
/// tree is, and one whose path is longer than any program can open is not entered.
pub struct PopulatedWalk {
    /// The first cgroup and its path.
    first: (Dir, String),
    /// `None` if the walk is over.
    present: Option<Present>,
    /// Populated cgroups that were not entered yet, the next one last.
    pending: Vec<Arc<PlaceBelow>>,
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
        let first = (dir.try_clone()?, path.to_owned());
        let present = Some(Present::new(dir.try_clone()?, path.to_owned(), None));
        Ok(Self { first, present, pending: Vec::new(), too_deep: 0, met: 0, scan: None })
    }

    /// Returns the present cgroup and its path. `None` if the walk is over.
    #[must_use]
    pub fn here(&self) -> Option<(&Dir, &str)> {
        let present = self.present.as_ref().map(|present| (&present.dir, present.path.as_str()));
        self.scan.as_ref().and_then(ProcessScan::here).or(present)
    }

    /// Returns the first cgroup and its path.
    #[must_use]
    pub fn first(&self) -> (&Dir, &str) {
        (&self.first.0, &self.first.1)
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
                self.present = None;
            }
            return Ok(step);
        }
        self.met += 1;
        let Some(present) = &mut self.present else { return Ok(WalkStep::Over) };
        let name = match present.next_child() {
            Err(error) if is_gone(&error) && !present.is_first() => None,
            listed => listed?,
        };
        let Some(name) = name else { return self.enter_next() };
        match present.dir.is_populated_below(&name) {
            Ok(true) => match PlaceBelow::below(present.place.as_ref(), &name) {
                Some(child) => self.pending.push(child),
                None => self.too_deep += 1,
            },
            Ok(false) => {}
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(WalkStep::Passed)
    }

    fn enter_next(&mut self) -> io::Result<WalkStep> {
        let Some(next) = self.pending.pop() else {
            self.present = None;
            return Ok(WalkStep::Over);
        };
        let dir = match next.open(&self.first.0) {
            Err(error) if is_gone(&error) => return Ok(WalkStep::Passed),
            opened => opened?,
        };
        let path = next.shown(&self.first.1, push_name);
        self.present = Some(Present::new(dir, path, Some(next)));
        Ok(WalkStep::Entered)
    }

    fn begin_again(&mut self) -> io::Result<WalkStep> {
        let (dir, path) = &self.first;
        self.scan = Some(ProcessScan::begin(dir, path)?);
        self.present = Some(Present::new(dir.try_clone()?, path.clone(), None));
        self.pending = Vec::new();
        self.too_deep = 0;
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
        let Some(present) = &self.present else { return Ok(Vec::new()) };
        match present.dir.own_processes(MAX_PROCS) {
            // The kernel does not list the processes of a threaded cgroup. If one is below the first
            // cgroup, the domain above it lists them, so only the first cgroup must answer.
            Err(error) if !present.is_first() && (is_gone(&error) || is_threaded(&error)) => {
                Ok(Vec::new())
            }
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

/// The cgroup that a walk is in, and what is left of its list of children.
struct Present {
    dir: Dir,
    path: String,
    /// `None`: the first one.
    place: Option<Arc<PlaceBelow>>,
    children: Children,
}

enum Children {
    NotListed,
    Listed(rustix::fs::Dir),
    Over,
}

impl Present {
    fn new(dir: Dir, path: String, place: Option<Arc<PlaceBelow>>) -> Self {
        Self { dir, path, place, children: Children::NotListed }
    }

    fn is_first(&self) -> bool {
        self.place.is_none()
    }

    /// Returns the name of the next child.
    fn next_child(&mut self) -> io::Result<Option<CString>> {
        if matches!(self.children, Children::NotListed) {
            self.children = Children::Listed(rustix::fs::Dir::read_from(&self.dir)?);
        }
        let Children::Listed(children) = &mut self.children else { return Ok(None) };
        while let Some(entry) = children.read() {
            let entry = entry?;
            let name = entry.file_name();
            let is_parent = matches!(name.to_bytes(), b"." | b"..");
            if entry.file_type() == FileType::Directory && !is_parent {
                return Ok(Some(name.to_owned()));
            }
        }
        self.children = Children::Over;
        Ok(None)
    }
}

pub(super) fn is_gone(error: &io::Error) -> bool {
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
    use crate::host::cgroup::place::tests::held_open;

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
        drop(dir);
        let go_on = |_| {
            let held = held_open(folder.path());
            assert!(held <= 4, "{held} descriptors: one for each level");
            true
        };
        let members = top.members(go_on).unwrap().unwrap();
        let expected: Vec<_> = [7].into_iter().chain(100..116).map(Pid).collect();
        assert_eq!((members.processes, members.too_deep), (expected, 1), "16 * 256 bytes fit");
        assert!(top.members(|found| found < 10).unwrap().is_none());
    }
}
