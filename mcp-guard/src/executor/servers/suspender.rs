//! Suspends one server: moves its processes into a cgroup of their own and freezes it there, if it still waits for its
//! client and for nothing else. The warden wakes it.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mcp_guard_core::{
    Time,
    evidence::{Channels, StdioAtExec, at_work},
    id::Pid,
    registry::{Member, TreeId},
};

use super::{
    super::steps::mark_server,
    judge::{Handle, Judged, Spared, has_no_others},
};
use crate::{
    host::{
        cgroup::{ChildCgroup, ChildFiles, Dir},
        clock,
        evidence::{duplicate_channel, look},
        mark::Mark,
        process::{OpenProcess, is_gone},
    },
    warden::client::{HoldFds, Warden},
};

/// How long the kernel may take to stop all threads of a server. A request that arrives meanwhile waits.
const FREEZES: Duration = Duration::from_millis(200);
/// Most processes of a server that is suspended: the end of each is watched.
const MOST_PROCESSES: usize = 32;

/// A suspended server.
pub struct SuspendedServer {
    /// Its number at the warden.
    pub number: u64,
    pub server: TreeId,
    pub identity: String,
    pub root: Pid,
    pub since: Time,
    processes: Vec<OpenProcess>,
    pub child: ChildCgroup,
    /// The one that wakes it.
    pub warden: Arc<Warden>,
}

impl SuspendedServer {
    /// Moves its processes back to where they were, and forgets it.
    pub fn give_back(&self) -> io::Result<()> {
        let back = self.child.give_back();
        // If it cannot be told, it is gone.
        let _ = self.warden.release(self.number);
        back
    }

    /// Whether it runs, although nobody has reported it.
    #[must_use]
    pub fn is_awake(&self) -> bool {
        self.child.is_thawed()
    }

    /// Whether one of its processes has a signal. A frozen process does not handle it.
    #[must_use]
    pub fn has_a_signal(&self) -> bool {
        self.processes.iter().any(|process| process.has_pending_signals().unwrap_or(false))
    }
}

/// The end of an attempt to suspend a server.
pub enum Suspended {
    Asleep(SuspendedServer),
    /// It is spared, and runs, but its own cgroup is still there.
    Left(SuspendedServer, Spared),
}

/// Suspends the servers of one order.
pub struct Suspender {
    pub warden: Arc<Warden>,
    pub mark: Mark,
    /// The guard's cgroup.
    pub guard: Dir,
    /// The number of the next server.
    pub next: Arc<AtomicU64>,
}

impl Suspender {
    /// Suspends a server. If anything is not as it should be, its processes go back to where they were.
    pub fn suspend(&self, judged: Judged, cgroup: &str) -> Result<Suspended, Spared> {
        let StdioAtExec::Are(channels) = judged.target.stdio else {
            return Err("its stdio is not known".to_owned());
        };
        let living: Vec<&Handle> = judged.processes.iter().filter(|one| one.lives()).collect();
        if living.len() > MOST_PROCESSES {
            return Err(format!("it has more than {MOST_PROCESSES} processes"));
        }
        let stdin = duplicate_channel(&members(&judged), channels.stdin)
            .map_err(cannot("its stdin cannot be duplicated"))?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let child = place(&living)
            .and_then(|path| self.guard.elsewhere(cgroup, &path))
            .and_then(|parent| ChildCgroup::make(parent, &format!("mcp-guard-{number}")))
            .map_err(cannot("no cgroup can be made for it"))?;
        let asleep = mark_server(&child, &self.mark)
            .and_then(|()| child.files())
            .map_err(cannot("its cgroup cannot be marked"))
            .and_then(|ChildFiles { freeze, procs, parent_procs }| {
                let pidfds = living.iter().map(|one| one.pidfd.try_clone());
                let pidfds: Vec<OwnedFd> = pidfds
                    .collect::<io::Result<_>>()
                    .map_err(cannot("its processes cannot be watched"))?;
                let fds = HoldFds {
                    freeze: freeze.as_fd(),
                    procs: procs.as_fd(),
                    parent_procs: parent_procs.as_fd(),
                    stdin: stdin.as_fd(),
                    pidfds: &pidfds,
                };
                self.warden.hold(number, &fds).map_err(cannot("the warden cannot take it"))
            })
            .and_then(|()| self.put_to_sleep(&child, &judged, &living, number))
            .and_then(|()| is_quiescent(&judged, channels));
        let Judged { target, processes, .. } = judged;
        let server = SuspendedServer {
            number,
            server: target.server,
            identity: target.identity,
            root: target.root,
            since: clock::now(),
            processes: processes.into_iter().map(|one| one.process).collect(),
            child,
            warden: self.warden.clone(),
        };
        let Err(why) = asleep else { return Ok(Suspended::Asleep(server)) };
        match server.give_back() {
            Ok(()) => Err(why),
            Err(error) => {
                let why = format!("{why}; its own cgroup stays for now: {error}");
                Ok(Suspended::Left(server, why))
            }
        }
    }

