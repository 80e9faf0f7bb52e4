//! Whether a server is quiescent: it waits for its client, and for nothing else that can be read. Only such a
//! server can be suspended, because a byte on its stdin is all that can give it work.
//!
//! A server that is silent is not quiescent for that alone: in the middle of a slow call it is silent
//! too, and its client writes nothing more, because it waits.

use std::fmt;

use super::connection::{Channel, PollFlags};
use crate::id::Pid;

/// One look at all processes of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeLook {
    pub stdin: (Channel, PollFlags),
    /// Stdout and stderr, as far as they are pipes or sockets.
    pub outputs: Vec<PollFlags>,
    pub processes: Vec<ProcessLook>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessLook {
    pub pid: Pid,
    pub runtime: Runtime,
    /// It has started the rest of the server, and waits for the end of that. Its timers give the
    /// server no work: `npm exec` has one of several minutes.
    pub is_launcher: bool,
    /// In the order of their creation.
    pub threads: Vec<ThreadLook>,
    pub epolls: Vec<EpollSet>,
    /// Its pipes and sockets, the server's stdio included.
    pub channels: Vec<OpenChannel>,
    /// Descriptors that can give it work without its client.
    pub wakers: Vec<Waker>,
    pub locks: Vec<FileLock>,
}

impl ProcessLook {
    /// Returns what wakes it without its client. A launcher waits for its child in any case, and its timers give the
    /// server no work: `uv` handles SIGALRM only to pass it on.
    pub(super) fn wakers(&self) -> impl Iterator<Item = Waker> {
        let is_its_own =
            |waker: &Waker| self.is_launcher && matches!(waker, Waker::Process | Waker::Timer);
        self.wakers.iter().copied().filter(move |waker| !is_its_own(waker))
    }
}

/// The runtime of a program, as far as its threads need to be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    Node,
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThreadLook {
    pub tid: Pid,
    pub wait: Wait,
}

/// The object of a thread's wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// In a read of this descriptor.
    Read(u32),
    /// For an event of a set of descriptors.
    Epoll {
        fd: u32,
        has_timeout: bool,
    },
    /// For another thread or a signal, without a timeout.
    Local,
    /// For the end of a child.
    Child,
    /// It has a timeout. The name is that of the system call.
    Timed(&'static str),
    /// Its arguments are in the memory of the process, so it is not known for what it waits.
    Unreadable(&'static str),
    /// In another system call: the number.
    Call(u64),
    Runs,
    /// It could not be read, or has ended.
    Unread,
}

/// An epoll set, with the inodes of what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpollSet {
    pub fd: u32,
    pub inodes: Vec<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenChannel {
    pub fd: u32,
    pub channel: Channel,
    pub peer: PeerIs,
}

/// The other end of a pipe or a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerIs {
    /// In the same server.
    Inside,
    Outside,
    /// It accepts connections.
    Listening,
    /// Nothing can arrive: it is not connected, or is the writing end of a pipe.
    Nobody,
    Unknown,
}

/// Something that wakes a process without its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waker {
    /// A timerfd that is armed, or a timer that sends a signal.
    Timer,
    /// Changes of files (inotify, fanotify).
    Files,
    /// Requests to the kernel whose kind and deadline cannot be read (io_uring).
    IoUring,
    /// A pipe with a name, which anybody may write to that can open it.
    NamedPipe,
    /// The end of another process (pidfd). A launcher waits like this for the server that it has started.
    Process,
    /// Another program that it has started, and that runs: a call may wait for it.
    Child,
    /// A descriptor that others may use to wake the process, such as a device or a message queue.
    Unknown,
}

/// A lock on a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileLock {
    /// A lock that an idle connection to an SQLite database in WAL mode holds. It holds nobody up.
    SqliteIdle,
    /// A shared flock(2). `uv` holds one on its cache as long as the server runs that it has started.
    SharedFlock,
    Other,
}

/// Whether a server waits for its client and for nothing else, as far as a look has shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Quiescence {
    #[default]
    Unknown,
    Quiescent,
    AtWork(AtWork),
}

