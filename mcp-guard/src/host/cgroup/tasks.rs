//! Counts the tasks of a cgroup that have not stopped, or not ended. The loop's thread counts, so a
//! count takes a bounded time.

use std::{fmt, io, time::Duration};

use mcp_guard_core::id::Pid;

use super::{Dir, dir::MAX_PROCS};
use crate::host::{clock, process};

/// Longest time of one count. A task takes about 10 us.
const LONGEST: Duration = Duration::from_millis(20);

/// The list of the tasks in a cgroup.
pub(super) const THREADS: &str = "cgroup.threads";

/// A number of tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskCount {
    pub least: u64,
    /// False if the count had to end early.
    pub is_exact: bool,
}

impl fmt::Display for TaskCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { least, is_exact } = self;
        if *least == 0 && !is_exact {
            return f.write_str("an unknown number of tasks");
        }
        let at_least = if *is_exact { "" } else { "at least " };
        let tasks = if *least == 1 { "task" } else { "tasks" };
        write!(f, "{at_least}{least} {tasks}")
    }
}

impl Dir {
    /// Counts the tasks in this cgroup and below it.
    #[must_use]
    pub fn tasks(&self) -> TaskCount {
        self.each_task(THREADS, |_| true)
    }

    /// Counts the tasks that a freeze has not stopped. A freeze wakes every sleeping task, which then
    /// sleeps again once it is frozen. What runs, or cannot be woken (state D), is not frozen yet.
    #[must_use]
    pub fn unstopped_tasks(&self) -> TaskCount {
        self.each_task(THREADS, |task| matches!(process::state(task), Some(b'R' | b'D')))
    }

    /// Counts the tasks in a list, here and below, for which a function returns true.
    pub(super) fn each_task(&self, list: &str, mut counts: impl FnMut(Pid) -> bool) -> TaskCount {
        let end = clock::now().after(LONGEST);
        let in_time = || clock::now() < end;
        let mut least = 0;
        let walked = self.walk("", &mut |dir, _| {
            if !in_time() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let tasks = match dir.listed(list, MAX_PROCS) {
                // A threaded cgroup in the wrong place lists nothing, and has no task.
                Err(error) if has_none(&error) => Vec::new(),
                tasks => tasks?,
            };
            for task in tasks {
                least += u64::from(counts(task));
                if !in_time() {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
            Ok(())
        });
        TaskCount { least, is_exact: walked.is_ok() }
    }
}

fn has_none(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENODEV | libc::ENOENT))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::fd::OwnedFd};

    use super::*;

    #[test]
    fn tasks_of_all_cgroups_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("a")).unwrap();
        fs::write(folder.path().join("cgroup.threads"), "7\n8\n").unwrap();
        fs::write(folder.path().join("a/cgroup.threads"), "9\n").unwrap();
        let dir = Dir::from(OwnedFd::from(fs::File::open(folder.path()).unwrap()));
        assert_eq!(dir.tasks().to_string(), "3 tasks");
        fs::remove_file(folder.path().join("cgroup.threads")).unwrap();
        assert_eq!(dir.tasks().to_string(), "1 task");
    }

    #[test]
    fn a_list_that_cannot_be_read_makes_a_lower_bound() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("a/cgroup.threads")).unwrap();
        fs::write(folder.path().join("cgroup.threads"), "7\n").unwrap();
        let dir = Dir::from(OwnedFd::from(fs::File::open(folder.path()).unwrap()));
        assert_eq!(dir.tasks().to_string(), "at least 1 task");
    }

    #[test]
    fn a_count_that_takes_too_long_is_a_lower_bound() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("cgroup.threads"), "7\n8\n9\n").unwrap();
        let dir = Dir::from(OwnedFd::from(fs::File::open(folder.path()).unwrap()));
        let slow = |_| {
            std::thread::sleep(LONGEST);
            true
        };
        assert_eq!(dir.each_task(THREADS, slow).to_string(), "at least 1 task");
        let none = |task| !slow(task);
        assert_eq!(dir.each_task(THREADS, none).to_string(), "an unknown number of tasks");
    }
}
