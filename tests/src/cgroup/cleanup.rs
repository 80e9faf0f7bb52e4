//! Takes a scratch cgroup away again, whatever the test left in it.

use super::events::Events;
use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Generous: killing a full fixture takes milliseconds, on a loaded machine a second or two.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn clear(unified: &Path, pids: &Path) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    // A nested fixture that outlives its parent finds its work done.
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
        fs::write(dir.join("cgroup.freeze"), "0").context("thaw")?;
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

/// Processes which sit in the v1 tree alone: a test moved them, or they were born into another v2
/// cgroup.
fn kill_leftovers(top: &Path, end: Instant) -> Result<()> {
    for dir in deepest_first(top)? {
        while let Some(&pid) = members(&dir)?.first() {
            if Instant::now() >= end {
                bail!("{}: process {pid} does not die", dir.display());
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
    // The number may have been reused between the listing and the open; the list read now tells.
    if !members(dir)?.contains(&pid) {
        return Ok(());
    }
    match pidfd_send_signal(&pidfd, Signal::KILL) {
        Err(Errno::SRCH) => return Ok(()),
        other => other.context("SIGKILL")?,
    }
    let left = Timespec::try_from(end.saturating_duration_since(Instant::now()))?;
    poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)).context("poll of a pidfd")?;
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
                // The last exit is still being accounted; the kernel has no event for its end.
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
