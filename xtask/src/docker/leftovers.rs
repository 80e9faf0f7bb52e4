//! Removes what a private engine may leave behind: processes, mounts, files, cgroups.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::program;

/// The cgroups named `docker` that were not there before the engine started.
pub struct EngineCgroups(Vec<PathBuf>);

impl EngineCgroups {
    /// Records which ones do not exist yet: a private engine will create those.
    pub fn now() -> Result<Self> {
        let mounts =
            fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
        let docker = cgroup_mounts(&mounts).into_iter().map(|mount| mount.join("docker"));
        Ok(Self(docker.filter(|cgroup| !cgroup.exists()).collect()))
    }
}

/// Ends the processes that name `folder`, unmounts everything below it, and removes it and the
/// engine's cgroups.
pub fn remove(folder: &Path, cgroups: &EngineCgroups) -> Result<()> {
    end_processes(folder)?;
    unmount(folder)?;
    fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    for cgroup in cgroups.0.iter().filter(|cgroup| cgroup.exists()) {
        remove_cgroup(cgroup)?;
    }
    Ok(())
}

/// Ends processes with the folder in their command line. Only the engine's own helpers have it there.
fn end_processes(folder: &Path) -> Result<()> {
    for signal in [Signal::TERM, Signal::KILL] {
        for _ in 0..50 {
            let pids = processes_naming(folder)?;
            if pids.is_empty() {
                return Ok(());
            }
            for pid in pids {
                send(pid, folder, signal);
            }
            sleep(Duration::from_millis(100));
        }
    }
    bail!("processes that name {} do not end", folder.display())
}

fn processes_naming(folder: &Path) -> Result<Vec<Pid>> {
    let entries = fs::read_dir("/proc").context("cannot list /proc")?;
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(pids.filter_map(Pid::from_raw).filter(|pid| names(*pid, folder)).collect())
}

fn names(pid: Pid, folder: &Path) -> bool {
    let folder = folder.as_os_str().as_encoded_bytes();
    fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero()))
        .is_ok_and(|words| words.windows(folder.len()).any(|part| part == folder))
}

/// Sends a signal through a pidfd, and checks the process again after opening it, because a pid can
/// be reused.
fn send(pid: Pid, folder: &Path, signal: Signal) {
    if let Ok(handle) = pidfd_open(pid, PidfdFlags::empty())
        && names(pid, folder)
    {
        // Fails if the process has already ended, which is fine.
        let _ = pidfd_send_signal(handle, signal);
    }
}

fn unmount(folder: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
    // In reverse, because a later mount may be below an earlier one.
    for point in mount_points(&mounts).iter().rev().filter(|point| point.starts_with(folder)) {
        program::quietly(Command::new("umount").arg(point))?;
    }
    Ok(())
}

/// Removes an empty tree of cgroups, children first. Returns an error that names the first cgroup
/// that still has a process.
fn remove_cgroup(cgroup: &Path) -> Result<()> {
    let entries =
        fs::read_dir(cgroup).with_context(|| format!("cannot list {}", cgroup.display()))?;
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        remove_cgroup(&entry.path())?;
    }
    fs::remove_dir(cgroup).with_context(|| format!("cannot remove cgroup {}", cgroup.display()))
}

fn mount_points(mountinfo: &str) -> Vec<PathBuf> {
    mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect()
}

/// Returns the mount points of cgroup hierarchies, of both versions.
pub fn cgroup_mounts(mountinfo: &str) -> Vec<PathBuf> {
    let lines = mountinfo.lines();
    let cgroups = lines.filter(|line| line.contains(" - cgroup ") || line.contains(" - cgroup2 "));
    cgroups.flat_map(mount_points).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
30 25 0:26 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
31 25 0:27 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
32 25 0:28 / /proc rw - proc proc rw
";

    #[test]
    fn both_versions_of_cgroup_mounts_are_found() {
        let expected = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup/unified"].map(PathBuf::from);
        assert_eq!(cgroup_mounts(MOUNTS), expected);
    }

    #[test]
    fn a_tree_is_removed_children_first() {
        let root = tempfile::tempdir().unwrap();
        let tree = root.path().join("docker");
        fs::create_dir_all(tree.join("a/b")).unwrap();
        remove_cgroup(&tree).unwrap();
        assert!(!tree.exists());
    }
}
