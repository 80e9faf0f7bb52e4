//! A cgroup, held by directory descriptors.
//!
//! A path that was removed and made again is another cgroup: reads and writes through the held
//! descriptor of the old one fail with ENODEV or ENOENT and can hit nothing else.

mod find;
mod pids;

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use mcp_guard_core::escape::cgroup_path_below;
use rustix::fs::{Dir, FileType, Mode, OFlags, fstat, openat};
use tokio::io::Interest;

pub use find::Error;
use pids::Pids;

use super::{poll, process::read_at_most};

/// Nested cgroups looked at below one guard; the size of the kernel side's membership map.
pub const MAX_DESCENDANTS: usize = mcp_guard_common::MAX_CGROUPS as usize;
/// Bytes read of one cgroup file.
const MAX_FILE: usize = 1 << 19;
/// The same of cgroup.procs: eight for each of as many processes as Linux can have (`PID_MAX_LIMIT`).
const MAX_PROCS: usize = 8 * 4_194_304;

/// `cgroup.events`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Events {
    pub populated: bool,
    pub frozen: bool,
}

/// What a walk does with each cgroup.
type Visit<'a> = &'a mut dyn FnMut(BorrowedFd<'_>, &str) -> io::Result<()>;

pub struct Cgroup {
    dir: OwnedFd,
    id: u64,
    path: String,
    pids: Option<Pids>,
}

impl Cgroup {
    /// The id that the kernel side uses: the directory's inode number.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Path in the unified tree, as [`mcp_guard_core::escape::cgroup_path`] writes it.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    #[must_use]
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// # Errors
    /// The cgroup is gone.
    pub fn events(&self) -> io::Result<Events> {
        let text = self.read("cgroup.events")?;
        let set = |key: &str| text.lines().any(|line| line.strip_prefix(key) == Some(" 1"));
        Ok(Events { populated: set("populated"), frozen: set("frozen") })
    }

    /// What was asked of the kernel, by anybody; `Events::frozen` is what was reached.
    ///
    /// # Errors
    /// The cgroup is gone.
    pub fn freeze_requested(&self) -> io::Result<bool> {
        Ok(self.read("cgroup.freeze")?.trim() == "1")
    }

    /// # Errors
    /// The cgroup is gone.
    pub fn request_freeze(&self, frozen: bool) -> io::Result<()> {
        self.write("cgroup.freeze", if frozen { "1" } else { "0" })
    }

    /// SIGKILL to every process in it and below, forks in flight included (cgroup.kill, Linux 5.14).
    ///
    /// # Errors
    /// The cgroup is gone.
    pub fn kill(&self) -> io::Result<()> {
        self.write("cgroup.kill", "1")
    }

    /// Processes in it and below. 0, a process of another pid namespace, is left out.
    ///
    /// # Errors
    /// The cgroup is gone, or its list cannot be read to the end.
    pub fn processes(&self) -> io::Result<Vec<u32>> {
        // Of a threaded cgroup the kernel does not tell (EOPNOTSUPP). The processes of one below are
        // listed by the domain above it, so only the first must answer.
        let mut pids = read_procs(self.dir.as_fd(), MAX_PROCS)?;
        self.walk(&mut |dir, path| {
            match read_procs(dir, MAX_PROCS) {
                _ if path == self.path => {}
                Err(error) if is(&error, libc::EOPNOTSUPP) => {}
                read => pids.extend(read?),
            }
            Ok(())
        })?;
        pids.retain(|pid| *pid != 0);
        Ok(pids)
    }

    /// Paths and ids of the cgroups below it.
    ///
    /// # Errors
    /// The cgroup is gone.
    pub fn descendants(&self) -> io::Result<Vec<(String, u64)>> {
        let mut found = Vec::new();
        self.walk(&mut |dir, path| {
            found.push((path.to_owned(), fstat(dir)?.st_ino));
            Ok(())
        })?;
        found.remove(0); // The walk begins with the cgroup itself.
        Ok(found)
    }

    /// Visits this cgroup, then those below; each is visited before its children are listed, so that
    /// a child made meanwhile is either seen or was made below a visited parent.
    ///
    /// At most [`MAX_DESCENDANTS`] below it.
    ///
    /// # Errors
    /// This cgroup is gone, or one cannot be opened, listed or visited. A descendant that goes away is
    /// stepped over.
    pub fn walk(&self, visit: Visit<'_>) -> io::Result<()> {
        self.descend(MAX_DESCENDANTS, visit, &mut Err)
    }

    /// The same however many there are: anybody with a subtree of their own can make thousands, and must not
    /// hide the others by it. What cannot be opened, listed or visited is stepped over too.
    ///
    /// # Errors
    /// The first of those, after all others were visited; or this cgroup is gone.
    pub fn walk_all(&self, visit: Visit<'_>) -> io::Result<()> {
        let mut first = Ok(());
        self.descend(usize::MAX, visit, &mut |error| {
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
        most: usize,
        visit: Visit<'_>,
        failed: &mut dyn FnMut(io::Error) -> io::Result<()>,
    ) -> io::Result<()> {
        visit(self.dir.as_fd(), &self.path)?;
        let top = Level::of(self.dir.try_clone()?, self.path.clone(), most)?;
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
                visit(dir.as_fd(), &path)?;
                Level::of(dir, path, most)
            });
            match entered {
                Ok(level) => way.push(level),
                Err(error) if is(&error, libc::ENOENT) || is(&error, libc::ENODEV) => {}
                Err(error) => failed(error)?,
            }
        }
        Ok(())
    }

    fn read(&self, file: &str) -> io::Result<String> {
        read_file(self.dir.as_fd(), file)
    }

    fn write(&self, file: &str, value: &str) -> io::Result<()> {
        let fd = openat(&self.dir, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::write(&fd, value.as_bytes())?;
        Ok(())
    }
}

/// One cgroup of a walk, with those below it that are not visited yet.
struct Level {
    dir: OwnedFd,
    path: String,
    children: Vec<CString>,
}

impl Level {
    fn of(dir: OwnedFd, path: String, most: usize) -> io::Result<Self> {
        let mut children = Vec::new();
        for entry in Dir::read_from(&dir)? {
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

    fn child(&self, name: &CString) -> io::Result<(OwnedFd, String)> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let child = openat(&self.dir, name, flags, Mode::empty())?;
        Ok((child, cgroup_path_below(self.path.trim_end_matches('/'), name.as_bytes())))
    }
}

fn is(error: &io::Error, errno: i32) -> bool {
    error.raw_os_error() == Some(errno)
}

/// Waits until `cgroup.events` of a directory reports a state; false where `limit` passes first.
///
/// # Errors
/// The cgroup is gone.
pub async fn wait_events(
    dir: OwnedFd,
    limit: Duration,
    reached: impl Fn(Events) -> bool,
) -> io::Result<bool> {
    let cgroup = Cgroup { dir, id: 0, path: String::new(), pids: None };
    let events =
        openat(&cgroup.dir, "cgroup.events", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    // kernfs signals POLLPRI for a change since the last read of this descriptor.
    let events = poll::register(events, Interest::PRIORITY)?;
    let changed = async {
        loop {
            let mut guard = events.ready(Interest::PRIORITY).await?;
            read_at_most(events.get_ref(), 64)?;
            if reached(cgroup.events()?) {
                return Ok(());
            }
            guard.clear_ready();
        }
    };
    read_at_most(events.get_ref(), 64)?;
    if reached(cgroup.events()?) {
        return Ok(true);
    }
    match tokio::time::timeout(limit, changed).await {
        Ok(result) => result.map(|()| true),
        Err(_) => Ok(reached(cgroup.events()?)),
    }
}

fn read_file(dir: BorrowedFd<'_>, file: &str) -> io::Result<String> {
    let fd = openat(dir, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(String::from_utf8_lossy(&read_at_most(&fd, MAX_FILE)?).into_owned())
}

/// A list that was cut would end in the first digits of a pid, which name another process.
fn read_procs(dir: BorrowedFd<'_>, limit: usize) -> io::Result<Vec<u32>> {
    let fd = openat(dir, "cgroup.procs", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let list = read_at_most(&fd, limit)?;
    if list.len() >= limit {
        return Err(io::Error::other(format!("cgroup.procs is larger than {limit} bytes")));
    }
    let lines = list.split(|byte| *byte == b'\n');
    Ok(lines.filter_map(|line| std::str::from_utf8(line).ok()?.parse().ok()).collect())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::ffi::OsStrExt as _};

    use super::*;
    use crate::host::facts;

    /// A directory is as good as a cgroup for whoever only walks.
    fn held(folder: &std::path::Path) -> Cgroup {
        let dir = fs::File::open(folder).unwrap().into();
        Cgroup { dir, id: 0, path: "/".to_owned(), pids: None }
    }

    #[test]
    fn a_list_is_whole_or_an_error() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("cgroup.procs"), "10\n123\n").unwrap();
        let dir = fs::File::open(folder.path()).unwrap();
        assert_eq!(read_procs(dir.as_fd(), 100).unwrap(), [10, 123]);
        // Cut after "10\n1", it would hold PID 1.
        assert!(read_procs(dir.as_fd(), 4).is_err());
        let list: String = (0..100_000).map(|n| format!("{}\n", 4_000_000 + n)).collect();
        fs::write(folder.path().join("cgroup.procs"), list).unwrap();
        assert_eq!(held(folder.path()).processes().unwrap().len(), 100_000);
    }

    #[test]
    fn thousands_of_cgroups_hide_none_of_a_tree_and_are_not_acted_upon_unseen() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..=MAX_DESCENDANTS {
            fs::create_dir(folder.path().join(number.to_string())).unwrap();
        }
        let mut root = held(folder.path());
        let mut seen = 0;
        let walked = root.walk_all(&mut |_, path| {
            seen += 1;
            match path {
                "/7" => Err(io::Error::from_raw_os_error(libc::EIO)),
                _ => Ok(()),
            }
        });
        assert_eq!(seen, MAX_DESCENDANTS + 2, "with itself, beyond one that fails");
        assert_eq!(walked.unwrap_err().raw_os_error(), Some(libc::EIO));
        assert_eq!(root.descendants().unwrap().len(), MAX_DESCENDANTS);
        fs::write(folder.path().join("cgroup.procs"), "").unwrap();
        assert!(facts::gather(&root).unwrap_err().to_string().contains("16384 cgroups below it"));
        // A container's own are the container's, and it must not get out of reach by making some.
        root.path = format!("/docker/{}", "0123456789abcdef".repeat(4));
        assert_eq!(facts::gather(&root).unwrap().descendants.len(), MAX_DESCENDANTS);
    }

    #[test]
    fn a_walk_sees_all_steps_over_what_is_gone_and_tells_of_anything_else() {
        let folder = tempfile::tempdir().unwrap();
        let odd = std::ffi::OsStr::from_bytes(b"c\xff");
        for path in
            ["a/b", "a/d"].map(Into::into).into_iter().chain([std::path::PathBuf::from(odd)])
        {
            fs::create_dir_all(folder.path().join(path)).unwrap();
        }
        let walk = |fails: Option<i32>| {
            let mut seen = Vec::new();
            let walked = held(folder.path()).walk(&mut |_, path| {
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
