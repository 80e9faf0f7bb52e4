//! Walks through the cgroups that have processes.

use std::{ffi::CString, io};

use mcp_guard_core::escape::cgroup_path_below;
use rustix::fs::FileType;

use super::{Cgroup, Dir, walk::Visit};

impl Cgroup {
    /// Visits this cgroup, and those below it that are populated: they, or a cgroup below them, have
    /// a process. Their number is bounded by that of processes. A cgroup without processes costs a
    /// few system calls and no memory, so that nobody can hide a process behind thousands of them.
    ///
    /// Each cgroup is visited before its children are listed.
    ///
    /// # Errors
    /// If this cgroup is gone, or if a cgroup cannot be opened, listed or visited. Descendants that
    /// disappear are skipped.
    pub fn walk_populated(&self, visit: Visit<'_>) -> io::Result<()> {
        visit(&self.dir, &self.path)?;
        let top = PopulatedLevel::of(self.dir.try_clone()?, self.path.clone())?;
        let mut way = vec![top];
        while let Some(level) = way.last_mut() {
            let Some(name) = level.children.pop() else {
                way.pop();
                continue;
            };
            let entered = level.child(&name).and_then(|(dir, path)| {
                visit(&dir, &path)?;
                PopulatedLevel::of(dir, path)
            });
            match entered {
                Ok(level) => way.push(level),
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// A cgroup of a walk, and its populated children that are not visited yet.
struct PopulatedLevel {
    dir: Dir,
    path: String,
    children: Vec<CString>,
}

impl PopulatedLevel {
    fn of(dir: Dir, path: String) -> io::Result<Self> {
        let mut children = Vec::new();
        for entry in rustix::fs::Dir::read_from(&dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let is_parent = matches!(name.to_bytes(), b"." | b"..");
            if entry.file_type() == FileType::Directory && !is_parent {
                match dir.is_populated_below(name) {
                    Ok(false) => {}
                    Ok(true) => children.push(name.to_owned()),
                    Err(error) if is_gone(&error) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(Self { dir, path, children })
    }

    fn child(&self, name: &CString) -> io::Result<(Dir, String)> {
        let child = self.dir.child(name)?;
        let parent = self.path.trim_end_matches('/');
        Ok((child, cgroup_path_below(parent, name.as_bytes())))
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::fd::OwnedFd, path::Path};

    use mcp_guard_core::incident::Hold;

    use super::*;
    use crate::host::layout::{Layout, LayoutKind};

    fn open(folder: &Path) -> Cgroup {
        let dir = Dir::from(OwnedFd::from(fs::File::open(folder).unwrap()));
        let layout =
            Layout { kind: LayoutKind::Unified, unified: None, pids: None, nsdelegate: None };
        Cgroup::at(&dir, "/", Hold::Freeze, &layout).unwrap()
    }

    fn make(folder: &Path, populated: bool) {
        fs::create_dir_all(folder).unwrap();
        let events = format!("populated {}\nfrozen 0\n", u8::from(populated));
        fs::write(folder.join("cgroup.events"), events).unwrap();
    }

    fn walked(folder: &Path) -> Vec<String> {
        let mut seen = Vec::new();
        open(folder)
            .walk_populated(&mut |_, path| {
                seen.push(path.to_owned());
                Ok(())
            })
            .unwrap();
        seen.sort();
        seen
    }

    #[test]
    fn only_populated_cgroups_are_visited() {
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
}