/// Why a server is not quiescent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtWork {
    /// Bytes that it has not read, or the end of its stdin.
    Unread,
    /// Nobody reads what it writes fast enough.
    Unwritable,
    NobodyWaitsForStdin,
    Thread {
        pid: Pid,
        tid: Pid,
        wait: Wait,
    },
    /// Something outside the server can reach it.
    Connection {
        pid: Pid,
        peer: PeerIs,
    },
    Woken {
        pid: Pid,
        by: Waker,
    },
    Lock {
        pid: Pid,
    },
}

impl fmt::Display for AtWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unread => f.write_str("it has not read all of its stdin"),
            Self::Unwritable => f.write_str("it cannot write: its output is not read"),
            Self::NobodyWaitsForStdin => f.write_str("none of its threads waits for its stdin"),
            Self::Thread { pid, tid, wait } => write!(f, "thread {tid} of process {pid} {wait}"),
            Self::Connection { pid, peer: PeerIs::Listening } => {
                write!(f, "process {pid} accepts connections")
            }
            Self::Connection { pid, peer: PeerIs::Unknown } => {
                write!(f, "process {pid} has a connection, and it is not known to what")
            }
            Self::Connection { pid, peer: PeerIs::Inside | PeerIs::Outside | PeerIs::Nobody } => {
                write!(f, "process {pid} has a connection to the outside")
            }
            Self::Woken { pid, by: Waker::Timer } => write!(f, "process {pid} has a timer"),
            Self::Woken { pid, by: Waker::Files } => write!(f, "process {pid} watches files"),
            Self::Woken { pid, by: Waker::IoUring } => {
                write!(f, "process {pid} uses io_uring, and it is not known for what")
            }
            Self::Woken { pid, by: Waker::NamedPipe } => {
                write!(f, "process {pid} reads from a pipe with a name")
            }
            Self::Woken { pid, by: Waker::Process } => {
                write!(f, "process {pid} waits for the end of another process")
            }
            Self::Woken { pid, by: Waker::Child } => {
                write!(f, "process {pid} has started another program, which runs")
            }
            Self::Woken { pid, by: Waker::Unknown } => {
                write!(f, "process {pid} can be woken by something, and it is not known by whom")
            }
            Self::Lock { pid } => write!(f, "process {pid} holds a lock on a file"),
        }
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(fd) => write!(f, "reads from descriptor {fd}"),
            Self::Epoll { has_timeout: true, .. } => f.write_str("waits in epoll with a timeout"),
            Self::Epoll { fd, has_timeout: false } => write!(f, "waits in epoll set {fd}"),
            Self::Local => f.write_str("waits for another thread or a signal"),
            Self::Child => f.write_str("waits for a child"),
            Self::Timed(call) => write!(f, "waits in {call} with a timeout"),
            Self::Unreadable(call) => write!(f, "waits in {call}, and it is not known for what"),
            Self::Call(number) => write!(f, "is in system call {number}"),
            Self::Runs => f.write_str("runs"),
            Self::Unread => f.write_str("could not be read"),
        }
    }
}

impl From<Option<AtWork>> for Quiescence {
    /// Takes the answer of [`at_work`].
    fn from(works: Option<AtWork>) -> Self {
        works.map_or(Self::Quiescent, Self::AtWork)
    }
}

/// Returns why a server is not quiescent, or `None` if it is.
#[must_use]
pub fn at_work(tree: &TreeLook) -> Option<AtWork> {
    let (stdin, flags) = tree.stdin;
    if flags.is_readable() {
        return Some(AtWork::Unread);
    }
    if tree.outputs.iter().any(|output| !output.is_writable()) {
        return Some(AtWork::Unwritable);
    }
    if let Some(works) = tree.processes.iter().find_map(|process| works(process, stdin)) {
        return Some(works);
    }
    let waits = tree.processes.iter().any(|process| {
        process.threads.iter().any(|thread| waits_for(process, &thread.wait, stdin))
    });
    (!waits).then_some(AtWork::NobodyWaitsForStdin)
}

