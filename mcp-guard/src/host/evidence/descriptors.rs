//! The open descriptors of one process.

use std::{collections::BTreeSet, io};

use mcp_guard_core::{
    evidence::{Channel, EpollSet, FileLock, OpenChannel, PeerIs, Waker},
    id::Pid,
};
use rustix::net::{AddressFamily, sockopt};

use super::{Channels, budget::LookBudget, duplicate_of, peers::Peers};
use crate::host::{
    proc::fdinfo::{self, HeldLock, Watched},
    process::{self, OpenProcess},
};

const STDOUT: u32 = 1;
const STDERR: u32 = 2;
/// Most locks of a process of which each is known. They are shown with every duplicate of their descriptor.
const MAX_LOCKS: usize = 32;

/// The numbers of devices that wake nobody, see `Documentation/admin-guide/devices.txt` of the kernel: `/dev/null`,
/// `/dev/zero`, `/dev/full`, `/dev/random` and `/dev/urandom`.
const SILENT: [(u32, u32); 5] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9)];

#[derive(Default)]
pub struct Descriptors {
    pub channels: Vec<OwnChannel>,
    pub epolls: Vec<EpollSet>,
    pub wakers: Vec<Waker>,
    pub locks: Vec<FileLock>,
}

/// Notes that are needed only until all descriptors are read.
#[derive(Default)]
struct Gathered {
    locks: Vec<(String, HeldLock)>,
    watched: Vec<Watched>,
    /// Descriptors in epoll sets that wake nobody, or are judged by what they are.
    harmless: BTreeSet<u32>,
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
        let (mut all, mut gathered) = (Self::default(), Gathered::default());
        for fd in budget.list(process)? {
            match all.add(process, fd, budget, &mut gathered) {
                Err(error) if !process::is_gone(&error) => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        if !all.knows_all_watched(process, &gathered, budget)? {
            all.wakers.push(Waker::Unknown);
        }
        let locks = gathered.locks;
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
        gathered: &mut Gathered,
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
                let watched = fdinfo::watched(&budget.fdinfo(process, fd)?);
                let inodes = watched.iter().map(|one| one.inode).collect();
                self.epolls.push(EpollSet { fd, inodes });
                gathered.watched.extend(watched);
                gathered.harmless.insert(fd);
            }
            "anon_inode:[timerfd]" => {
                gathered.harmless.insert(fd);
                if fdinfo::is_armed(&budget.fdinfo(process, fd)?) {
                    self.wakers.push(Waker::Timer);
                }
            }
            "anon_inode:inotify" | "anon_inode:[fanotify]" => {
                gathered.harmless.insert(fd);
                self.wakers.push(Waker::Files);
            }
            // The threads of a runtime wake each other through one. Another process can share it only if it was
            // inherited through an exec, or passed on.
            "anon_inode:[eventfd]" if fdinfo::is_closed_on_exec(&budget.fdinfo(process, fd)?) => {
                gathered.harmless.insert(fd);
            }
            "anon_inode:[signalfd]" => {
                gathered.harmless.insert(fd);
            }
            pidfd if pidfd == "anon_inode:[pidfd]" || pidfd.starts_with("pidfd:[") => {
                gathered.harmless.insert(fd);
                self.wakers.push(Waker::Process);
            }
            "anon_inode:[io_uring]" => self.wakers.push(Waker::IoUring),
            path if path.starts_with('/') => {
                if let Some(device) = process.device(fd)? {
                    if !SILENT.contains(&device) && !is_terminal(device) {
                        self.wakers.push(Waker::Unknown);
                    }
                    return Ok(());
                }
                let (reads, _) = process.access(fd)?;
                if reads && process.is_pipe(fd)? {
                    self.wakers.push(Waker::NamedPipe);
                }
                let text = budget.fdinfo(process, fd)?;
                let room = (MAX_LOCKS + 1).saturating_sub(gathered.locks.len());
                let found = fdinfo::locks(&text).take(room);
                gathered.locks.extend(found.map(|lock| (path.to_owned(), lock)));
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether all that it watches is a pipe or a socket, or harmless. A descriptor is known by its inode too, because
    /// its number may be that of another file by now.
    fn knows_all_watched(
        &self,
        process: &OpenProcess,
        gathered: &Gathered,
        budget: &LookBudget,
    ) -> io::Result<bool> {
        let channels: BTreeSet<u64> = self.channels.iter().map(|own| own.channel.inode()).collect();
        for Watched { fd, inode } in &gathered.watched {
            budget.question()?;
            let is_known = channels.contains(inode)
                || (gathered.harmless.contains(fd) && process.inode(*fd).ok() == Some(*inode));
            if !is_known {
                return Ok(false);
            }
        }
        Ok(true)
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

/// Whether a device is the program's end of a terminal. It wakes only a process that waits for it, and a thread that
/// reads from it, or an epoll set that has it, is seen by itself.
fn is_terminal((major, minor): (u32, u32)) -> bool {
    // The virtual terminals, `/dev/tty` and `/dev/console`, and the pseudo-terminals.
    matches!((major, minor), (4, _) | (5, 0 | 1) | (136..=143, _))
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
