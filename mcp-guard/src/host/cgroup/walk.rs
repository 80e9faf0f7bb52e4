//! A cgroup and those below it.

use std::{ffi::CString, io};

use mcp_guard_core::{escape::cgroup_path_below, id::Pid};
use rustix::fs::FileType;

use super::dir::{Dir, MAX_PROCS};

/// Nested cgroups looked at below one guard; the size of the kernel side's membership map.
pub const MAX_DESCENDANTS: usize = mcp_guard_common::MAX_CGROUPS as usize;

/// What a walk does with each cgroup.
pub(super) type Visit<'a> = &'a mut dyn FnMut(&Dir, &str) -> io::Result<()>;

impl Dir {
    /// Processes in this cgroup and below. 0, a process of another pid namespace, is left out.
    ///
    /// # Errors
    /// The cgroup is gone, or its list cannot be read to the end.
    pub fn processes(&self) -> io::Result<Vec<Pid>> {
        // Of a threaded cgroup the kernel does not tell (EOPNOTSUPP). The processes of one below are
        // listed by the domain above it, so only the first must answer.
        let mut pids = self.own_processes(MAX_PROCS)?;
        let mut is_below = false;
        self.walk("", &mut |dir, _| {
            if !std::mem::replace(&mut is_below, true) {
                return Ok(());
            }
            match dir.own_processes(MAX_PROCS) {
                Err(error) if is(&error, libc::EOPNOTSUPP) => {}
                read => pids.extend(read?),
            }
            Ok(())
        })?;
        pids.retain(|pid| *pid != Pid(0));
        Ok(pids)
    }

    /// Visits this cgroup, then those below; each is visited before its children are listed, so that
    /// a child made meanwhile is either seen or was made below a visited parent. `path` is that of
    /// this cgroup.
    ///
    /// At most [`MAX_DESCENDANTS`] below it.
    ///
    /// # Errors
    /// This cgroup is gone, or one cannot be opened, listed or visited. A descendant that goes away is
    /// stepped over.
    pub fn walk(&self, path: &str, visit: Visit<'_>) -> io::Result<()> {
        self.descend(path, MAX_DESCENDANTS, visit, &mut Err)
    }

    /// The same however many there are: anybody with a subtree of their own can make thousands, and must not
    /// hide the others by it. What cannot be opened, listed or visited is stepped over too.
    ///
    /// # Errors
    /// The first of those, after all others were visited; or this cgroup is gone.
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

    /// `failed` hears of what could not be visited, and says whether that ends the walk.
    fn descend(
        &self,
        path: &str,
        most: usize,
        visit: Visit<'_>,
        failed: &mut dyn FnMut(io::Error) -> io::Result<()>,
    ) -> io::Result<()> {
        visit(self, path)?;
        let top = OpenLevel::of(self.try_clone()?, path.to_owned(), most)?;
        // One descriptor for each level on the way, not for each cgroup that waits.
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

/// One cgroup of a walk, with those below it that are not visited yet.
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

    /// A directory is as good as a cgroup for whoever only walks.
    fn open(folder: &Path) -> Dir {
        Dir::from(std::os::fd::OwnedFd::from(fs::File::open(folder).unwrap()))
    }

    #[test]
    fn a_list_is_whole_or_an_error() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("cgroup.procs"), "10\n123\n").unwrap();
        let dir = open(folder.path());
        assert_eq!(dir.own_processes(100).unwrap(), [10, 123].map(Pid));
        // Cut after "10\n1", it would hold PID 1.
        assert!(dir.own_processes(4).is_err());
        let list: String = (0..100_000).map(|n| format!("{}\n", 4_000_000 + n)).collect();
        fs::write(folder.path().join("cgroup.procs"), list).unwrap();
        assert_eq!(dir.processes().unwrap().len(), 100_000);
    }

    #[test]
    fn processes_are_those_of_all_cgroups_but_of_no_other_namespace() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("a")).unwrap();
        fs::write(folder.path().join("cgroup.procs"), "7\n0\n").unwrap();
        assert_eq!(
            open(folder.path()).processes().unwrap(),
            [Pid(7)],
            "one below may just have gone"
        );
        fs::write(folder.path().join("a/cgroup.procs"), "8\n").unwrap();
        assert_eq!(open(folder.path()).processes().unwrap(), [7, 8].map(Pid));
        fs::remove_file(folder.path().join("cgroup.procs")).unwrap();
        assert!(open(folder.path()).processes().is_err(), "the first must answer");
    }

    #[test]
    fn thousands_of_cgroups_hide_none_of_a_tree() {
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
        assert_eq!(seen, MAX_DESCENDANTS + 2, "with itself, beyond one that fails");
        assert_eq!(walked.unwrap_err().raw_os_error(), Some(libc::EIO));
        let mut some = 0;
        root.walk("/", &mut |_, _| {
            some += 1;
            Ok(())
        })
        .unwrap();
        assert_eq!(some, MAX_DESCENDANTS + 1, "with itself");
    }

    #[test]
    fn a_walk_sees_all_steps_over_what_is_gone_and_tells_of_anything_else() {
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
