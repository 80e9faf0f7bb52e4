//! Finds a process outside a cgroup that shares its pids cgroup of version 1. A lower limit would hit it too.

use std::io;

use mcp_guard_core::{
    id::{Pid, Ticks},
    registry::ticks,
};
use rustix::fs::{CWD, Mode, OFlags, fstat, openat};

use crate::host::{
    cgroup::{Dir, MAX_PROCS, SharedPids, path_in_tree},
    clock,
    proc::membership::{Membership, is_inside},
    process::{self, OpenProcess},
};

/// Whether a limit of the pids cgroup would hit other processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sharing {
    #[default]
    NotLooked,
    Nobody,
    With(Pid),
}

/// A look at processes that may share a pids cgroup, one after the other. Each is asked itself in which cgroups
/// it is, in one read. So a process that moves is never taken for another, and what the cgroup lists may be old.
pub struct SharingLook {
    /// The paths of the pids cgroup and of the guard's own cgroup, each in its tree.
    limited: Vec<u8>,
    own: Vec<u8>,
    ahead: Ahead,
    /// There are cgroups in the guard that are nested too deep to be named.
    has_deep: bool,
}

enum Ahead {
    /// The processes that the pids cgroup lists; there is no cgroup below it.
    Listed(std::vec::IntoIter<Pid>),
    /// All processes of the host that started before a time. Cgroups of version 1 do not show where processes
    /// are, and somebody inside may make and rename them without end.
    All(rustix::fs::Dir, Ticks),
}

impl SharingLook {
    /// # Errors
    /// If a cgroup is gone, or the process has no descriptors left.
    pub fn begin(own: &Dir, SharedPids(limited): &SharedPids, has_deep: bool) -> io::Result<Self> {
        let listed = limited.own_processes(MAX_PROCS)?;
        // A directory without directories in it has two names. The list comes first: nobody is moved into a
        // cgroup that is made in between without being in the list.
        let ahead = if fstat(limited)?.st_nlink == 2 {
            Ahead::Listed(listed.into_iter())
        } else {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let all = rustix::fs::Dir::new(openat(CWD, "/proc", flags, Mode::empty())?)?;
            Ahead::All(all, ticks(clock::now()))
        };
        Ok(Self { limited: path_in_tree(limited)?, own: path_in_tree(own)?, ahead, has_deep })
    }

    /// Looks at the next process. `None` if there are more.
    ///
    /// # Errors
    /// If a process cannot be read.
    pub fn step(&mut self) -> io::Result<Option<Sharing>> {
        let pid = match &mut self.ahead {
            Ahead::Listed(listed) => listed.next(),
            Ahead::All(listing, began) => match listing.read() {
                None => None,
                Some(entry) => {
                    let name = entry?.file_name().to_str().ok().and_then(|name| name.parse().ok());
                    let is_old = |pid: &Pid| {
                        let start = OpenProcess::open(*pid).and_then(|one| one.start_ticks());
                        start.is_ok_and(|start| start <= *began)
                    };
                    match name.map(Pid).filter(is_old) {
                        None => return Ok(None),
                        old => old,
                    }
                }
            },
        };
        let Some(pid) = pid else { return Ok(Some(Sharing::Nobody)) };
        match self.is_bystander(pid) {
            // The kernel shows 0 for a process of another pid namespace.
            _ if pid == Pid(0) => Ok(None),
            Ok(is_one) => Ok(is_one.then_some(Sharing::With(pid))),
            Err(error) if process::is_gone(&error) => Ok(None),
            // The kernel names no cgroup that is so deep. A container makes them, and is not asked about those
            // of others.
            Err(error) if error.raw_os_error() == Some(libc::ENAMETOOLONG) => {
                let is_listed = matches!(self.ahead, Ahead::Listed(_));
                Ok((is_listed && !self.has_deep).then_some(Sharing::With(pid)))
            }
            Err(error) => Err(error),
        }
    }

    fn is_bystander(&self, pid: Pid) -> io::Result<bool> {
        let process = OpenProcess::open(pid)?;
        let places = process.membership()?;
        if is_inside(places.unified(), &self.own) {
            return Ok(false);
        }
        let stat = process.stat()?;
        if stat.ending {
            return Ok(false);
        }
        // Version 1 shows a thread that has ended in the root.
        let places = if stat.first_ends { process.membership_of_a_thread()? } else { places };
        Ok(self.is_hit(&places))
    }

    /// Whether a process in these cgroups is in the pids cgroup, but not in the guard.
    fn is_hit(&self, places: &Membership) -> bool {
        is_inside(places.v1_pids(), &self.limited) && !is_inside(places.unified(), &self.own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_process_outside_the_guard_in_its_pids_cgroup_is_hit() {
        let ahead = Ahead::Listed(Vec::new().into_iter());
        let (limited, own) = (b"/p/gw".to_vec(), b"/u/gw".to_vec());
        let look = SharingLook { limited, own, ahead, has_deep: false };
        for (pids, unified, is_hit) in [
            ("/p/gw", "/u/gw", false),
            ("/p/gw/a", "/u/gw/b", false),
            ("/p/gw", "/u/other", true),
            ("/p/gw/a", "/u", true),
            ("/p/gw2", "/u/other", false),
            ("/", "/u/other", false),
        ] {
            let places = Membership::new(format!("8:pids:{pids}\n0::{unified}\n").into_bytes());
            assert_eq!(look.is_hit(&places), is_hit, "{pids} {unified}");
        }
    }
}
