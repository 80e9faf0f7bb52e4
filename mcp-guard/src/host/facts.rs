//! The facts that [`mcp_guard_core::refusal`] judges, read again each time.

mod fuse;
mod guests;
mod outside;
mod program;
mod sharing;
mod thread;

use std::{collections::BTreeSet, fs, io};

use mcp_guard_core::{
    container::container_in,
    escape::cgroup_path,
    id::Pid,
    refusal::{
        BystanderFacts, guest_in, is_kept_for_the_host, is_login_or_init, is_named_login_or_init,
        refusal_by_place,
    },
};

use self::{
    fuse::FuseServers, guests::Guests, outside::Outside, program::Programs, sharing::SharingLook,
};
pub use self::{sharing::Sharing, thread::LookThread};
use super::{
    cgroup::{Cgroup, Dir, PopulatedWalk, SharedPids, WalkStep},
    proc::membership::Membership,
    process::{self, Namespace},
};

/// The attribute with which systemd's PID 1 marks the cgroups of units. Only a process with
/// `CAP_SYS_ADMIN` can set it.
const INVOCATION: &str = "trusted.invocation_id";
/// Most engines that are remembered.
const MAX_ENGINES: usize = 64;

/// The result of a look at a cgroup.
#[derive(Clone)]
pub struct LookFound {
    pub facts: BystanderFacts,
    pub sharing: Sharing,
}

/// The extent of a look at a cgroup.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct LookWanted {
    /// Which processes share the pids cgroup: for a limit.
    sharing: bool,
    /// Which process serves a FUSE file system: for a freeze.
    fuse: bool,
}

impl LookWanted {
    pub const FACTS: Self = Self { sharing: false, fuse: false };
    pub const SHARING: Self = Self { sharing: true, fuse: false };
    pub const FUSE: Self = Self { sharing: false, fuse: true };

    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { sharing: self.sharing || other.sharing, fuse: self.fuse || other.fuse }
    }
}

/// Reads all facts of a cgroup, however long that takes.
///
/// # Errors
/// If the cgroup is gone, or if a process or cgroup in it cannot be read.
pub fn gather(cgroup: &Cgroup) -> io::Result<BystanderFacts> {
    Ok(look_at(cgroup, LookWanted::FACTS)?.facts)
}

