//! The facts that [`mcp_guard_core::refusal`] judges, read again each time.

mod program;

use std::{collections::BTreeSet, fs, io};

use mcp_guard_core::{
    container::container_in,
    escape::cgroup_path,
    id::Pid,
    refusal::{BystanderFacts, is_login_or_init, is_named_login_or_init, refusal_by_place},
};

use self::program::Programs;
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
        owner: cgroup.owner()?,
        programs: Programs::new()?,
        facts,
        latest: None,
        mounts: BTreeSet::new(),
        is_below: false,
    };
    cgroup.walk_populated(&mut |dir, path| look.at(dir, path))?;
    Ok(look.facts)
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
    owner: u32,
    programs: Programs,
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
        // A container may run its own systemd: cgroups below a container belong to it.
        let container = container_in(path);
        if container.is_none() && self.facts.login_or_init.is_none() && is_named_login_or_init(path)
        {
            let is_one = is_login_or_init(path, dir.carries(INVOCATION)?);
            self.facts.login_or_init = is_one.then(|| path.to_owned());
        }
        if let Some(container) = container.filter(|_| !self.is_container) {
            self.container(container.id, dir, &pids)?;
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
    /// that only has the name of one has not. Root or the owner of the whole must have made it.
    fn container(&mut self, id: &str, dir: &Dir, pids: &[Pid]) -> io::Result<()> {
        if self.latest.as_ref().is_none_or(|latest| latest.id != id) {
            let is_decided = ![0, self.owner].contains(&dir.owner()?);
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
