//! The other ends of a server's pipes and sockets.

use std::{collections::BTreeSet, fs::File, io, os::fd::AsFd as _};

use mcp_guard_core::evidence::{Channel, PeerIs};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{
    budget::LookBudget,
    unix_diag::{UnixDiag, UnixSocket},
};
use crate::host::{
    proc::net::{self, SocketState},
    process::{Namespace, OpenProcess},
};

pub struct Peers {
    /// All pipes and sockets of the server.
    own: BTreeSet<Channel>,
    /// The pipes that it can write to.
    written: BTreeSet<u64>,
    /// The inodes in its epoll sets.
    watched: BTreeSet<u64>,
    /// The network namespace that was asked last.
    known: Option<Network>,
}

struct Network {
    namespace: Namespace,
    diag: UnixDiag,
    /// Those of the internet protocols, once one of them was met. Lists of all Unix sockets are not read: another
    /// process in the namespace can make them long.
    sockets: Option<net::Sockets>,
}

impl Peers {
    /// `all`: the pipes and sockets of all its processes, and whether each is the writing end of a pipe.
    /// `watched`: the inodes in all its epoll sets.
    pub fn new(
        all: impl Iterator<Item = (Channel, bool)>,
        watched: impl Iterator<Item = u64>,
    ) -> Self {
        let (mut own, mut written) = (BTreeSet::new(), BTreeSet::new());
        for (channel, is_write_only) in all {
            own.insert(channel);
            if is_write_only {
                written.insert(channel.inode());
            }
        }
        let watched = watched.collect();
        Self { own, written, watched, known: None }
    }

    pub fn is_watched(&self, inode: u64) -> bool {
        self.watched.contains(&inode)
    }

    /// The writer of a pipe that the server reads. A pipe that it also writes is taken for one inside.
    pub fn of_pipe(&self, inode: u64) -> PeerIs {
        if self.written.contains(&inode) { PeerIs::Inside } else { PeerIs::Outside }
    }

    /// The peer of a socket of this process.
    pub fn of_socket(
        &mut self,
        process: &OpenProcess,
        inode: u64,
        budget: &mut LookBudget,
    ) -> io::Result<PeerIs> {
        budget.question()?;
        let namespace = process.namespace("net")?;
        let network = match &mut self.known {
            Some(known) if known.namespace == namespace => known,
            known => {
                budget.network()?;
                known.insert(Network { namespace, diag: diag_of(process)?, sockets: None })
            }
        };
        let known = network.sockets.as_ref().and_then(|sockets| sockets.state(inode));
        if let Some(state) = known {
            return Ok(of_internet(state));
        }
        if let Some(socket) = network.diag.socket(inode)? {
            return Ok(self.of_unix(socket));
        }
        let state = match &mut network.sockets {
            Some(_) => None,
            unread @ None => unread.insert(process.sockets()?).state(inode),
        };
        Ok(state.map_or(PeerIs::Unknown, of_internet))
    }

    fn of_unix(&self, socket: UnixSocket) -> PeerIs {
        match socket {
            UnixSocket { is_listening: true, .. } => PeerIs::Listening,
            UnixSocket { is_addressed: true, .. } => PeerIs::Outside,
            UnixSocket { peer: Some(peer), .. } if self.own.contains(&Channel::Socket(peer)) => {
                PeerIs::Inside
            }
            UnixSocket { peer: Some(_), .. } => PeerIs::Outside,
            // It is not connected, or its peer is gone.
            UnixSocket { peer: None, .. } => PeerIs::Nobody,
        }
    }
}

fn of_internet(state: SocketState) -> PeerIs {
    match state {
        SocketState::Listening => PeerIs::Listening,
        SocketState::Unconnected => PeerIs::Nobody,
        SocketState::Connected => PeerIs::Outside,
    }
}

/// Opens a connection that answers about the network namespace of a process.
pub fn diag_of(process: &OpenProcess) -> io::Result<UnixDiag> {
    let own = File::open("/proc/thread-self/ns/net")?;
    let network = Some(LinkNameSpaceType::Network);
    move_into_link_name_space(process.open_namespace("net")?.as_fd(), network)?;
    let diag = UnixDiag::open();
    // A thread that stayed there would read about the wrong sockets from now on.
    move_into_link_name_space(own.as_fd(), network)?;
    diag
}
