//! The processes at the other ends of servers' stdio.
//!
//! No file says who has the other end of a pipe or a socket, so the descriptors of processes are compared with it:
//! first those of the process that started the server, then those of all processes, within a bound. A pipe has one
//! inode for both of its ends. The inode of a socket's peer is asked of the kernel, in the network namespace in which
//! the socket was created.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::{Duration, Instant},
};

use mcp_guard_core::{
    evidence::{Channel, Channels},
    id::Pid,
    registry::SoughtClient,
};

use super::{peers::diag_of, unix_diag::UnixDiag};
use crate::host::process::{self, Namespace, OpenProcess};

/// How long all processes are searched. A host with 20,000 of them takes about a second.
const SEARCH: Duration = Duration::from_secs(2);
/// Most descriptors of one process that are compared.
const DESCRIPTORS: usize = 65_536;

/// One end of a pipe, or a socket.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum FarEnd {
    Writes(u64),
    Reads(u64),
    Socket(u64),
}

/// Returns for each server the process at the other end of its stdin, or else of its stdout. `None`: there is none,
/// or it was not found within the bounds.
#[must_use]
pub fn holders(servers: &[SoughtClient]) -> Vec<Option<Pid>> {
    let mut search = Search::of(servers);
    let starters: BTreeSet<Pid> = servers.iter().filter_map(|one| one.starter).collect();
    starters.into_iter().for_each(|pid| search.compare(pid));
    let end = Instant::now() + SEARCH;
    // An older process has mostly the lower number, and a client is older than the workers that it forks.
    for pid in all_processes() {
        if search.is_over() || Instant::now() >= end {
            break;
        }
        search.compare(pid);
    }
    let found = |stdio: &[Option<Pid>; 2]| stdio[0].or(stdio[1]);
    search.found.iter().map(found).collect()
}

fn all_processes() -> BTreeSet<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid)).collect()
}

struct Search<'a> {
    servers: &'a [SoughtClient],
    /// The servers that have each end as that of their stdin (0) or stdout (1).
    wanted: BTreeMap<FarEnd, Vec<(usize, usize)>>,
    found: Vec<[Option<Pid>; 2]>,
    /// Ends of some server's stdin that nobody was found to have.
    missing: usize,
    compared: BTreeSet<Pid>,
}

impl<'a> Search<'a> {
    fn of(servers: &'a [SoughtClient]) -> Self {
        let mut peers = SocketPeers::default();
        let mut wanted: BTreeMap<FarEnd, Vec<(usize, usize)>> = BTreeMap::new();
        let mut missing = 0;
        for (at, server) in servers.iter().enumerate() {
            let Channels { stdin, stdout } = server.stdio;
            let mut end = |channel, pipe: fn(u64) -> FarEnd| match channel {
                Channel::Pipe(inode) => Some(pipe(inode)),
                Channel::Socket(inode) => peers.of(server, inode).map(FarEnd::Socket),
            };
            for (place, end) in [end(stdin, FarEnd::Writes), end(stdout, FarEnd::Reads)]
                .into_iter()
                .enumerate()
                .filter_map(|(place, end)| Some((place, end?)))
            {
                wanted.entry(end).or_default().push((at, place));
                missing += usize::from(place == 0);
            }
        }
        let found = vec![[None; 2]; servers.len()];
        // Looks at servers duplicate their descriptors for a moment.
        let compared = BTreeSet::from([process::this()]);
        Self { servers, wanted, found, missing, compared }
    }

    fn is_over(&self) -> bool {
        self.missing == 0
    }

    /// Compares the descriptors of a process. One that ends meanwhile has none.
    fn compare(&mut self, pid: Pid) {
        if !self.compared.insert(pid) {
            return;
        }
        let Ok(process) = OpenProcess::open(pid) else { return };
        for fd in process.first_descriptors(DESCRIPTORS).unwrap_or_default() {
            let Some(channel) = process.descriptor(fd).ok().and_then(|link| Channel::parse(&link))
            else {
                continue;
            };
            let ends = match channel {
                Channel::Socket(inode) => [Some(FarEnd::Socket(inode)), None],
                Channel::Pipe(inode) => {
                    let is_sought = [FarEnd::Writes(inode), FarEnd::Reads(inode)]
                        .iter()
                        .any(|end| self.wanted.contains_key(end));
                    if !is_sought {
                        continue;
                    }
                    let (reads, writes) = process.access(fd).unwrap_or_default();
                    [writes.then_some(FarEnd::Writes(inode)), reads.then_some(FarEnd::Reads(inode))]
                }
            };
            ends.into_iter().flatten().for_each(|end| self.note(end, pid));
        }
    }

    fn note(&mut self, end: FarEnd, pid: Pid) {
        for (server, place) in self.wanted.get(&end).into_iter().flatten() {
            let Some(found) = self.found.get_mut(*server) else { continue };
            if found[*place].is_none() && !self.servers[*server].members.contains(&pid) {
                found[*place] = Some(pid);
                self.missing -= usize::from(*place == 0);
            }
        }
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
        let own = process::this();
        let places = server.members.first().into_iter().chain(&server.starter).chain([&own]);
        places.copied().find_map(|place| self.asked_in(place, inode))
    }

    fn asked_in(&mut self, place: Pid, inode: u64) -> Option<u64> {
        let process = OpenProcess::open(place).ok()?;
        let network = process.namespace("net").ok()?;
        let (_, diag) = match &mut self.last {
            Some(last) if last.0 == network => last,
            last => last.insert((network, diag_of(&process).ok()?)),
        };
        diag.peer(inode).ok()?
    }
}
