//! The processes at the other ends of servers' stdio.
//!
//! No file says who has the other end of a pipe or a socket, so the descriptors of processes are compared with it:
//! first those of the process that started the server, then those of all processes, within a bound. A pipe has one
//! inode for both of its ends. The inode of a socket's peer is asked of the kernel, in the network namespace in which
//! the socket was created.
//!
//! The time is shared among the guards. A guard can have very many processes, descriptors and sockets, and reading them
//! uses up its own share only.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io, iter,
    time::{Duration, Instant},
};

use mcp_guard_core::{
    evidence::Channel,
    id::{Pid, Started},
    registry::{FarEnd, SoughtClient},
};

use super::{budget::Shares, peers::diag_of, unix_diag::UnixDiag};
use crate::host::process::{self, Namespace, OpenProcess};

/// How long is searched at most.
pub const SEARCH: Duration = Duration::from_secs(2);
/// Most descriptors of one process that are compared.
const DESCRIPTORS: usize = 4096;

/// The part of a search that is about one guard.
#[derive(Clone, Debug, Default)]
pub struct GuardSearch {
    /// The servers whose clients are looked for.
    pub servers: Vec<SoughtClient>,
    /// All processes of the guard. They are compared with the ends of all servers, in the time of this guard.
    pub processes: Vec<Pid>,
}

/// An open end, as the descriptors of a process show it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum SoughtEnd {
    Writer(u64),
    Reader(u64),
    Socket(u64),
}

/// Returns for each server of each guard the process that has the other end. `None`: there is none, or it was not found
/// within `time`.
#[must_use]
pub fn holders(guards: &[GuardSearch], time: Duration) -> Vec<Vec<Option<Started>>> {
    let asked = guards.iter().filter(|guard| !guard.servers.is_empty()).count();
    let mut shares = Shares::new(Instant::now(), time, 2 * asked + 2 * guards.len());
    let mut search = Search::of(guards, &mut shares);
    for guard in guards.iter().filter(|guard| !guard.servers.is_empty()) {
        let starters = guard.servers.iter().filter_map(|one| Some(one.starter?.0));
        search.go_through(starters.collect(), shares.next(1));
    }
    if search.missing > 0 {
        // An older process has mostly the lower number, and a client is older than the workers that it forks.
        let mut others = all_processes();
        for pid in guards.iter().flat_map(|guard| &guard.processes) {
            others.remove(pid);
        }
        search.go_through(others, shares.next(guards.len()));
        for guard in guards {
            search.go_through(guard.processes.iter().copied().collect(), shares.next(1));
        }
    }
    search.found
}

fn all_processes() -> BTreeSet<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid)).collect()
}

struct Search<'a> {
    guards: &'a [GuardSearch],
    /// The servers whose client has each end, by the positions of the guard and of the server. Some share a pipe.
    wanted: BTreeMap<SoughtEnd, Vec<(usize, usize)>>,
    found: Vec<Vec<Option<Started>>>,
    /// How many servers have an end that nobody was found to have.
    missing: usize,
    compared: BTreeSet<Pid>,
}

impl<'a> Search<'a> {
    fn of(guards: &'a [GuardSearch], shares: &mut Shares) -> Self {
        let mut peers = SocketPeers::default();
        let mut wanted: BTreeMap<SoughtEnd, Vec<(usize, usize)>> = BTreeMap::new();
        for (at, guard) in guards.iter().enumerate().filter(|(_, one)| !one.servers.is_empty()) {
            let until = shares.next(1);
            for (number, server) in guard.servers.iter().enumerate() {
                if let Some(end) = sought_end(server, &mut peers, until) {
                    wanted.entry(end).or_default().push((at, number));
                }
            }
        }
        let missing = wanted.values().map(Vec::len).sum();
        let found = guards.iter().map(|guard| vec![None; guard.servers.len()]).collect();
        // Looks at servers duplicate their descriptors for a moment.
        let compared = BTreeSet::from([process::this()]);
        Self { guards, wanted, found, missing, compared }
    }

    fn go_through(&mut self, processes: BTreeSet<Pid>, until: Instant) {
        for pid in processes {
            if self.missing == 0 || Instant::now() >= until {
                break;
            }
            // One that has ended meanwhile has none.
            if !self.compared.contains(&pid) && self.compare(pid, until).unwrap_or(true) {
                self.compared.insert(pid);
            }
        }
    }

