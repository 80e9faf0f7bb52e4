//! Walks through a cgroup and those below it.

use std::{ffi::CString, io};

use mcp_guard_core::{escape::cgroup_path_below, id::Pid};
use rustix::fs::FileType;

use super::dir::{Dir, MAX_PROCS};

/// Most cgroups visited below one cgroup, the size of the kernel side's membership map.
pub(super) const MAX_DESCENDANTS: usize = mcp_guard_common::MAX_CGROUPS as usize;

/// The function that a walk calls for each cgroup.
pub(super) type Visit<'a> = &'a mut dyn FnMut(&Dir, &str) -> io::Result<()>;

impl Dir {
    /// Returns the processes in this cgroup of a version 1 tree and below it, which shows nowhere which
    /// cgroups are populated. 0, a process of another pid namespace, is left out.
    ///
    /// # Errors
    /// If the cgroup is gone, or its list cannot be read to the end.
    pub(super) fn processes(&self) -> io::Result<Vec<Pid>> {
        let mut pids = self.own_processes(MAX_PROCS)?;
        let mut is_below = false;
        let visit: Visit<'_> = &mut |dir, _| {
            if !std::mem::replace(&mut is_below, true) {
                return Ok(());
            }
            pids.extend(dir.own_processes(MAX_PROCS)?);
            Ok(())
        };
        self.descend("", usize::MAX, visit, &mut Err)?;
        pids.retain(|pid| *pid != Pid(0));
        Ok(pids)
    }

    /// Visits this cgroup, then at most `MAX_DESCENDANTS` below it. `path` is the path of this
    /// cgroup.
    ///
    /// Each cgroup is visited before its children are listed. A child that is created meanwhile is
    /// either visited too, or was created below a visited parent.
    ///
    /// # Errors
    /// If this cgroup is gone, or if a cgroup cannot be opened, listed or visited. Descendants that
    /// disappear are skipped.
    pub fn walk(&self, path: &str, visit: Visit<'_>) -> io::Result<()> {
        self.descend(path, MAX_DESCENDANTS, visit, &mut Err)
    }

    /// Like [`Dir::walk`], without a limit: a process that owns a subtree can create thousands of
    /// cgroups, and must not hide others that way. Cgroups that cannot be opened, listed or visited
    /// are skipped too.
    ///
    /// # Errors
    /// If this cgroup is gone. If others failed, returns the first failure after all cgroups were
    /// visited.
    pub fn walk_all(&self, path: &str, visit: Visit<'_>) -> io::Result<()> {
        let mut first = Ok(());
        self.descend(path, usize::MAX, visit, &mut |error| {
            if first.is_ok() {
                first = Err(error);
            }
            Ok(())
        })?;
        first
    }

    /// Calls `failed` for each cgroup that could not be visited. An error that it returns ends the
    /// walk.
    fn descend(
        &self,
        path: &str,
        most: usize,
        visit: Visit<'_>,
        failed: &mut dyn FnMut(io::Error) -> io::Result<()>,
    ) -> io::Result<()> {
        visit(self, path)?;
        let top = OpenLevel::of(self.try_clone()?, path.to_owned(), most)?;
        // One descriptor for each level on the way, not for each pending cgroup.
        let mut way = vec![top];
        let mut seen = 0;
        while let Some(level) = way.last_mut() {
            let Some(name) = level.children.pop().filter(|_| seen < most) else {
                way.pop();
                continue;
            };
            seen += 1;
            let entered = level.child(&name).and_then(|(dir, path)| {
                visit(&dir, &path)?;
                OpenLevel::of(dir, path, most)
            });
            match entered {
                Ok(level) => way.push(level),
                Err(error) if is(&error, libc::ENOENT) || is(&error, libc::ENODEV) => {}
                Err(error) => failed(error)?,
            }
        }
        Ok(())
    }
}

/// One cgroup of a walk, and its children that are not visited yet.
struct OpenLevel {
    dir: Dir,
    path: String,
    children: Vec<CString>,
}

impl OpenLevel {
    fn of(dir: Dir, path: String, most: usize) -> io::Result<Self> {
        let mut children = Vec::new();
        for entry in rustix::fs::Dir::read_from(&dir)? {
            let entry = entry?;
            let is_parent = matches!(entry.file_name().to_bytes(), b"." | b"..");
            if entry.file_type() == FileType::Directory && !is_parent {
                children.push(entry.file_name().to_owned());
            }
            if children.len() >= most {
                break;
            }
        }
        Ok(Self { dir, path, children })
    }

