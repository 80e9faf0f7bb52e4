//! Walks through a cgroup and those below it.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BinaryHeap, HashSet},
    fs, io,
    sync::Arc,
};

use mcp_guard_core::escape::push_cgroup;
use rustix::fs::FileType;

use super::{Dir, place::PlaceBelow};
use crate::host::cgroupfs::{keyed, number_of_cgroups};

/// Most cgroups visited below one cgroup, the size of the kernel side's membership map.
pub(super) const MAX_DESCENDANTS: usize = mcp_guard_common::MAX_CGROUPS as usize;

/// The function that a walk calls for each cgroup.
pub(super) type Visit<'a> = &'a mut dyn FnMut(&Dir, &str) -> io::Result<()>;

impl Dir {
    /// Visits this cgroup, then at most `MAX_DESCENDANTS` below it. `path` is the path of this
    /// cgroup.
    ///
    /// Each cgroup is visited before its children are listed. A child that is created meanwhile is
    /// either visited too, or was created below a visited parent.
    ///
    /// # Errors
    /// If this cgroup is gone, or if a cgroup cannot be opened, listed or visited. Descendants that
    /// disappear are skipped. Those that are nested too deep ([`is_too_deep`]) are reported after the others.
    pub fn walk(&self, path: &str, visit: Visit<'_>) -> io::Result<()> {
        match self.descend(path, (MAX_DESCENDANTS, MAX_DESCENDANTS), visit, &mut Err)? {
            0 => Ok(()),
            _ => Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG)),
        }
    }

    /// Visits this cgroup, the root of a tree, and all below it: a process that owns a subtree can create
    /// thousands of cgroups, and must not hide others that way. Cgroups that cannot be opened, listed or
    /// visited are skipped too, and so are those that are nested too deep: nobody can name them.
    ///
    /// # Errors
    /// If this cgroup is gone, or the number of all cgroups cannot be read. If others failed, returns the
    /// first failure after all cgroups were visited.
    pub fn walk_all(&self, path: &str, visit: Visit<'_>) -> io::Result<()> {
        let mut first = Ok(());
        self.descend(path, (self.descendants()?, usize::MAX), visit, &mut |error| {
            if first.is_ok() {
                first = Err(error);
            }
            Ok(())
        })?;
        first
    }

    /// Finds at most `room` cgroups, and visits `most` of them. Returns how many are nested too deep. Calls
    /// `failed` for each that could not be visited. An error that it returns ends the walk.
    ///
    /// The next one is always the oldest that was found. So those that were there when the walk began come
    /// before those that are created meanwhile, none of which can take the place of another. If `most` is the
    /// number of the former, the walk ends after them, whatever is created.
    fn descend(
        &self,
        path: &str,
        (most, room): (usize, usize),
        visit: Visit<'_>,
        failed: &mut dyn FnMut(io::Error) -> io::Result<()>,
    ) -> io::Result<usize> {
        let mut found = CgroupsFound { room, ..CgroupsFound::default() };
        visit(self, path)?;
        found.add_children(self, None)?;
        let mut seen = 0;
        while seen < most
            && let Some(place) = found.oldest()
        {
            seen += 1;
            let entered = place.open(self).and_then(|dir| {
                visit(&dir, &place.shown(path, push_cgroup))?;
                found.add_children(&dir, Some(&place))
            });
            match entered {
                Err(error) if is(&error, libc::ENOENT) || is(&error, libc::ENODEV) => {}
                Err(error) => failed(error)?,
                Ok(()) => {}
            }
        }
        Ok(found.too_deep)
    }

    /// Returns how many cgroups are below this one, the root of a tree; or a few more.
    fn descendants(&self) -> io::Result<usize> {
        let number = match self.read("cgroup.stat") {
            // Version 1 counts the cgroups of each controller. Only the tree of this one is walked through.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                number_of_cgroups(&fs::read_to_string("/proc/cgroups")?, "pids")
            }
            stat => keyed(&stat?, "nr_descendants"),
        };
        let number = number.ok_or_else(|| io::Error::other("the cgroups cannot be counted"))?;
        Ok(usize::try_from(number).unwrap_or(usize::MAX))
    }
}

/// Whether a walk came to cgroups that are nested too deep.
#[must_use]
pub fn is_too_deep(error: &io::Error) -> bool {
    is(error, libc::ENAMETOOLONG)
}

/// Cgroups that a walk has found.
#[derive(Default)]
struct CgroupsFound {
    /// Those that it was not in yet.
    ahead: BinaryHeap<Reverse<CgroupFound>>,
    /// The ids of all of them, at most `room`.
    known: HashSet<u64>,
    room: usize,
    too_deep: usize,
}

impl CgroupsFound {
    fn oldest(&mut self) -> Option<Arc<PlaceBelow>> {
        self.ahead.pop().map(|Reverse(oldest)| oldest.place)
    }