fn works(process: &ProcessLook, stdin: Channel) -> Option<AtWork> {
    let pid = process.pid;
    let holds_up = |lock: &FileLock| match lock {
        FileLock::SqliteIdle => false,
        FileLock::SharedFlock => !process.is_launcher,
        FileLock::Other => true,
    };
    if process.locks.iter().any(holds_up) {
        return Some(AtWork::Lock { pid });
    }
    if let Some(by) = process.wakers().find(|waker| *waker != Waker::Child) {
        return Some(AtWork::Woken { pid, by });
    }
    if let Some(open) = process.channels.iter().find(|open| leaves(open, stdin)) {
        return Some(AtWork::Connection { pid, peer: open.peer });
    }
    // A connection to its child says more.
    if process.wakers().any(|waker| waker == Waker::Child) {
        return Some(AtWork::Woken { pid, by: Waker::Child });
    }
    let may_wait = |(index, thread): &(usize, &ThreadLook)| match thread.wait {
        Wait::Local | Wait::Child | Wait::Epoll { has_timeout: false, .. } => true,
        Wait::Read(fd) => process
            .channels
            .iter()
            .any(|open| open.fd == fd && (open.channel == stdin || open.peer == PeerIs::Inside)),
        Wait::Epoll { fd, has_timeout: true } => {
            // V8's platform has a thread for delayed tasks. It is the first one that a process of node
            // creates, and runs no script.
            let is_platform = process.runtime == Runtime::Node && *index == 1;
            process.is_launcher || (is_platform && !has(process, fd, stdin))
        }
        Wait::Timed(_) => process.is_launcher,
        Wait::Unreadable(_) | Wait::Call(_) | Wait::Runs | Wait::Unread => false,
    };
    let mut threads = process.threads.iter().enumerate();
    let (_, thread) = threads.find(|thread| !may_wait(thread))?;
    Some(AtWork::Thread { pid, tid: thread.tid, wait: thread.wait })
}

/// Whether only its client can give a server work, apart from timers: nothing in it accepts connections, or has one
/// to the outside. `None` if that is not known: something else may wake it, or it is not known for what it waits.
#[must_use]
pub fn is_reached_by_stdio_alone(tree: &TreeLook) -> Option<bool> {
    let (stdin, _) = tree.stdin;
    let channels = tree.processes.iter().flat_map(|process| &process.channels);
    if channels.into_iter().any(|open| leaves(open, stdin)) {
        return Some(false);
    }
    tree.processes.iter().all(is_known_to_wait).then_some(true)
}

/// Whether its pipes and sockets, timers and children are all that can wake a process.
fn is_known_to_wait(process: &ProcessLook) -> bool {
    let is_known = |thread: &ThreadLook| match thread.wait {
        Wait::Read(fd) => process.channels.iter().any(|open| open.fd == fd),
        Wait::Epoll { .. } | Wait::Local | Wait::Child | Wait::Timed(_) => true,
        Wait::Unreadable(_) | Wait::Call(_) | Wait::Runs | Wait::Unread => false,
    };
    let is_its_own = |waker| matches!(waker, Waker::Timer | Waker::Child);
    process.wakers().all(is_its_own) && process.threads.iter().all(is_known)
}

/// Whether something other than the client can be at the other end.
pub(super) fn leaves(open: &OpenChannel, stdin: Channel) -> bool {
    match open.peer {
        PeerIs::Inside | PeerIs::Nobody => false,
        PeerIs::Outside | PeerIs::Listening | PeerIs::Unknown => open.channel != stdin,
    }
}

/// Whether a thread waits for `stdin`, without a timeout.
fn waits_for(process: &ProcessLook, wait: &Wait, stdin: Channel) -> bool {
    match *wait {
        Wait::Read(fd) => {
            process.channels.iter().any(|open| open.fd == fd && open.channel == stdin)
        }
        Wait::Epoll { fd, has_timeout: false } => has(process, fd, stdin),
        Wait::Epoll { has_timeout: true, .. }
        | Wait::Local
        | Wait::Child
        | Wait::Timed(_)
        | Wait::Unreadable(_)
        | Wait::Call(_)
        | Wait::Runs
        | Wait::Unread => false,
    }
}

fn has(process: &ProcessLook, epoll: u32, channel: Channel) -> bool {
    let is_it = |set: &EpollSet| set.fd == epoll && set.inodes.contains(&channel.inode());
    process.epolls.iter().any(is_it)
}

#[cfg(test)]
mod tests;