    /// Moves and freezes it, and looks at it once more: now nothing in it can change.
    fn put_to_sleep(
        &self,
        child: &ChildCgroup,
        judged: &Judged,
        living: &[&Handle],
        number: u64,
    ) -> Result<(), Spared> {
        // The one that began it first, so that what it starts is born inside.
        let is_root = |one: &&&Handle| one.pid == judged.target.root;
        let others = living.iter().filter(|one| !is_root(one));
        for one in living.iter().filter(is_root).chain(others) {
            if !one.lives() {
                return Err(format!("process {} has ended", one.pid));
            }
            child
                .take(one.pid)
                .map_err(|error| format!("process {} cannot be moved: {error}", one.pid))?;
        }
        match child.freeze(FREEZES) {
            Ok(true) => {}
            Ok(false) => return Err("it did not stop in time".to_owned()),
            Err(error) => return Err(format!("it cannot be frozen: {error}")),
        }
        // A request that has come meanwhile wakes it at once.
        self.warden.arm(number).map_err(|error| format!("the warden cannot watch it: {error}"))?;
        let inside: BTreeSet<Pid> = child
            .processes()
            .map_err(|error| format!("its cgroup cannot be read: {error}"))?
            .into_iter()
            .collect();
        if inside != living.iter().map(|one| one.pid).collect()
            || living.iter().any(|one| !one.lives())
        {
            return Err("a process of it has started or ended meanwhile".to_owned());
        }
        has_no_others(&judged.processes)?;
        let has_signal = |one: &&&Handle| one.process.has_pending_signals().unwrap_or(true);
        match living.iter().find(has_signal) {
            Some(one) => Err(format!("process {} has a signal", one.pid)),
            None => Ok(()),
        }
    }
}

/// Whether a frozen server waits for its client and for nothing else, and has moved no byte since it was judged.
fn is_quiescent(judged: &Judged, channels: Channels) -> Result<(), Spared> {
    let seen = look(&members(judged), channels).map_err(cannot("it cannot be read"))?;
    if let Some(works) = at_work(&seen.tree) {
        return Err(works.to_string());
    }
    if judged.bytes.is_none() || judged.bytes_now() != judged.bytes {
        return Err("it has done something meanwhile".to_owned());
    }
    Ok(())
}

fn cannot(what: &str) -> impl FnOnce(io::Error) -> Spared + use<'_> {
    move |error| format!("{what}: {error}")
}

/// Returns the members that live.
fn members(judged: &Judged) -> Vec<Member> {
    let lives =
        |member: &&Member| judged.processes.iter().any(|one| one.pid == member.pid && one.lives());
    judged.target.members.iter().filter(lives).copied().collect()
}

/// Returns the path of the cgroup in which all of these processes are.
fn place(living: &[&Handle]) -> io::Result<Vec<u8>> {
    let mut place: Option<Vec<u8>> = None;
    for one in living {
        let membership = match one.process.membership() {
            Err(error) if is_gone(&error) => continue,
            read => read?,
        };
        let path = membership.unified().ok_or_else(|| io::Error::other("it has none"))?.to_vec();
        if *place.get_or_insert_with(|| path.clone()) != path {
            return Err(io::Error::other("its processes are in several cgroups"));
        }
    }
    place.ok_or_else(|| io::Error::other("its processes have ended"))
}