    fn add_children(&mut self, dir: &Dir, above: Option<&Arc<PlaceBelow>>) -> io::Result<()> {
        for entry in rustix::fs::Dir::read_from(dir)? {
            if self.known.len() >= self.room {
                break;
            }
            let entry = entry?;
            let is_parent = matches!(entry.file_name().to_bytes(), b"." | b"..");
            if entry.file_type() != FileType::Directory || is_parent {
                continue;
            }
            // One that is renamed meanwhile, as version 1 allows, may be listed again.
            if self.known.insert(entry.ino()) {
                match PlaceBelow::below(above, entry.file_name()) {
                    Some(place) => self.ahead.push(Reverse(CgroupFound { id: entry.ino(), place })),
                    None => self.too_deep += 1,
                }
            }
        }
        Ok(())
    }
}

/// A cgroup that a walk has found, in the order of creation: the ids of a tree increase, see
/// `__kernfs_new_node` in `fs/kernfs/dir.c`.
struct CgroupFound {
    id: u64,
    place: Arc<PlaceBelow>,
}

impl Ord for CgroupFound {
    fn cmp(&self, other: &Self) -> Ordering {
        self.id.cmp(&other.id)
    }
}

impl PartialOrd for CgroupFound {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for CgroupFound {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for CgroupFound {}

fn is(error: &io::Error, errno: i32) -> bool {
    error.raw_os_error() == Some(errno)
}

#[cfg(test)]
mod tests {
    use std::{
        ffi::{CString, OsStr},
        fs,
        os::unix::ffi::OsStrExt as _,
        path::Path,
    };

    use mcp_guard_core::id::Pid;

    use super::*;
    use crate::host::cgroup::{MAX_PROCS, place::tests::held_open};

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
        assert_eq!(dir.own_processes(MAX_PROCS).unwrap().len(), 100_000);
    }

    fn count(root: &Path, cgroups: usize) {
        fs::write(root.join("cgroup.stat"), format!("nr_descendants {cgroups}\n")).unwrap();
    }

    #[test]
    fn a_walk_ends_however_many_cgroups_are_made_meanwhile() {
        let folder = tempfile::tempdir().unwrap();
        let name = "x".repeat(100);
        fs::create_dir(folder.path().join(&name)).unwrap();
        fs::create_dir(folder.path().join("old")).unwrap();
        count(folder.path(), 2);
        let (mut visited, mut made) = (Vec::new(), 0);
        open(folder.path())
            .walk_all("/", &mut |dir, path| {
                visited.push(path.to_owned());
                made += 1;
                assert!(made < 1000, "the walk follows what is made in front of it");
                let _ = rustix::fs::mkdirat(dir, &*name, 0o755.into());
                let _ = rustix::fs::mkdirat(dir, "y", 0o755.into());
                Ok(())
            })
            .unwrap();
        visited.sort();
        assert_eq!(visited[..], ["/".to_owned(), "/old".to_owned(), format!("/{name}")]);
    }

    #[test]
    fn the_oldest_cgroup_comes_first_and_each_comes_once() {
        let folder = tempfile::tempdir().unwrap();
        let root = open(folder.path());
        let mut found = CgroupsFound { room: usize::MAX, ..CgroupsFound::default() };
        for name in ["c", "a", "b"] {
            fs::create_dir(folder.path().join(name)).unwrap();
            found.add_children(&root, None).unwrap();
        }
        let ids: Vec<u64> = found.ahead.iter().map(|Reverse(one)| one.id).collect();
        assert_eq!((ids.len(), found.known.len()), (3, 3));
        let next = || Some(found.oldest()?.open(&root).unwrap().id().unwrap().0);
        let oldest_first: Vec<u64> = std::iter::from_fn(next).collect();
        assert!(oldest_first.is_sorted() && oldest_first.len() == 3);
    }

    #[test]
    fn a_walk_needs_no_descriptor_for_each_level_and_reports_what_is_too_deep() {
        let folder = tempfile::tempdir().unwrap();
        let name = "x".repeat(255);
        let mut dir = open(folder.path());
        for _ in 0..20 {
            rustix::fs::mkdirat(&dir, &*name, 0o755.into()).unwrap();
            dir = dir.child(&CString::new(&*name).unwrap()).unwrap();
        }
        drop(dir);
        let (root, mut visited, mut most) = (open(folder.path()), 0, 0);
        let walked = root.walk("", &mut |_, _| {
            visited += 1;
            most = most.max(held_open(folder.path()));
            Ok(())
        });
        assert_eq!(visited, 17, "16 * 256 bytes fit");
        assert_eq!(most, 2, "the first one and the present one");
        assert!(is_too_deep(&walked.unwrap_err()));
        count(folder.path(), 20);
        root.walk_all("", &mut |_, _| Ok(())).unwrap();
    }

    #[test]
    fn a_walk_of_all_visits_thousands_of_cgroups() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..=MAX_DESCENDANTS {
            fs::create_dir(folder.path().join(number.to_string())).unwrap();
        }
        count(folder.path(), MAX_DESCENDANTS + 1);
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
