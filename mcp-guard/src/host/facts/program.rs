//! Looks at the programs of processes, to find those that run containers.

use std::{
    ffi::OsStr,
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use mcp_guard_core::{
    escape::escape,
    id::Pid,
    refusal::{
        DELETED, EngineProcess, MustRun, SuspectFacts, engine_name, is_engine_comm,
        only_root_writes,
    },
};
use rustix::{
    fs::{
        AtFlags, CWD, Mode, OFlags, ResolveFlags, Statx, StatxFlags, openat, openat2,
        readlinkat_raw, statx,
    },
    io::Errno,
};

use crate::host::{
    cgroup::Dir,
    process::{self, Namespace, OpenProcess},
};

const PATH_MAX: usize = libc::PATH_MAX.cast_unsigned() as usize;
/// How often a path is followed again. The kernel's cache gives up on a path while anything on the host
/// is mounted or renamed.
const MOST_TRIES: u32 = 20;

/// Looks at many processes, and reads what is common to them once.
pub struct Programs {
    /// `/proc`. Paths that begin here are followed in half the time.
    proc: OwnedFd,
    /// Our pid namespace, which is that of the `/proc` that we read, and so of its PID 1.
    pids: Namespace,
    /// Mount namespaces of the host: our own and that of PID 1, if it can be read. A unit with
    /// `ProtectSystem=` has its own.
    mounts: Vec<Namespace>,
}

impl Programs {
    pub fn new() -> io::Result<Self> {
        let own = OpenProcess::open(process::this())?;
        let init = OpenProcess::open(Pid(1)).and_then(|init| init.namespace("mnt"));
        let mounts = [Some(own.namespace("mnt")?), init.ok()].into_iter().flatten();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc = openat(CWD, "/proc", flags, Mode::empty())?;
        Ok(Self { proc, pids: own.namespace("pid")?, mounts: mounts.collect() })
    }

    /// Returns the mount namespace of a process.
    ///
    /// # Errors
    /// If the process is gone, or the kernel does not show it to us.
    pub fn mounts_of(&self, pid: Pid) -> io::Result<Namespace> {
        OpenProcess::open(pid)?.namespace("mnt")
    }

    /// Whether a mount namespace is the host's.
    pub fn are_hosts(&self, mounts: Namespace) -> bool {
        self.mounts.contains(&mounts)
    }

    /// Whether the program of a process has an engine's name. `None` if that cannot be read. Almost every
    /// process is told apart by this one system call.
    pub fn has_engines_name(&self, pid: Pid) -> Option<bool> {
        let mut exe = [MaybeUninit::uninit(); PATH_MAX];
        match readlinkat_raw(&self.proc, format!("{pid}/exe"), &mut exe) {
            Ok((exe, _)) => Some(engine_name(exe).is_some()),
            Err(error) if process::is_gone(&error.into()) => Some(false),
            // No engine is that deep in a tree, and anybody can make a path that is too long.
            Err(Errno::NAMETOOLONG) => Some(false),
            Err(_) => None,
        }
    }

    /// Returns the process if it is an engine. One that has ended meanwhile is none. If its program
    /// cannot be looked at, its name decides, but only for a process that may be an engine at all.
    pub fn engine(
        &self,
        pid: Pid,
        cgroup: &Dir,
        in_container: bool,
    ) -> io::Result<Option<EngineProcess>> {
        match self.has_engines_name(pid) {
            Some(false) => return Ok(None),
            Some(true) => {}
            None => return self.by_name(pid, cgroup, in_container),
        }
        match self.look(pid, cgroup, in_container) {
            Err(error) if process::is_gone(&error) => Ok(None),
            Err(_) => self.by_name(pid, cgroup, in_container),
            found => found,
        }
    }

    fn look(
        &self,
        pid: Pid,
        cgroup: &Dir,
        in_container: bool,
    ) -> io::Result<Option<EngineProcess>> {
        let process = OpenProcess::open(pid)?;
        let exe = process.exe()?;
        let Some(name) = engine_name(&exe) else { return Ok(None) };
        let is_it = match self.facts(&process, cgroup, in_container)?.must_run() {
            None => false,
            Some(MustRun::AnyFile) => true,
            // A user's file is not looked at where its file system may not answer.
            Some(MustRun::InstalledFile) => match installed(&exe)? {
                None => false,
                Some(installed) => installed.is(&process.exe_file()?),
            },
        };
        let (start, name) = (process.start_ticks()?, escape(name.as_bytes(), 64));
        Ok(is_it.then_some(EngineProcess { pid, start, name }))
    }

    fn facts(
        &self,
        process: &OpenProcess,
        cgroup: &Dir,
        in_container: bool,
    ) -> io::Result<SuspectFacts> {
        Ok(SuspectFacts {
            uids: process.uids()?,
            in_hosts_pids: process.namespace("pid")? == self.pids,
            in_hosts_mounts: self.are_hosts(process.namespace("mnt")?),
            in_container,
            cgroup_owner: cgroup.owner()?,
        })
    }

    /// Returns a process whose program cannot be looked at, if it has an engine's name and nothing that
    /// can be read of it says that it is none.
    fn by_name(
        &self,
        pid: Pid,
        cgroup: &Dir,
        in_container: bool,
    ) -> io::Result<Option<EngineProcess>> {
        let look = || -> io::Result<_> {
            let process = OpenProcess::open(pid)?;
            let facts = self.facts(&process, cgroup, in_container);
            Ok((process.comm()?, process.start_ticks()?, facts.map(|facts| facts.must_run())))
        };
        match look() {
            Ok((_, _, Ok(None))) => Ok(None),
            Ok((comm, start, _)) => Ok(is_engine_comm(&comm).then(|| {
                let name = escape(&comm, 64);
                EngineProcess { pid, start, name }
            })),
            Err(error) if process::is_gone(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn is_roots(file: &Statx) -> bool {
    only_root_writes(file.stx_uid, file.stx_gid, file.stx_mode.into())
}

fn identity(file: &Statx) -> (u32, u32, u64) {
    (file.stx_dev_major, file.stx_dev_minor, file.stx_ino)
}

/// A path in the mount namespace of PID 1, in a folder of root.
struct Installed {
    folder: Statx,
    /// `None` if an upgrade has just removed it.
    file: Option<Statx>,
}

impl Installed {
    /// Whether `file` is what is installed here, or was until an upgrade replaced it.
    fn is(&self, file: &Statx) -> bool {
        let is_present = self.file.as_ref().is_some_and(|there| identity(there) == identity(file));
        let device = |file: &Statx| (file.stx_dev_major, file.stx_dev_minor);
        let is_former = file.stx_nlink == 0 && device(file) == device(&self.folder);
        is_roots(file) && (is_present || is_former)
    }
}

/// Returns what is installed under this path, if its folder is root's. In a mount namespace of its
/// own, a process can show any file under any path.
///
/// # Errors
/// If the path cannot be followed now. That it leads nowhere is no error.
fn installed(exe: &[u8]) -> io::Result<Option<Installed>> {
    let exe = exe.strip_suffix(DELETED).unwrap_or(exe);
    let path = Path::new(OsStr::from_bytes(exe));
    let folder = path.parent().and_then(|folder| folder.strip_prefix("/").ok());
    let (Some(folder), Some(name)) = (folder, path.file_name()) else { return Ok(None) };
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // A running program keeps its folders in the kernel's cache. Without CACHED, a user could lead
    // us to a file system that does not answer.
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::CACHED;
    let (mode, follow) = (Mode::empty(), OFlags::PATH | OFlags::CLOEXEC);
    // Ours, if that of PID 1 is not shown to us.
    let root =
        openat(CWD, "/proc/1/root", follow, mode).or_else(|_| openat(CWD, "/", follow, mode))?;
    let open = |at: BorrowedFd<'_>, path: &Path| {
        let mut tries = 0;
        loop {
            match openat2(at, path, flags, mode, resolve) {
                Err(Errno::AGAIN) if tries < MOST_TRIES => tries += 1,
                // A path that is not in the cache is none of a running program.
                Err(Errno::AGAIN | Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => {
                    return Ok(None);
                }
                opened => return opened.map(Some),
            }
        }
    };
    let stat = |fd: &OwnedFd| {
        let how = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        statx(fd, "", how, StatxFlags::BASIC_STATS)
    };
    let Some(folder) = open(root.as_fd(), folder)? else { return Ok(None) };
    let file = open(folder.as_fd(), Path::new(name))?;
    let (folder, file) = (stat(&folder)?, file.as_ref().map(stat).transpose()?);
    Ok(is_roots(&folder).then_some(Installed { folder, file }))
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    };

    use super::*;

    fn inode(path: &Path) -> Option<u64> {
        // Into the kernel's cache, where a running program is too.
        let _ = fs::symlink_metadata(path);
        let found = installed(path.as_os_str().as_bytes()).unwrap();
        found.and_then(|found| found.file).map(|file| file.stx_ino)
    }

    #[test]
    fn an_installed_program_is_in_a_folder_of_root() {
        let sleep = fs::canonicalize("/bin/sleep").unwrap();
        assert_eq!(inode(&sleep), Some(fs::metadata(&sleep).unwrap().ino()));
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("conmon");
        fs::copy(&sleep, &copy).unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(inode(&copy), None, "anyone may write the folder");
        let link = folder.path().join("link");
        symlink(sleep.parent().unwrap(), &link).unwrap();
        assert_eq!(inode(&link.join("sleep")), None, "the kernel shows no link in a path");
        for bad in ["", "/", "sleep", "/usr/bin/no-such-program", "/../bin/sleep"] {
            assert_eq!(inode(Path::new(bad)), None, "{bad}");
        }
    }

    #[test]
    fn an_installed_program_stays_one_when_an_upgrade_replaces_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("conmon");
        let running = fs::File::create(&path).unwrap();
        running.set_permissions(fs::Permissions::from_mode(0o755)).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "a newer version").unwrap();
        let stat = |file: &fs::File| {
            statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS).unwrap()
        };
        let shown = format!("{} (deleted)", path.display());
        let there = installed(shown.as_bytes()).unwrap().unwrap();
        assert!(there.is(&stat(&running)), "the former file");
        assert!(there.is(&stat(&fs::File::open(&path).unwrap())), "the present file");
        assert!(!there.is(&stat(&fs::File::open("/bin/sleep").unwrap())), "another file");
    }
}
