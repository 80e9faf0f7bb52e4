//! Looks at the programs of processes, to find those that run containers.

use std::{ffi::OsStr, io, os::unix::ffi::OsStrExt as _, path::Path};

use mcp_guard_core::{
    escape::escape,
    id::Pid,
    refusal::{
        EngineProcess, MustRun, SuspectFacts, engine_name, is_engine_comm, only_root_writes,
    },
};
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, ResolveFlags, Statx, StatxFlags, openat, openat2, readlinkat, statx,
};

use crate::host::{
    cgroup::Dir,
    process::{self, Namespace, OpenProcess},
};

/// Looks at many processes, and reads what is common to them once.
pub struct Programs {
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
        Ok(Self { pids: own.namespace("pid")?, mounts: mounts.collect() })
    }

    /// Whether a mount namespace is the host's.
    pub fn are_hosts(&self, mounts: Namespace) -> bool {
        self.mounts.contains(&mounts)
    }

    /// Returns the process if it is an engine. One that has ended meanwhile is none. One that
    /// cannot be looked at is one if it has an engine's name.
    pub fn engine(
        &self,
        pid: Pid,
        cgroup: &Dir,
        in_container: bool,
    ) -> io::Result<Option<EngineProcess>> {
        // Almost every process ends here, after one system call.
        match readlinkat(CWD, format!("/proc/{pid}/exe"), Vec::new()) {
            Ok(exe) if engine_name(exe.as_bytes()).is_none() => return Ok(None),
            Ok(_) => {}
            Err(error) if process::is_gone(&error.into()) => return Ok(None),
            Err(_) => return by_name(pid),
        }
        match self.look(pid, cgroup, in_container) {
            Err(error) if process::is_gone(&error) => Ok(None),
            Err(_) => by_name(pid),
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
        let facts = SuspectFacts {
            uids: process.uids()?,
            in_hosts_pids: process.namespace("pid")? == self.pids,
            in_hosts_mounts: self.are_hosts(process.namespace("mnt")?),
            in_container,
            cgroup_owner: cgroup.owner()?,
        };
        let is_it = match facts.must_run() {
            None => false,
            Some(MustRun::FileOfRoot) => is_roots(&process.exe_file()?),
            // A user's file is not looked at where its file system may not answer.
            Some(MustRun::InstalledFile) => match installed(&exe) {
                None => false,
                Some(installed) => {
                    let file = process.exe_file()?;
                    is_roots(&file) && identity(&file) == identity(&installed)
                }
            },
        };
        let (start, name) = (process.start_ticks()?, escape(name.as_bytes(), 64));
        Ok(is_it.then_some(EngineProcess { pid, start, name }))
    }
}

fn is_roots(file: &Statx) -> bool {
    only_root_writes(file.stx_uid, file.stx_gid, file.stx_mode.into())
}

fn identity(file: &Statx) -> (u32, u32, u64) {
    (file.stx_dev_major, file.stx_dev_minor, file.stx_ino)
}

/// Returns a process whose program the kernel does not show to us, if it has an engine's name.
fn by_name(pid: Pid) -> io::Result<Option<EngineProcess>> {
    let look = || -> io::Result<_> {
        let process = OpenProcess::open(pid)?;
        Ok((process.comm()?, process.start_ticks()?))
    };
    match look() {
        Ok((comm, start)) => Ok(is_engine_comm(&comm).then(|| {
            let name = escape(&comm, 64);
            EngineProcess { pid, start, name }
        })),
        Err(error) if process::is_gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns the file with this path in the mount namespace of PID 1, if its folder is root's. In a
/// mount namespace of its own, a process can show any file under any path.
fn installed(exe: &[u8]) -> Option<Statx> {
    let path = Path::new(OsStr::from_bytes(exe));
    let (folder, name) = (path.parent()?.strip_prefix("/").ok()?, path.file_name()?);
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // A running program keeps its folders in the kernel's cache. Without CACHED, a user could lead
    // us to a file system that does not answer.
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::CACHED;
    let look = || -> rustix::io::Result<(Statx, Statx)> {
        // Ours, if that of PID 1 is not shown to us.
        let (mode, follow) = (Mode::empty(), OFlags::PATH | OFlags::CLOEXEC);
        let root = openat(CWD, "/proc/1/root", follow, mode)
            .or_else(|_| openat(CWD, "/", follow, mode))?;
        let folder = openat2(&root, folder, flags, mode, resolve)?;
        let file = openat2(&folder, name, flags, mode, resolve)?;
        let stat = |fd| {
            let how = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
            statx(fd, "", how, StatxFlags::BASIC_STATS)
        };
        Ok((stat(&folder)?, stat(&file)?))
    };
    let (folder, file) = look().ok()?;
    is_roots(&folder).then_some(file)
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
        installed(path.as_os_str().as_bytes()).map(|file| file.stx_ino)
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
        for bad in ["", "/", "sleep", "/usr/bin/sleep (deleted)", "/../bin/sleep"] {
            assert_eq!(inode(Path::new(bad)), None, "{bad}");
        }
    }
}