/// Looks at a cgroup, however long that takes.
///
/// # Errors
/// As for [`gather`].
pub fn look_at(cgroup: &Cgroup, wanted: LookWanted) -> io::Result<LookFound> {
    let mut look = Look::begin(cgroup, wanted)?;
    look.go_on(&|| true)?;
    Ok(look.into_found())
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

/// A container below the cgroup. Most often, its cgroups are visited one after the other.
struct Latest {
    id: String,
    /// The host made its cgroup. It does not matter who owns it now.
    is_hosts: bool,
    /// It need not be looked at any more.
    is_decided: bool,
}

/// A look at a cgroup, which may pause at any time and go on on another thread. It is never cut short: a
/// container may be as large as it likes, and then it is looked at for longer, not less.
pub struct Look {
    facts: BystanderFacts,
    /// `None` if the place of the cgroup decides alone.
    walk: Option<PopulatedWalk>,
    is_walked: bool,
    /// Processes of the present cgroup that were not looked at yet.
    pids: std::vec::IntoIter<Pid>,
    /// The present cgroup belongs to a container.
    in_container: bool,
    /// The cgroup is, or is in, that of a container: all below it belongs to that container.
    is_container: bool,
    programs: Programs,
    fuse: FuseServers,
    guests: Guests,
    latest: Option<Latest>,
    /// The ids of containers that need not be looked at any more.
    decided: BTreeSet<String>,
    /// Mount namespaces of containers below the cgroup.
    mounts: BTreeSet<Namespace>,
    wanted: LookWanted,
    /// The pids cgroup, if it may have processes from outside.
    pids_cgroup: Option<SharedPids>,
    /// The last part of the look, once it has begun.
    sharing_look: Option<SharingLook>,
    sharing: Sharing,
}

impl Look {
    /// # Errors
    /// If the cgroup is gone.
    pub fn begin(cgroup: &Cgroup, wanted: LookWanted) -> io::Result<Self> {
        let facts = BystanderFacts {
            path: cgroup.path().to_owned(),
            own: path_of("self")?,
            init: path_of("1").ok(),
            ..BystanderFacts::default()
        };
        let is_decided = refusal_by_place(&facts).is_some();
        let mut look = Self {
            facts,
            walk: None,
            is_walked: false,
            pids: Vec::new().into_iter(),
            in_container: false,
            is_container: container_in(cgroup.path()).is_some(),
            programs: Programs::new()?,
            fuse: FuseServers::default(),
            guests: Guests::of(cgroup.path()),
            latest: None,
            decided: BTreeSet::new(),
            mounts: BTreeSet::new(),
            wanted,
            pids_cgroup: cgroup.shared_pids()?,
            sharing_look: None,
            sharing: Sharing::NotLooked,
        };
        if !is_decided {
            look.walk = Some(cgroup.walk_populated()?);
            look.enter()?;
        }
        Ok(look)
    }

    /// Goes on for as long as `in_time` allows; it is asked after every few system calls. Returns whether
    /// the look is over.
    ///
    /// # Errors
    /// If the cgroup is gone, or if a process or cgroup in it cannot be read.
    pub fn go_on(&mut self, in_time: &dyn Fn() -> bool) -> io::Result<bool> {
        loop {
            if let Some(pid) = self.pids.next() {
                self.process(pid)?;
            } else if self.is_walked {
                let is_fuse_known = !self.wanted.fuse || self.fuse.step();
                if is_fuse_known && self.is_sharing_known()? {
                    return Ok(true);
                }
            } else {
                let Some(walk) = &mut self.walk else { return Ok(true) };
                match walk.step()? {
                    WalkStep::Entered => self.enter()?,
                    WalkStep::Again => {
                        self.forget();
                        self.enter()?;
                    }
                    WalkStep::Passed => {}
                    WalkStep::Over => self.is_walked = true,
                }
            }
            if !in_time() {
                return Ok(false);
            }
        }
    }

    /// Has it also look for this. It may have been over before.
    pub fn want(&mut self, wanted: LookWanted) {
        self.wanted = self.wanted.and(wanted);
    }

    /// Whether it looks for what is wanted.
    #[must_use]
    pub fn looks_for(&self, wanted: LookWanted) -> bool {
        self.wanted.and(wanted) == self.wanted
    }

    /// Looks at the next process that may share the pids cgroup. Returns whether there are no more.
    fn is_sharing_known(&mut self) -> io::Result<bool> {
        let (Some(walk), Some(pids)) = (&self.walk, &self.pids_cgroup) else { return Ok(true) };
        if !self.wanted.sharing {
            return Ok(true);
        }
        let look = match &mut self.sharing_look {
            Some(look) => look,
            None => {
                let begun = SharingLook::begin(walk.first().0, pids, walk.too_deep() > 0)?;
                self.sharing_look.insert(begun)
            }
        };
        let known = look.step()?;
        self.sharing = known.unwrap_or_default();
        Ok(known.is_some())
    }

    /// Returns what was found. It is complete if the look is over.
    #[must_use]
    pub fn into_found(self) -> LookFound {
        let (guests, fuse_server) = (self.guests.found(), self.fuse.found());
        let facts = BystanderFacts { guests, fuse_server, ..self.facts };
        LookFound { facts, sharing: self.sharing }
    }

    /// Forgets what was found so far.
    fn forget(&mut self) {
        let BystanderFacts { path, own, init, .. } = std::mem::take(&mut self.facts);
        self.guests = Guests::of(&path);
        self.fuse = FuseServers::default();
        self.facts = BystanderFacts { path, own, init, ..BystanderFacts::default() };
        self.latest = None;
        self.decided.clear();
        self.mounts.clear();
    }

    /// Looks at the cgroup that the walk has entered, and lists its processes.
    fn enter(&mut self) -> io::Result<()> {
        let Some(walk) = &mut self.walk else { return Ok(()) };
        let pids = walk.processes_here()?;
        let Some((dir, path)) = walk.here() else { return Ok(()) };
        let container = container_in(path);
        let guest = guest_in(path);
        self.guests.enter(guest, dir, path)?;
        // A container or a guest may run its own systemd: cgroups below it belong to it.
        let is_guests = guest.is_some_and(|guest| self.guests.is_inside(guest));
        let is_named = !is_guests && container.is_none() && is_named_login_or_init(path);
        if is_named && self.facts.login_or_init.is_none() {
            let is_one = is_login_or_init(path, dir.carries(INVOCATION)?);
            self.facts.login_or_init = is_one.then(|| path.to_owned());
        }
        self.in_container = container.is_some();
        match container.filter(|_| !self.is_container && !is_guests) {
            Some(container) if self.latest.as_ref().is_none_or(|one| one.id != container.id) => {
                let is_hosts = is_made_by_the_host(dir, path, container.path)?;
                let id = container.id.to_owned();
                let is_decided = self.decided.contains(&id);
                self.latest = Some(Latest { id, is_hosts, is_decided });
            }
            Some(_) => {}
            None => self.latest = None,
        }
        self.facts.holds_pid_1 |= pids.contains(&Pid(1));
        self.facts.holds_the_agent |= pids.contains(&process::this());
        *self.facts.processes.get_or_insert(0) += pids.len();
        self.pids = pids.into_iter();
        Ok(())
    }

    fn process(&mut self, pid: Pid) -> io::Result<()> {
        // The kernel shows 0 for a process of another pid namespace.
        if pid == Pid(0) {
            return Ok(());
        }
        let Some(walk) = &self.walk else { return Ok(()) };
        let Some((dir, _)) = walk.here() else { return Ok(()) };
        let outside = Outside { programs: &self.programs, whole: walk.first() };
        if let Some(latest) = self.latest.as_mut().filter(|latest| !latest.is_decided) {
            // Each container has a mount namespace of its own, and is counted by it, once. A directory
            // that only has the name of a container has none.
            let mounts = self.programs.mounts_of(pid);
            let is_contained = match &mounts {
                Ok(mounts) => !self.programs.are_hosts(*mounts),
                // It may have its own.
                Err(error) => !process::is_gone(error),
            };
            latest.is_decided = is_contained && (latest.is_hosts || outside.started(pid)?);
            if latest.is_decided {
                self.decided.insert(latest.id.clone());
            }
            if latest.is_decided && mounts.map_or(true, |mounts| self.mounts.insert(mounts)) {
                self.facts.containers += 1;
            }
        }
        self.guests.process(pid, &outside)?;
        self.fuse.note(pid);
        if let Some(engine) = self.programs.engine(pid, dir, self.in_container)?
            && self.facts.engines.len() < MAX_ENGINES
        {
            self.facts.engines.push(engine);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::OwnedFd};

    use mcp_guard_core::incident::Hold;

    use super::*;
    use crate::host::{cgroup::Dir, layout::Layout};

    #[test]
    fn the_root_is_judged_without_a_look_at_what_it_contains() {
        let folder = tempfile::tempdir().unwrap();
        let dir = Dir::from(OwnedFd::from(File::open(folder.path()).unwrap()));
        let layout = Layout::bare();
        let cgroup = |path: &str| Cgroup::at(&dir, path, Hold::Freeze, &layout).unwrap();
        assert!(gather(&cgroup("/x")).is_err(), "it has no list of processes");
        let root = gather(&cgroup("/")).unwrap();
        assert!(refusal_by_place(&root).is_some());
        assert_eq!(root.processes, None);
    }
}
