//! The pids controller of a cgroup. cgroups-rs works through the descriptor that we hold, so that
//! its paths cannot be replaced meanwhile.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    path::PathBuf,
    time::Duration,
};

use cgroups_rs::fs::{MaxValue, pid::PidController};
use mcp_guard_core::{id::Pid, limit::Limit};

use super::{Cgroup, Dir, TaskCount, tasks::THREADS};
use crate::host::{cgroupfs::keyed, clock};

/// Longest time for adding up the refused forks.
const LONGEST: Duration = Duration::from_millis(20);

/// The directory with the `pids.max` of these processes: the cgroup's own, or one of the version 1
/// tree.
pub(super) struct Pids {
    pub(super) dir: Dir,
    pub(super) v1: bool,
}

/// A pids cgroup of version 1.
pub struct SharedPids(pub(in crate::host) Dir);

/// The pids cgroup of some processes, opened once more for a thread that counts its tasks.
pub struct ChargedTasks(Pids);

impl ChargedTasks {
    /// Returns `pids.current`: zombies count.
    ///
    /// # Errors
    /// If the cgroup is gone.
    pub fn current(&self) -> io::Result<u64> {
        self.0.current()
    }

    /// Counts the tasks that live. `each` is called for every one.
    pub fn living(&self, mut each: impl FnMut(Pid)) -> TaskCount {
        let list = if self.0.v1 { "tasks" } else { THREADS };
        self.0.dir.each_task(list, |task| {
            each(task);
            true
        })
    }
}

impl Pids {
    fn current(&self) -> io::Result<u64> {
        self.read("pids.current", |text| text.parse().ok())
    }

    /// Reads a file of one word. Each guard's are read every second, which cgroups-rs does by path and thrice.
    fn read<T>(&self, file: &str, parse: impl Fn(&str) -> Option<T>) -> io::Result<T> {
        let text = self.dir.read_word(file)?;
        parse(&text).ok_or_else(|| io::Error::other(format!("{file} cannot be parsed: {text}")))
    }
}

impl Cgroup {
    /// Returns the directory that has `pids.max`.
    #[must_use]
    pub fn pids_dir(&self) -> Option<BorrowedFd<'_>> {
        self.pids.as_ref().map(|pids| pids.dir.as_fd())
    }

    /// # Errors
    /// If there is no pids controller, or the cgroup is gone.
    pub fn pids_max(&self) -> io::Result<Limit> {
        self.pids.as_ref().ok_or_else(no_pids)?.read("pids.max", Limit::parse)
    }

    /// # Errors
    /// If there is no pids controller, or the cgroup is gone.
    pub fn set_pids_max(&self, limit: Limit) -> io::Result<()> {
        let value = match limit {
            Limit::Max => MaxValue::Max,
            Limit::Tasks(tasks) => MaxValue::Value(i64::try_from(tasks).unwrap_or(i64::MAX)),
        };
        self.pids_controller()?.set_pid_max(value).map_err(cause)
    }

    /// Returns the number of charged tasks, including threads and zombies.
    ///
    /// # Errors
    /// If there is no pids controller, or the cgroup is gone.
    pub fn pids_current(&self) -> io::Result<u64> {
        self.pids.as_ref().ok_or_else(no_pids)?.current()
    }

    /// Returns how many forks the limit of this cgroup has refused since it was created. Version 1,
    /// and version 2 before Linux 6.11, count a refusal in the cgroup that forked, no matter which
    /// limit refused it. There the counts of the cgroups below are added up, and include refusals
    /// by a limit above.
    ///
    /// # Errors
    /// If there is no pids controller, if the cgroup is gone, or if there are too many below it to be read
    /// by the loop.
    pub fn pids_denials(&self) -> io::Result<u64> {
        let pids = self.pids.as_ref().ok_or_else(no_pids)?;
        match pids.dir.read("pids.events.local") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            local => return refused(&local?),
        }
        let mut sum = 0;
        let end = clock::now().after(LONGEST);
        // A child without the file is charged and counted in the cgroup above it.
        pids.dir.walk("", &mut |dir, _| {
            sum += refused(&dir.read("pids.events")?)?;
            if clock::now() < end { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) }
        })?;
        Ok(sum)
    }

    /// Whether processes outside this cgroup may be in its pids cgroup. There can be none if that is the
    /// cgroup itself.
    #[must_use]
    pub fn may_share_pids(&self) -> bool {
        self.pids.as_ref().is_some_and(|pids| pids.v1)
    }

    /// Opens the pids cgroup once more, if [`Cgroup::may_share_pids`].
    ///
    /// # Errors
    /// If the process has no descriptors left.
    pub fn shared_pids(&self) -> io::Result<Option<SharedPids>> {
        let shared = self.pids.as_ref().filter(|pids| pids.v1);
        shared.map(|pids| pids.dir.try_clone().map(SharedPids)).transpose()
    }

    /// # Errors
    /// If there is no pids controller, or the process has no descriptors left.
    pub fn charged(&self) -> io::Result<ChargedTasks> {
        let Pids { dir, v1 } = self.pids.as_ref().ok_or_else(no_pids)?;
        Ok(ChargedTasks(Pids { dir: dir.try_clone()?, v1: *v1 }))
    }

    fn pids_controller(&self) -> io::Result<PidController> {
        let pids = self.pids.as_ref().ok_or_else(no_pids)?;
        // cgroups-rs creates missing files, so the directory must be that of a live cgroup.
        pids.dir.read("pids.current")?;
        let held = PathBuf::from(format!("/proc/self/fd/{}", pids.dir.as_raw_fd()));
        Ok(PidController::new(held, PathBuf::new(), !pids.v1))
    }
}

/// Returns the number of refused forks, which `pids.events` counts as "max".
fn refused(events: &str) -> io::Result<u64> {
    keyed(events, "max")
        .ok_or_else(|| io::Error::other("pids.events has no count of refused forks"))
}

fn no_pids() -> io::Error {
    io::Error::other("no pids controller is known for the cgroup")
}

/// Returns the errno, which cgroups-rs keeps in the error's source.
fn cause(error: cgroups_rs::fs::error::Error) -> io::Error {
    let errno = std::error::Error::source(&error)
        .and_then(|source| source.downcast_ref::<io::Error>())
        .and_then(io::Error::raw_os_error);
    errno.map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error)
}
