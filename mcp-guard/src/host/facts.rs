//! The facts that [`mcp_guard_core::refusal`] judges, read again each time.

mod guests;
mod program;

use std::{collections::BTreeSet, fs, io};

use mcp_guard_core::{
    container::{InPath, container_in},
    escape::cgroup_path,
    id::Pid,
    refusal::{
        BystanderFacts, guest_in, is_kept_for_the_host, is_login_or_init, is_named_login_or_init,
        refusal_by_place,
    },
};

use self::{guests::Guests, program::Programs};
use super::{
    cgroup::{Cgroup, Dir, MAX_PROCS},
    proc::membership::Membership,
    process::{self, Namespace, OpenProcess},
};

/// The attribute with which systemd's PID 1 marks the cgroups of units. Only a process with
/// `CAP_SYS_ADMIN` can set it.
const INVOCATION: &str = "trusted.invocation_id";
/// Most engines that are remembered.
const MAX_ENGINES: usize = 64;

/// Reads what the place of the cgroup does not decide alone only if it must.
///
/// # Errors
/// If the cgroup is gone, or if a process or cgroup in it cannot be read.
pub fn gather(cgroup: &Cgroup) -> io::Result<BystanderFacts> {
    let facts = BystanderFacts {
        path: cgroup.path().to_owned(),
        own: path_of("self")?,
        init: path_of("1").ok(),
        ..BystanderFacts::default()
    };
    if refusal_by_place(&facts).is_some() {
        return Ok(facts);
    }
    let mut look = Look {
        is_container: container_in(cgroup.path()).is_some(),
        programs: Programs::new()?,
        guests: Guests::of(cgroup.path()),
        facts,
        latest: None,
        mounts: BTreeSet::new(),
        is_below: false,
    };
    cgroup.walk_populated(&mut |dir, path| look.at(dir, path))?;
    Ok(BystanderFacts { guests: look.guests.found(), ..look.facts })
}

/// Whether the host made the cgroup `made`. `dir` is that of `path`, which is `made` or below it.
fn is_made_by_the_host(dir: &Dir, path: &str, made: &str) -> io::Result<bool> {
    let below = path[made.len()..].matches('/').count();
    let parent = made.rsplit_once('/').map_or("", |(parent, _)| parent);
    Ok(is_kept_for_the_host(parent, dir.owner_above(below + 1)?))
}

fn path_of(pid: &str) -> io::Result<String> {
    let membership = Membership::new(fs::read(format!("/proc/{pid}/cgroup"))?);
    let unified = membership.unified().unwrap_or_default();
    Ok(cgroup_path(unified).trim_end_matches('/').to_owned())
}

/// A container below the cgroup. Its cgroups are visited one after the other.
struct Latest {
    id: String,
    /// It need not be looked at any more.
    is_decided: bool,
}

struct Look {
    facts: BystanderFacts,
    /// The cgroup is, or is in, that of a container: all below it belongs to that container.
    is_container: bool,
    programs: Programs,
    guests: Guests,
    latest: Option<Latest>,
    /// Mount namespaces of containers below the cgroup.
    mounts: BTreeSet<Namespace>,
    /// The first cgroup was visited.
    is_below: bool,
}

impl Look {
    fn at(&mut self, dir: &Dir, path: &str) -> io::Result<()> {
        let pids = match dir.own_processes(MAX_PROCS) {
            // The kernel does not list the processes of a threaded cgroup. If one is below this
            // cgroup, the domain above it lists them, so only the first cgroup must answer.
            Err(error) if self.is_below && error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                Vec::new()
            }
            read => read?,
        };
        self.is_below = true;
        let container = container_in(path);
        let guest = guest_in(path);
        if let Some(guest) = guest {
            self.guests.at(guest, dir, path, &pids)?;
        }
        // A container or a guest may run its own systemd: cgroups below it belong to it.
        let is_guests = guest.is_some_and(|guest| self.guests.is_inside(guest));
        let is_named = !is_guests && container.is_none() && is_named_login_or_init(path);
        if is_named && self.facts.login_or_init.is_none() {
            let is_one = is_login_or_init(path, dir.carries(INVOCATION)?);
            self.facts.login_or_init = is_one.then(|| path.to_owned());
        }
        if let Some(container) = container.filter(|_| !self.is_container && !is_guests) {
            self.container(container, dir, path, &pids)?;
        }
        self.facts.holds_pid_1 |= pids.contains(&Pid(1));
        self.facts.holds_the_agent |= pids.contains(&process::this());
        // The kernel shows 0 for a process of another pid namespace.
        for pid in pids.into_iter().filter(|pid| *pid != Pid(0)) {
            let Some(engine) = self.programs.engine(pid, dir, container.is_some())? else {
                continue;
            };
            if self.facts.engines.len() < MAX_ENGINES {
                self.facts.engines.push(engine);
            }
        }
        Ok(())
    }

    /// Counts a container by its mount namespace, once: each container has its own, and a directory
    /// that only has the name of one has not. The host must have made its cgroup, whoever owns it now.
    fn container(
        &mut self,
        container: InPath<'_>,
        dir: &Dir,
        path: &str,
        pids: &[Pid],
    ) -> io::Result<()> {
        let InPath { id, path: own } = container;
        if self.latest.as_ref().is_none_or(|latest| latest.id != id) {
            let is_decided = !is_made_by_the_host(dir, path, own)?;
            self.latest = Some(Latest { id: id.to_owned(), is_decided });
        }
        let Some(latest) = self.latest.as_mut().filter(|latest| !latest.is_decided) else {
            return Ok(());
        };
        for pid in pids {
            match OpenProcess::open(*pid).and_then(|process| process.namespace("mnt")) {
                Ok(mounts) if self.programs.are_hosts(mounts) => continue,
                Ok(mounts) => self.facts.containers += usize::from(self.mounts.insert(mounts)),
                Err(error) if process::is_gone(&error) => continue,
                // It may have its own.
                Err(_) => self.facts.containers += 1,
            }
            latest.is_decided = true;
            break;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::OwnedFd};

    use mcp_guard_core::incident::Hold;

    use super::*;
    use crate::host::layout::{Layout, LayoutKind};

    #[test]
    fn the_root_is_judged_without_a_look_at_what_it_contains() {
        let folder = tempfile::tempdir().unwrap();
        let dir = Dir::from(OwnedFd::from(File::open(folder.path()).unwrap()));
        let layout =
            Layout { kind: LayoutKind::Unified, unified: None, pids: None, nsdelegate: None };
        let cgroup = |path: &str| Cgroup::at(&dir, path, Hold::Freeze, &layout).unwrap();
        assert!(gather(&cgroup("/x")).is_err(), "it has no list of processes");
        let root = gather(&cgroup("/")).unwrap();
        assert!(refusal_by_place(&root).is_some());
    }
}
