//! The open descriptors of one process.

use std::io;

use mcp_guard_core::{
    evidence::{Channel, EpollSet, FileLock, OpenChannel, PeerIs, Waker},
    id::Pid,
};

use super::{Channels, peers::Peers};
use crate::host::{
    proc::fdinfo,
    process::{self, OpenProcess},
};

/// Most descriptors of a process that are looked at.
const MAX: usize = 4096;

pub struct Descriptors(Vec<Descriptor>);

struct Descriptor {
    fd: u32,
    kind: Opened,
}

enum Opened {
    Channel { channel: Channel, is_write_only: bool },
    Epoll(Vec<(u32, u64)>),
    Waker(Waker),
    File(Vec<FileLock>),
}

impl Descriptors {
    /// Reads them. One that is closed meanwhile is left out.
    pub fn of(process: &OpenProcess) -> io::Result<Self> {
        let mut all = Vec::new();
        for fd in process.descriptors(MAX)? {
            match Descriptor::read(process, fd) {
                Ok(Some(kind)) => all.push(Descriptor { fd, kind }),
                Ok(None) => {}
                Err(error) if process::is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self(all))
    }

    /// Its pipes and sockets.
    pub fn channels(&self) -> impl Iterator<Item = Channel> + '_ {
        self.0.iter().filter_map(|one| match one.kind {
            Opened::Channel { channel, .. } => Some(channel),
            Opened::Epoll(_) | Opened::Waker(_) | Opened::File(_) => None,
        })
    }

    /// Returns a descriptor of this channel.
    pub fn with(&self, wanted: Channel) -> Option<u32> {
        let is_it = |one: &&Descriptor| match one.kind {
            Opened::Channel { channel, .. } => channel == wanted,
            Opened::Epoll(_) | Opened::Waker(_) | Opened::File(_) => false,
        };
        self.0.iter().find(is_it).map(|one| one.fd)
    }

    pub fn epolls(&self) -> Vec<EpollSet> {
        let sets = self.0.iter().filter_map(|one| match &one.kind {
            Opened::Epoll(watched) => {
                let inodes = watched.iter().map(|(_, inode)| *inode).collect();
                Some(EpollSet { fd: one.fd, inodes })
            }
            Opened::Channel { .. } | Opened::Waker(_) | Opened::File(_) => None,
        });
        sets.collect()
    }

    pub fn wakers(&self) -> Vec<Waker> {
        let wakers = self.0.iter().filter_map(|one| match one.kind {
            Opened::Waker(waker) => Some(waker),
            Opened::Channel { .. } | Opened::Epoll(_) | Opened::File(_) => None,
        });
        wakers.collect()
    }

    pub fn locks(&self) -> Vec<FileLock> {
        let locks = self.0.iter().filter_map(|one| match &one.kind {
            Opened::File(locks) => Some(locks.iter().copied()),
            Opened::Channel { .. } | Opened::Epoll(_) | Opened::Waker(_) => None,
        });
        locks.flatten().collect()
    }

    pub fn open_channels(
        &self,
        peers: &mut Peers,
        pid: Pid,
        stdio: Channels,
    ) -> io::Result<Vec<OpenChannel>> {
        let mut all = Vec::new();
        for Descriptor { fd, kind } in &self.0 {
            let Opened::Channel { channel, is_write_only } = kind else { continue };
            let peer = match *channel {
                // The client is at the other end, or nothing arrives at all.
                stdin if stdin == stdio.stdin => PeerIs::Outside,
                stdout if stdout == stdio.stdout => PeerIs::Nobody,
                Channel::Pipe(_) if *is_write_only => PeerIs::Nobody,
                Channel::Pipe(inode) => peers.of_pipe(inode),
                Channel::Socket(inode) => peers.of_socket(pid, inode)?,
            };
            all.push(OpenChannel { fd: *fd, channel: *channel, peer });
        }
        Ok(all)
    }

    /// The pipes of which it has a writing end.
    pub fn written_pipes(&self) -> impl Iterator<Item = u64> + '_ {
        self.0.iter().filter_map(|one| match one.kind {
            Opened::Channel { channel: Channel::Pipe(inode), is_write_only: true } => Some(inode),
            Opened::Channel { .. } | Opened::Epoll(_) | Opened::Waker(_) | Opened::File(_) => None,
        })
    }
}

impl Descriptor {
    fn read(process: &OpenProcess, fd: u32) -> io::Result<Option<Opened>> {
        let link = process.descriptor(fd)?;
        if let Some(channel) = Channel::parse(&link) {
            let is_pipe = matches!(channel, Channel::Pipe(_));
            let is_write_only = is_pipe && fdinfo::is_write_only(&process.fdinfo(fd)?);
            return Ok(Some(Opened::Channel { channel, is_write_only }));
        }
        Ok(match link.as_str() {
            "anon_inode:[eventpoll]" => Some(Opened::Epoll(fdinfo::watched(&process.fdinfo(fd)?))),
            "anon_inode:[timerfd]" => {
                let is_armed = fdinfo::is_armed(&process.fdinfo(fd)?);
                is_armed.then_some(Opened::Waker(Waker::Timer))
            }
            "anon_inode:inotify" | "anon_inode:[fanotify]" => Some(Opened::Waker(Waker::Files)),
            "anon_inode:[io_uring]" => Some(Opened::Waker(Waker::IoUring)),
            path if path.starts_with('/') && !path.starts_with("/dev/") => {
                let locks: Vec<_> = fdinfo::locks(&process.fdinfo(fd)?, path).collect();
                (!locks.is_empty()).then_some(Opened::File(locks))
            }
            _ => None,
        })
    }
}