    fn child(&self, name: &CString) -> io::Result<(Dir, String)> {
        let child = self.dir.child(name)?;
        Ok((child, cgroup_path_below(self.path.trim_end_matches('/'), name.as_bytes())))
    }
}

fn is(error: &io::Error, errno: i32) -> bool {
    error.raw_os_error() == Some(errno)
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, fs, os::unix::ffi::OsStrExt as _, path::Path};

    use super::*;

    /// Opens a directory. A walk treats it like a cgroup.
    fn open(folder: &Path) -> Dir {
        Dir::from(std::os::fd::OwnedFd::from(fs::File::open(folder).unwrap()))
    }

    #[test]
    fn a_truncated_list_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("cgroup.procs"), "10\n123\n").unwrap();
        let dir = open(folder.path());
        assert_eq!(dir.own_processes(100).unwrap(), [10, 123].map(Pid));
        // If cut after "10\n1", the list would contain PID 1.
        assert!(dir.own_processes(4).is_err());
        let list: String = (0..100_000).map(|n| format!("{}\n", 4_000_000 + n)).collect();
        fs::write(folder.path().join("cgroup.procs"), list).unwrap();
        assert_eq!(dir.processes().unwrap().len(), 100_000);
    }

    #[test]
    fn processes_of_all_cgroups_are_listed_but_none_of_other_namespaces() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("a")).unwrap();
        fs::write(folder.path().join("cgroup.procs"), "7\n0\n").unwrap();
        assert_eq!(
            open(folder.path()).processes().unwrap(),
            [Pid(7)],
            "a child may just have been removed"
        );
        fs::write(folder.path().join("a/cgroup.procs"), "8\n").unwrap();
        assert_eq!(open(folder.path()).processes().unwrap(), [7, 8].map(Pid));
        fs::remove_file(folder.path().join("cgroup.procs")).unwrap();
        assert!(open(folder.path()).processes().is_err(), "the first cgroup must answer");
    }

    #[test]
    fn a_walk_of_all_visits_thousands_of_cgroups() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..=MAX_DESCENDANTS {
            fs::create_dir(folder.path().join(number.to_string())).unwrap();
        }
        let root = open(folder.path());
        let mut seen = 0;
        let walked = root.walk_all("/", &mut |_, path| {
            seen += 1;
            match path {
                "/7" => Err(io::Error::from_raw_os_error(libc::EIO)),
                _ => Ok(()),
            }
        });
        assert_eq!(seen, MAX_DESCENDANTS + 2, "including the root, and despite one failure");
        assert_eq!(walked.unwrap_err().raw_os_error(), Some(libc::EIO));
        let mut some = 0;
        root.walk("/", &mut |_, _| {
            some += 1;
            Ok(())
        })
        .unwrap();
        assert_eq!(some, MAX_DESCENDANTS + 1, "including the root");
    }

    #[test]
    fn a_walk_skips_cgroups_that_are_gone_and_reports_other_errors() {
        let folder = tempfile::tempdir().unwrap();
        let odd = OsStr::from_bytes(b"c\xff");
        for path in [OsStr::new("a/b"), OsStr::new("a/d"), odd] {
            fs::create_dir_all(folder.path().join(path)).unwrap();
        }
        let walk = |fails: Option<i32>| {
            let mut seen = Vec::new();
            let walked = open(folder.path()).walk("/", &mut |_, path| {
                seen.push(path.to_owned());
                match fails.filter(|_| path == "/a") {
                    Some(errno) => Err(io::Error::from_raw_os_error(errno)),
                    None => Ok(()),
                }
            });
            seen.sort();
            (walked.is_ok(), seen)
        };
        let all = ["/", r"/?c\xff", "/a", "/a/b", "/a/d"].map(str::to_owned).to_vec();
        assert_eq!(walk(None), (true, all));
        assert_eq!(walk(Some(libc::ENODEV)).1, ["/", r"/?c\xff", "/a"]);
        assert!(walk(Some(libc::ENOENT)).0 && !walk(Some(libc::EMFILE)).0);
    }
}