    /// Compares the descriptors of a process. Returns whether there was time for all of them.
    fn compare(&mut self, pid: Pid, until: Instant) -> io::Result<bool> {
        let process = OpenProcess::open(pid)?;
        for fd in process.first_descriptors(DESCRIPTORS)? {
            if Instant::now() >= until {
                return Ok(false);
            }
            let (process, fd) = (&process, fd?);
            for end in self.wanted_ends(process, fd).into_iter().flatten() {
                self.note(end, (pid, process.start_ticks()?));
            }
        }
        Ok(true)
    }

    /// Returns which of the ends that are looked for a descriptor is.
    fn wanted_ends(&self, process: &OpenProcess, fd: u32) -> [Option<SoughtEnd>; 2] {
        let is_wanted = |end: &SoughtEnd| self.wanted.contains_key(end);
        let link = process.descriptor(fd);
        match link.ok().as_deref().and_then(Channel::parse) {
            Some(Channel::Socket(inode)) => {
                [Some(SoughtEnd::Socket(inode)).filter(is_wanted), None]
            }
            Some(Channel::Pipe(inode)) => {
                let writer = Some(SoughtEnd::Writer(inode)).filter(is_wanted);
                let reader = Some(SoughtEnd::Reader(inode)).filter(is_wanted);
                if writer.is_none() && reader.is_none() {
                    return [None, None];
                }
                let (reads, writes) = process.access(fd).unwrap_or_default();
                [writer.filter(|_| writes), reader.filter(|_| reads)]
            }
            None => [None, None],
        }
    }

    fn note(&mut self, end: SoughtEnd, holder: Started) {
        for (guard, number) in self.wanted.get(&end).into_iter().flatten() {
            let server = self.guards.get(*guard).and_then(|guard| guard.servers.get(*number));
            let found = self.found.get_mut(*guard).and_then(|guard| guard.get_mut(*number));
            let (Some(found), Some(server)) = (found, server) else { continue };
            if found.is_none() && !server.members.contains(&holder) {
                *found = Some(holder);
                self.missing -= 1;
            }
        }
    }
}

fn sought_end(server: &SoughtClient, peers: &mut SocketPeers, until: Instant) -> Option<SoughtEnd> {
    match server.holds? {
        FarEnd::WritesTo(Channel::Pipe(inode)) => Some(SoughtEnd::Writer(inode)),
        FarEnd::ReadsFrom(Channel::Pipe(inode)) => Some(SoughtEnd::Reader(inode)),
        FarEnd::WritesTo(Channel::Socket(inode)) | FarEnd::ReadsFrom(Channel::Socket(inode))
            if Instant::now() < until =>
        {
            peers.of(server, inode).map(SoughtEnd::Socket)
        }
        FarEnd::WritesTo(Channel::Socket(_)) | FarEnd::ReadsFrom(Channel::Socket(_)) => None,
    }
}

/// Asks for the peers of sockets, in the namespace of the server, of its starter, and of the host.
#[derive(Default)]
struct SocketPeers {
    /// Servers of one guard mostly share a namespace.
    last: Option<(Namespace, UnixDiag)>,
}

impl SocketPeers {
    fn of(&mut self, server: &SoughtClient, inode: u64) -> Option<u64> {
        let around = server.members.first().into_iter().chain(&server.starter).copied();
        let own = iter::once_with(|| OpenProcess::open(process::this()).ok()).flatten();
        around.filter_map(opened).chain(own).find_map(|place| self.asked_in(&place, inode))
    }

    fn asked_in(&mut self, place: &OpenProcess, inode: u64) -> Option<u64> {
        let network = place.namespace("net").ok()?;
        let (_, diag) = match &mut self.last {
            Some(last) if last.0 == network => last,
            last => last.insert((network, diag_of(place).ok()?)),
        };
        diag.peer(inode).ok()?
    }
}

/// Opens a process. `None` if it is gone, also if another one has its pid.
fn opened((pid, start): Started) -> Option<OpenProcess> {
    let process = OpenProcess::open(pid).ok()?;
    (process.start_ticks().ok()? == start).then_some(process)
}
