//! Removes a scratch cgroup with everything that a test left in it.

use super::events::Events;
use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Generous: killing a full fixture takes milliseconds, or a second or two on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn clear(unified: &Path, pids: &Path) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    // If a nested fixture outlives its parent, the parent has already removed it.
    if unified.exists() {
        empty_unified(unified, end)?;
        remove(unified, end)?;
    }
    if pids != unified && pids.exists() {
        kill_leftovers(pids, end)?;
        remove(pids, end)?;
    }
    Ok(())
}

fn empty_unified(top: &Path, end: Instant) -> Result<()> {
    let events = Events::open(top)?;
    for dir in deepest_first(top)? {
        fs::write(dir.join("cgroup.freeze"), "0").context("cannot thaw the cgroup")?;
    }
    fs::write(top.join("cgroup.kill"), "1").context("cgroup.kill")?;
    while events.is_set("populated")? {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("{}: still populated after cgroup.kill", top.display());
        }
        events.wait(left)?;
    }
    Ok(())
}

/// Kills processes that are only in the v1 tree: a test moved them, or they were created directly
/// in another v2 cgroup.
fn kill_leftovers(top: &Path, end: Instant) -> Result<()> {
    for dir in deepest_first(top)? {
        while let Some(&pid) = members(&dir)?.first() {
            if Instant::now() >= end {
                bail!("{}: process {pid} does not end after SIGKILL", dir.display());
            }
            kill_member(&dir, pid, end)?;
        }
    }
    Ok(())
}

fn kill_member(dir: &Path, pid: i32, end: Instant) -> Result<()> {
    let pidfd = match pidfd_open(Pid::from_raw(pid).context("pid 0")?, PidfdFlags::empty()) {
        Err(Errno::SRCH) => return Ok(()),
        other => other.context("pidfd_open")?,
    };
    // The pid may have been reused between the listing and the open. Reading the list again shows
    // whether this process is a member.
    if !members(dir)?.contains(&pid) {
        return Ok(());
    }
    match pidfd_send_signal(&pidfd, Signal::KILL) {
        Err(Errno::SRCH) => return Ok(()),
        other => other.context("cannot send SIGKILL")?,
    }
    let left = Timespec::try_from(end.saturating_duration_since(Instant::now()))?;
    poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)).context("cannot poll a pidfd")?;
    Ok(())
}

pub(super) fn members(dir: &Path) -> Result<Vec<i32>> {
    let text = fs::read_to_string(dir.join("cgroup.procs")).context("cgroup.procs")?;
    text.lines().map(|line| line.parse().with_context(|| format!("pid {line}"))).collect()
}

fn remove(top: &Path, end: Instant) -> Result<()> {
    for dir in deepest_first(top)? {
        loop {
            match fs::remove_dir(&dir) {
                Ok(()) => break,
                Err(error) if error.kind() == ErrorKind::NotFound => break,
                // The kernel is still accounting for the last exit, and sends no event when it is done.
                Err(error) if error.kind() == ErrorKind::ResourceBusy && Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => return Err(error).context(dir.display().to_string()),
            }
        }
    }
    Ok(())
}

fn deepest_first(top: &Path) -> Result<Vec<PathBuf>> {
    let mut found = vec![top.to_path_buf()];
    let mut next = 0;
    while let Some(dir) = found.get(next).cloned() {
        for entry in fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                found.push(entry.path());
            }
        }
        next += 1;
    }
    found.reverse();
    Ok(found)
}
