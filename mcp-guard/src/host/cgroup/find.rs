//! Opens a cgroup by its path, by a process in it, or by a directory that a walk found.

use std::{
    ffi::OsStr,
    io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use mcp_guard_core::{
    container::{container_in, payload_below},
    escape::{cgroup_path, is_cgroup_path},
    id::Pid,
    incident::Hold,
};
use rustix::fs::{CWD, Mode, OFlags, openat};

use super::{Cgroup, Dir, pids::Pids};
use crate::host::{
    layout::Layout,
    process::{OpenProcess, pidfd, still_runs},
};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no cgroup2 tree is mounted on this host; see `mcp-guard doctor`")]
    NoUnified,
    #[error("cannot open cgroup {path}: {source}")]
    Open { path: String, source: io::Error },
    #[error("cannot read process {pid}: {source}")]
    Process { pid: Pid, source: io::Error },
    #[error("cgroup {path} cannot be named by this path; name a process in it with pid:N instead")]
    Unnameable { path: String },
    #[error("process {pid} ended or moved while its cgroup was looked up; try again")]
    Moved { pid: Pid },
    #[error("process {pid} is in cgroup {path}, which is not the cgroup of container {container}")]
    NotTheContainer { pid: Pid, path: String, container: String },
}

impl Cgroup {
    /// Opens a cgroup by its path in the unified tree. On a hybrid host the pids directory is found
    /// through a process in the cgroup, and stays unknown while the cgroup is empty.
    ///
    /// # Errors
    /// If it does not exist, if the path cannot be that of a cgroup, or if the host has no unified
    /// tree.
    pub fn open(layout: &Layout, path: &str) -> Result<Self, Error> {
        if !is_cgroup_path(path) {
            return Err(Error::Unnameable { path: show(Path::new(path)) });
        }
        let dir = open_unified(layout, Path::new(path))?;
        let mut cgroup = Self::hold(dir, path.to_owned())?;
        cgroup.find_pids(layout);
        Ok(cgroup)
    }

    /// Opens the cgroup of a process. Both directories come from one read of `/proc/PID/cgroup`,
    /// and the process must be alive before and after. With `container`, opens the container's own
    /// cgroup: the process may be below it.
    ///
    /// # Errors
    /// If the process is gone, moved, or is not in that container.
    pub fn of_process(layout: &Layout, pid: Pid, container: Option<&str>) -> Result<Self, Error> {
        let alive = pidfd(pid).map_err(|source| Error::Process { pid, source })?;
        let places = OpenProcess::open(pid)
            .and_then(|process| process.membership())
            .map_err(|source| Error::Process { pid, source })?;
        let unified = places.unified().ok_or(Error::NoUnified)?;
        let unified = trim(pid, unified, container)?;
        let dir = open_unified(layout, &unified)?;
        let mut cgroup = Self::hold(dir, show(&unified))?;
        match &layout.pids {
            Some(tree) if tree.v1 => {
                if let Some(path) = places.v1_pids() {
                    let dir = open_below(&tree.mount, &trim(pid, path, container)?)?;
                    cgroup.pids = Some(Pids { dir, v1: true });
                }
            }
            Some(_) => cgroup.find_pids(layout),
            None => {}
        }
        if still_runs(&alive) { Ok(cgroup) } else { Err(Error::Moved { pid }) }
    }

    fn hold(dir: Dir, path: String) -> Result<Self, Error> {
        let id = dir.id().map_err(|source| Error::Open { path: path.clone(), source })?;
        Ok(Self { dir, id, path, pids: None })
    }

    /// Opens the root of the tree that has the marks of each kind of hold.
    ///
    /// # Errors
    /// If a mounted tree cannot be opened.
    pub fn roots(layout: &Layout) -> io::Result<Vec<(Hold, Self)>> {
        let mut roots = Vec::new();
        let freeze = layout.unified.as_ref().map(|mount| (Hold::Freeze, mount));
        let clamp = layout.pids.as_ref().map(|tree| (Hold::Clamp, &tree.mount));
        for (slot, mount) in freeze.into_iter().chain(clamp) {
            let dir = open_below(mount, Path::new("/")).map_err(io::Error::other)?;
            roots.push((slot, Self::hold(dir, "/".to_owned()).map_err(io::Error::other)?));
        }
        Ok(roots)
    }

