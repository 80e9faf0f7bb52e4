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
    evidence::Channel,
    id::Pid,
    registry::{FarEnd, SoughtClient},
};

use super::{peers::diag_of, unix_diag::UnixDiag};
use crate::host::process::{self, Namespace, OpenProcess};

/// How long is searched at most.
const SEARCH: Duration = Duration::from_secs(2);
/// Most descriptors of one process that are compared.
const DESCRIPTORS: usize = 4096;

/// An open end, as the descriptors of a process show it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum SoughtEnd {
    Writer(u64),
    Reader(u64),
    Socket(u64),
}

/// Returns for each server the process that has the other end. `None`: there is none, or it was not found within the
/// bounds.
#[must_use]
pub fn holders(servers: &[SoughtClient]) -> Vec<Option<Pid>> {
    let end = Instant::now() + SEARCH;
    let mut search = Search::of(servers, end);
    let starters: BTreeSet<Pid> = servers.iter().filter_map(|one| one.starter).collect();
    search.go_through(starters, end);
    if search.missing > 0 {
        // An older process has mostly the lower number, and a client is older than the workers that it forks.
        search.go_through(all_processes(), end);
    }
    search.found
}

fn all_processes() -> BTreeSet<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid)).collect()
}

struct Search<'a> {
    servers: &'a [SoughtClient],
    /// The servers whose client has each end. Some share a pipe.
    wanted: BTreeMap<SoughtEnd, Vec<usize>>,
    found: Vec<Option<Pid>>,
    /// How many servers have an end that nobody was found to have.
    missing: usize,
    compared: BTreeSet<Pid>,
}

impl<'a> Search<'a> {
    fn of(servers: &'a [SoughtClient], until: Instant) -> Self {
        let mut peers = SocketPeers::default();
        let mut wanted: BTreeMap<SoughtEnd, Vec<usize>> = BTreeMap::new();
        for (at, server) in servers.iter().enumerate() {
            let end = match server.holds {
                FarEnd::WritesTo(Channel::Pipe(inode)) => Some(SoughtEnd::Writer(inode)),
                FarEnd::ReadsFrom(Channel::Pipe(inode)) => Some(SoughtEnd::Reader(inode)),
                FarEnd::WritesTo(Channel::Socket(inode))
                | FarEnd::ReadsFrom(Channel::Socket(inode))
                    if Instant::now() < until =>
                {
                    peers.of(server, inode).map(SoughtEnd::Socket)
                }
                FarEnd::WritesTo(Channel::Socket(_)) | FarEnd::ReadsFrom(Channel::Socket(_)) => {
                    None
                }
            };
            if let Some(end) = end {
                wanted.entry(end).or_default().push(at);
            }
        }
        let missing = wanted.values().map(Vec::len).sum();
        // Looks at servers duplicate their descriptors for a moment.
        let compared = BTreeSet::from([process::this()]);
        Self { servers, wanted, found: vec![None; servers.len()], missing, compared }
    }

    fn go_through(&mut self, processes: BTreeSet<Pid>, until: Instant) {
        for pid in processes {
            if self.missing == 0 || Instant::now() >= until {
                break;
            }
            self.compare(pid, until);
        }
    }

    /// Compares the descriptors of a process. One that ends meanwhile has none.
    fn compare(&mut self, pid: Pid, until: Instant) {
        if !self.compared.insert(pid) {
            return;
        }
        let Ok(process) = OpenProcess::open(pid) else { return };
        for fd in process.first_descriptors(DESCRIPTORS).unwrap_or_default() {
            if Instant::now() >= until {
                return;
            }
            let Ok(link) = process.descriptor(fd) else { continue };
            match Channel::parse(&link) {
                Some(Channel::Socket(inode)) => self.note(SoughtEnd::Socket(inode), pid),
                Some(Channel::Pipe(inode)) => {
                    let ends = [SoughtEnd::Writer(inode), SoughtEnd::Reader(inode)];
                    let [is_writer, is_reader] = ends.map(|end| self.wanted.contains_key(&end));
                    if !is_writer && !is_reader {
                        continue;
                    }
                    let (reads, writes) = process.access(fd).unwrap_or_default();
                    if is_writer && writes {
                        self.note(ends[0], pid);
                    }
                    if is_reader && reads {
                        self.note(ends[1], pid);
                    }
                }
                None => {}
            }
        }
    }

    fn note(&mut self, end: SoughtEnd, pid: Pid) {
        for at in self.wanted.get(&end).into_iter().flatten() {
            let (Some(found), Some(server)) = (self.found.get_mut(*at), self.servers.get(*at))
            else {
                continue;
            };
            if found.is_none() && !server.members.contains(&pid) {
                *found = Some(pid);
                self.missing -= 1;
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
