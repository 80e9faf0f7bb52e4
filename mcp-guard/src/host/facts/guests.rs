//! Finds whole guests: system containers and virtual machines.

use std::io;

use mcp_guard_core::{
    id::{Pid, Ticks},
    refusal::Guest,
};

use super::{is_made_by_the_host, outside::Outside};
use crate::host::{
    cgroup::Dir,
    process::{self, OpenProcess},
};

/// Most guests that are remembered.
const MAX_GUESTS: usize = 64;

/// The guests in a cgroup, and the one that the cgroup is in.
pub struct Guests {
    /// The path of the cgroup.
    whole: String,
    found: Vec<GuestsSeen>,
    /// The path of the latest guest, and whether the host made it. Most often, its cgroups are visited one
    /// after the other.
    latest: Option<(String, bool)>,
}

struct GuestsSeen {
    guest: Guest,
    /// Whether `guest` names its init.
    is_init: bool,
}

impl Guests {
    pub fn of(whole: &str) -> Self {
        Self { whole: whole.to_owned(), found: Vec::new(), latest: None }
    }

    /// Whether the whole of a guest is inside the cgroup.
    pub fn is_inside(&self, guest: &str) -> bool {
        guest.len() >= self.whole.trim_end_matches('/').len()
    }

    /// Comes to a cgroup at `path` that is `guest` or below it, or is in no guest.
    pub fn enter(&mut self, guest: Option<&str>, dir: &Dir, path: &str) -> io::Result<()> {
        let is_known = |(latest, _): &(String, bool)| Some(latest.as_str()) == guest;
        if !self.latest.as_ref().is_some_and(is_known) {
            let is_hosts = guest.map(|guest| is_made_by_the_host(dir, path, guest)).transpose()?;
            self.latest = guest.map(str::to_owned).zip(is_hosts);
        }
        Ok(())
    }

    /// Looks at a process of the present cgroup.
    pub fn process(&mut self, pid: Pid, outside: &Outside<'_>) -> io::Result<()> {
        let Some((guest, is_hosts)) = &self.latest else { return Ok(()) };
        let known = self.found.iter().find(|seen| seen.guest.path == *guest);
        if known.is_some_and(|seen| seen.is_init) {
            return Ok(());
        }
        // Any process names it until its init is found, the lowest pid so that the name stays.
        let is_better = known.is_none_or(|seen| pid < seen.guest.pid);
        let look = || -> io::Result<(bool, Ticks)> {
            let process = OpenProcess::open(pid)?;
            Ok((process.is_init_below()?, process.start_ticks()?))
        };
        let (is_init, start) = match look() {
            Ok(looked) => looked,
            Err(error) if process::is_gone(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        let is_one = *is_hosts || (is_init && outside.started(pid)?);
        if is_one && (is_init || is_better) {
            self.found.retain(|seen| seen.guest.path != *guest);
            if self.found.len() < MAX_GUESTS {
                let guest = Guest { path: guest.clone(), pid, start };
                self.found.push(GuestsSeen { guest, is_init });
            }
        }
        Ok(())
    }

    /// A part of a guest is the guest only if its init is there.
    pub fn found(self) -> Vec<Guest> {
        let whole = self.whole.trim_end_matches('/').len();
        let is_one = |seen: &GuestsSeen| seen.is_init || seen.guest.path.len() >= whole;
        self.found.into_iter().filter(is_one).map(|seen| seen.guest).collect()
    }
}