    /// Makes a cgroup of a directory that was found by a walk in the tree of `hold`.
    ///
    /// # Errors
    /// If it is gone.
    pub fn at(dir: &Dir, path: &str, hold: Hold, layout: &Layout) -> io::Result<Self> {
        let mut cgroup = Self::hold(dir.try_clone()?, path.to_owned()).map_err(io::Error::other)?;
        if hold == Hold::Clamp {
            let v1 = layout.pids.as_ref().is_some_and(|tree| tree.v1);
            cgroup.pids = Some(Pids { dir: dir.try_clone()?, v1 });
        }
        Ok(cgroup)
    }

    /// Whether an engine pauses its container through the freeze of this cgroup: it is the
    /// container's own cgroup, and the payload is not in a cgroup below it.
    #[must_use]
    pub fn is_where_an_engine_pauses(&self) -> bool {
        container_in(&self.path).is_some_and(|found| found.path == self.path)
            && !payload_below(&self.path).is_some_and(|name| self.dir.has(name))
    }

    /// Finds the pids directory if it is not known yet: on a hybrid host the cgroup may have been
    /// empty before, and in version 2 the controller may have been enabled since.
    pub fn find_pids(&mut self, layout: &Layout) {
        let Some(tree) = layout.pids.as_ref().filter(|_| self.pids.is_none()) else { return };
        if !tree.v1 {
            // A cgroup has the file only if its parent enables the controller for its children.
            if self.dir.has("pids.max") {
                self.pids = self.dir.try_clone().ok().map(|dir| Pids { dir, v1: false });
            }
            return;
        }
        // Only its own processes can show it, and there may be thousands of cgroups below. A few will do, and
        // those that move away meanwhile must not keep the loop busy.
        for pid in self.dir.first_processes().unwrap_or_default() {
            if let Ok(Self { id, pids: Some(pids), .. }) = Self::of_process(layout, pid, None)
                && id == self.id
            {
                self.pids = Some(pids);
                return;
            }
        }
    }
}

fn open_unified(layout: &Layout, path: &Path) -> Result<Dir, Error> {
    open_below(layout.unified.as_ref().ok_or(Error::NoUnified)?, path)
}

/// Opens a directory below a mount point without following links or leaving the mount.
fn open_below(mount: &Path, path: &Path) -> Result<Dir, Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, mount, flags, Mode::empty()).map_err(io::Error::from);
    let opened = root.and_then(|root| Dir::from(root).below(path));
    opened.map_err(|source| Error::Open { path: show(path), source })
}

/// Returns the container's own part of a process's cgroup path. Without a container, returns the
/// whole path.
fn trim(pid: Pid, path: &[u8], container: Option<&str>) -> Result<PathBuf, Error> {
    let Some(id) = container else { return Ok(OsStr::from_bytes(path).into()) };
    // Bytes that are not UTF-8 are below the container's own cgroup, because a container can give
    // its cgroups any name.
    let text = path.utf8_chunks().next().map_or("", |chunk| chunk.valid());
    let is_whole = |own: &str| matches!(path.get(own.len()), None | Some(b'/'));
    match container_in(text) {
        Some(found) if found.id == id && is_whole(found.path) => Ok(found.path.into()),
        _ => Err(Error::NotTheContainer { pid, path: cgroup_path(path), container: id.to_owned() }),
    }
}

fn show(path: &Path) -> String {
    cgroup_path(path.as_os_str().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_a_container_gives_its_cgroups_lead_to_no_other_cgroup() {
        let id = "0123456789abcdef".repeat(4);
        let own = format!(r"/a\x2db.slice/docker-{id}.scope");
        let found = |below: &[u8]| trim(Pid(7), &[own.as_bytes(), below].concat(), Some(&id)).ok();
        for below in [&b""[..], b"/init.scope", b"/\xff", b"/a\xff/b"] {
            assert_eq!(found(below), Some(PathBuf::from(&own)));
        }
        let bare = format!("/docker/{id}");
        assert!(trim(Pid(7), &[bare.as_bytes(), b"\xff"].concat(), Some(&id)).is_err());
        assert!(trim(Pid(7), own.as_bytes(), Some(&"f".repeat(64))).is_err());
    }
}
