//! The open descriptors of one process.

use std::io;

use mcp_guard_core::{
    evidence::{Channel, EpollSet, FileLock, OpenChannel, PeerIs, Waker},
    id::Pid,
};
use rustix::net::{AddressFamily, sockopt};

use super::{Channels, budget::LookBudget, duplicate_of, peers::Peers};
use crate::host::{
    proc::fdinfo::{self, HeldLock},
    process::{self, OpenProcess},
};

const STDOUT: u32 = 1;
const STDERR: u32 = 2;
/// Most locks of a process of which each is known. They are shown with every duplicate of their descriptor.
const MAX_LOCKS: usize = 32;

#[derive(Default)]
pub struct Descriptors {
    pub channels: Vec<OwnChannel>,
    pub epolls: Vec<EpollSet>,
    pub wakers: Vec<Waker>,
    pub locks: Vec<FileLock>,
}

/// A descriptor of a pipe or a socket.
pub struct OwnChannel {
    pub fd: u32,
    pub channel: Channel,
    /// It is the writing end of a pipe.
    pub is_write_only: bool,
}

impl Descriptors {
    /// Reads them. One that is closed meanwhile is left out.
    pub fn of(process: &OpenProcess, budget: &mut LookBudget) -> io::Result<Self> {
        let (mut all, mut locks) = (Self::default(), Vec::new());
        for fd in budget.list(process)? {
            match all.add(process, fd, budget, &mut locks) {
                Err(error) if !process::is_gone(&error) => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        all.locks = if locks.len() > MAX_LOCKS {
            vec![FileLock::Other]
        } else {
            locks.iter().map(|lock| judge(lock, &locks)).collect()
        };
        Ok(all)
    }

    fn add(
        &mut self,
        process: &OpenProcess,
        fd: u32,
        budget: &mut LookBudget,
        locks: &mut Vec<(String, HeldLock)>,
    ) -> io::Result<()> {
        budget.question()?;
        let link = process.descriptor(fd)?;
        if let Some(channel) = Channel::parse(&link) {
            let is_pipe = matches!(channel, Channel::Pipe(_));
            let is_write_only = is_pipe && fdinfo::is_write_only(&budget.fdinfo(process, fd)?);
            self.channels.push(OwnChannel { fd, channel, is_write_only });
            return Ok(());
        }
        match link.as_str() {
            "anon_inode:[eventpoll]" => {
                let inodes = fdinfo::watched(&budget.fdinfo(process, fd)?);
                self.epolls.push(EpollSet { fd, inodes });
            }
            "anon_inode:[timerfd]" if !fdinfo::is_armed(&budget.fdinfo(process, fd)?) => {}
            "anon_inode:[timerfd]" => self.wakers.push(Waker::Timer),
            "anon_inode:inotify" | "anon_inode:[fanotify]" => self.wakers.push(Waker::Files),
            "anon_inode:[io_uring]" => self.wakers.push(Waker::IoUring),
            // Most devices are `/dev/null` and terminals. A container may have anything else below its `/dev`.
            path if path.starts_with("/dev/") && process.device(fd)?.is_some() => {}
            path if path.starts_with('/') => {
                let (reads, _) = process.access(fd)?;
                if reads && process.is_pipe(fd)? {
                    self.wakers.push(Waker::NamedPipe);
                }
                let text = budget.fdinfo(process, fd)?;
                let room = (MAX_LOCKS + 1).saturating_sub(locks.len());
                let found = fdinfo::locks(&text).take(room);
                locks.extend(found.map(|lock| (path.to_owned(), lock)));
            }
            _ => {}
        }
        Ok(())
    }

    /// Returns a descriptor of this channel.
    pub fn with(&self, wanted: Channel) -> Option<u32> {
        self.channels.iter().find(|own| own.channel == wanted).map(|own| own.fd)
    }

    /// Returns the channel of a descriptor.
    pub fn channel(&self, fd: u32) -> Option<Channel> {
        self.channels.iter().find(|own| own.fd == fd).map(|own| own.channel)
    }

    pub fn open_channels(
        &self,
        peers: &mut Peers,
        (pid, process): (Pid, &OpenProcess),
        stdio: Channels,
        budget: &mut LookBudget,
    ) -> io::Result<Vec<OpenChannel>> {
        // The Python SDK of MCP gives it the place of stdout, too.
        let stderr = self.channel(STDERR).filter(|stderr| is_unix_socket(pid, STDERR, *stderr));
        let open = |&OwnChannel { fd, channel, is_write_only }: &OwnChannel| {
            let peer = match channel {
                // The client is at the other end, or nothing arrives at all.
                stdin if stdin == stdio.stdin => PeerIs::Outside,
                stdout if stdout == stdio.stdout => PeerIs::Nobody,
                Channel::Pipe(_) if is_write_only => PeerIs::Nobody,
                Channel::Pipe(inode) => peers.of_pipe(inode),
                // Node gives its children a Unix socket as stderr. It can only give work to somebody who waits for it.
                // Any other socket there is a connection, whose answer it may wait for.
                Channel::Socket(inode)
                    if Some(channel) == stderr
                        && matches!(fd, STDOUT | STDERR)
                        && !peers.is_watched(inode) =>
                {
                    PeerIs::Nobody
                }
                Channel::Socket(inode) => peers.of_socket(process, inode, budget)?,
            };
            Ok(OpenChannel { fd, channel, peer })
        };
        self.channels.iter().map(open).collect()
    }
}

/// Whether a descriptor is a Unix socket. False if that cannot be read.
fn is_unix_socket(pid: Pid, fd: u32, channel: Channel) -> bool {
    let (Channel::Socket(_), Ok(fd)) = (channel, i32::try_from(fd)) else { return false };
    duplicate_of(pid, fd, channel)
        .and_then(|socket| Ok(sockopt::socket_domain(&socket)?))
        .is_ok_and(|domain| domain == AddressFamily::UNIX)
}

/// Judges a lock of a process. `all`: its locks, each with the path of its file.
fn judge((path, lock): &(String, HeldLock), all: &[(String, HeldLock)]) -> FileLock {
    let is_open = |database: &str| {
        let is_its = |(path, lock): &(String, HeldLock)| {
            *lock == HeldLock::SqliteOpen && path.strip_suffix("-shm") == Some(database)
        };
        all.iter().any(is_its)
    };
    match lock {
        HeldLock::SqliteOpen if path.ends_with("-shm") => FileLock::SqliteIdle,
        // Without a `-shm` file it is a transaction.
        HeldLock::SqliteShared if is_open(path) => FileLock::SqliteIdle,
        HeldLock::SharedFlock => FileLock::SharedFlock,
        HeldLock::SqliteOpen | HeldLock::SqliteShared | HeldLock::Other => FileLock::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_database_is_told_from_one_with_a_transaction() {
        let of = |locks: &[(&str, HeldLock)]| {
            let all: Vec<_> =
                locks.iter().map(|(path, lock)| ((*path).to_owned(), *lock)).collect();
            all.iter().map(|lock| judge(lock, &all)).collect::<Vec<_>>()
        };
        let (open, shared) =
            (("/data/a-shm", HeldLock::SqliteOpen), ("/data/a", HeldLock::SqliteShared));
        assert_eq!(of(&[open]), [FileLock::SqliteIdle]);
        assert_eq!(of(&[open, shared]), [FileLock::SqliteIdle; 2]);
        assert_eq!(of(&[shared]), [FileLock::Other], "a transaction in delete mode");
        assert_eq!(of(&[open, ("/data/b", HeldLock::SqliteShared)])[1], FileLock::Other);
        assert_eq!(of(&[("/data/a", HeldLock::SqliteOpen)]), [FileLock::Other]);
        assert_eq!(of(&[("/data/a-shm", HeldLock::Other)]), [FileLock::Other]);
        assert_eq!(of(&[("/cache/.lock", HeldLock::SharedFlock)]), [FileLock::SharedFlock]);
    }
}
