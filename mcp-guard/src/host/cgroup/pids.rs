//! The pids controller of a cgroup, through cgroups-rs over the descriptor that we hold: its paths then
//! cannot be replaced under us.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    path::PathBuf,
};

use cgroups_rs::fs::{MaxValue, pid::PidController};
use mcp_guard_core::{id::Pid, limit::Limit};

use super::{Cgroup, Dir};
use crate::host::cgroupfs::keyed;

/// Where `pids.max` of the same processes lies: the same directory, or one of the v1 tree.
pub(super) struct Pids {
    pub(super) dir: Dir,
    pub(super) v1: bool,
}

impl Cgroup {
    /// The directory that has `pids.max`.
    #[must_use]
    pub fn pids_dir(&self) -> Option<BorrowedFd<'_>> {
        self.pids.as_ref().map(|pids| pids.dir.as_fd())
    }

    /// # Errors
    /// There is no pids controller, or the cgroup is gone.
    pub fn pids_max(&self) -> io::Result<Limit> {
        match self.pids_controller()?.get_pid_max().map_err(cause)? {
            MaxValue::Max => Ok(Limit::Max),
            MaxValue::Value(tasks) => Ok(Limit::Tasks(u64::try_from(tasks).unwrap_or(0))),
        }
    }

    /// # Errors
    /// There is no pids controller, or the cgroup is gone.
    pub fn set_pids_max(&self, limit: Limit) -> io::Result<()> {
        let value = match limit {
            Limit::Max => MaxValue::Max,
            Limit::Tasks(tasks) => MaxValue::Value(i64::try_from(tasks).unwrap_or(i64::MAX)),
        };
        self.pids_controller()?.set_pid_max(value).map_err(cause)
    }

    /// Tasks charged, threads and zombies included.
    ///
    /// # Errors
    /// There is no pids controller, or the cgroup is gone.
    pub fn pids_current(&self) -> io::Result<u64> {
        self.pids_controller()?.get_pid_current().map_err(cause)
    }

    /// Forks refused by the limit of this cgroup, ever. Version 1, and version 2 before Linux 6.11,
    /// count a refusal in the cgroup that forked, whosever limit it was: then those of the cgroups
    /// below are added up, and refusals by a limit above are among them.
    ///
    /// # Errors
    /// There is no pids controller, or the cgroup is gone.
    pub fn pids_denials(&self) -> io::Result<u64> {
        let pids = self.pids.as_ref().ok_or_else(no_pids)?;
        match pids.dir.read("pids.events.local") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            local => return refused(&local?),
        }
        let mut sum = 0;
        // One below without the file is charged, and counted, above it.
        pids.dir.walk("", &mut |dir, _| {
            sum += refused(&dir.read("pids.events")?)?;
            Ok(())
        })?;
        Ok(sum)
    }

    /// Processes that share the pids directory; more than the guard's own means that a clamp would
    /// hit bystanders.
    ///
    /// # Errors
    /// There is no pids controller, or the cgroup is gone.
    pub fn pids_processes(&self) -> io::Result<Vec<Pid>> {
        self.pids.as_ref().ok_or_else(no_pids)?.dir.processes()
    }

    fn pids_controller(&self) -> io::Result<PidController> {
        let pids = self.pids.as_ref().ok_or_else(no_pids)?;
        // It creates files that are missing, so the directory must be a live cgroup's.
        pids.dir.read("pids.current")?;
        let held = PathBuf::from(format!("/proc/self/fd/{}", pids.dir.as_raw_fd()));
        Ok(PidController::new(held, PathBuf::new(), !pids.v1))
    }
}

/// `pids.events` counts refused forks as "max".
fn refused(events: &str) -> io::Result<u64> {
    keyed(events, "max").ok_or_else(|| io::Error::other("unreadable pids.events"))
}

fn no_pids() -> io::Error {
    io::Error::other("no pids controller is known for it")
}

/// cgroups-rs keeps the errno in its source.
fn cause(error: cgroups_rs::fs::error::Error) -> io::Error {
    let errno = std::error::Error::source(&error)
        .and_then(|source| source.downcast_ref::<io::Error>())
        .and_then(io::Error::raw_os_error);
    errno.map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error)
}
