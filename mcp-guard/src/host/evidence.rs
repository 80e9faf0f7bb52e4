//! Looks at one server: whether its client can reach it, and what its threads wait for.
//!
//! Each look reads the files of a process one after the other while it runs. So it is a proof only if
//! a second look, with the server frozen, says the same.
//!
//! Reading some of these files waits while a process executes a program. So this is done on reading
//! threads only.

mod descriptors;
mod peers;
mod unix_diag;

use std::{io, os::fd::OwnedFd};

use mcp_guard_core::{
    evidence::{Channel, Connection, PollFlags, ProcessLook, Runtime, ThreadLook, TreeLook, Wait},
    id::Pid,
};
use rustix::{
    event::{PollFd, PollFlags as Flags, Timespec, poll},
    process::{PidfdGetfdFlags, pidfd_getfd},
};

use self::{descriptors::Descriptors, peers::Peers};
use super::{
    proc::syscall,
    process::{self, OpenProcess},
};

/// Most threads of a process that are looked at.
const MAX_THREADS: usize = 1024;

/// A process of a server.
#[derive(Clone, Copy, Debug)]
pub struct Member {
    pub pid: Pid,
    /// It has started the rest of the server, and waits for the end of that.
    pub is_launcher: bool,
}

/// The pipes or sockets that are a process's stdin and stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channels {
    pub stdin: Channel,
    pub stdout: Channel,
}

impl Channels {
    /// Reads them from descriptors 0 and 1, right after an exec. `None` if one of them is neither a
    /// pipe nor a socket.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn of(pid: Pid) -> io::Result<Option<Self>> {
        let process = OpenProcess::open(pid)?;
        let channel = |fd: u32| -> io::Result<Option<Channel>> {
            match process.descriptor(fd) {
                Ok(link) => Ok(Channel::parse(&link)),
                // It was closed.
                Err(error) if process::is_gone(&error) && process.stat().is_ok() => Ok(None),
                Err(error) => Err(error),
            }
        };
        let (stdin, stdout) = (channel(0)?, channel(1)?);
        Ok(stdin.zip(stdout).map(|(stdin, stdout)| Self { stdin, stdout }))
    }
}

/// One look at a server.
#[derive(Clone, Debug)]
pub struct ServerLook {
    pub connection: Connection,
    pub tree: TreeLook,
}

/// Looks at a server with these processes.
///
/// # Errors
/// If a process is gone, or cannot be read, or if none of them has the channels any more.
pub fn look(members: &[Member], channels: Channels) -> io::Result<ServerLook> {
    let mut all = Vec::new();
    for member in members {
        let process = OpenProcess::open(member.pid)?;
        let descriptors = Descriptors::of(&process)?;
        all.push((*member, process, descriptors));
    }
    let own = all.iter().flat_map(|(.., descriptors)| &descriptors.channels);
    let mut peers = Peers::new(own.map(|own| (own.channel, own.is_write_only)));
    let stdin = (channels.stdin, flags(&duplicate(&all, channels.stdin)?)?);
    let stdout = (channels.stdout, flags(&duplicate(&all, channels.stdout)?)?);
    let mut processes = Vec::new();
    for (member, process, descriptors) in all {
        processes.push(ProcessLook {
            pid: member.pid,
            runtime: runtime(&process),
            is_launcher: member.is_launcher,
            threads: threads(&process, member.pid)?,
            channels: descriptors.open_channels(&mut peers, member.pid, channels)?,
            epolls: descriptors.epolls,
            wakers: descriptors.wakers,
            locks: descriptors.locks,
        });
    }
    let tree = TreeLook { stdin, outputs: vec![stdout.1], processes };
    Ok(ServerLook { connection: Connection::of(stdin, stdout), tree })
}

/// Duplicates the descriptor of a channel, whichever process has it.
fn duplicate(all: &[(Member, OpenProcess, Descriptors)], channel: Channel) -> io::Result<OwnedFd> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for (member, _, descriptors) in all {
        let Some(fd) = descriptors.with(channel).and_then(|fd| i32::try_from(fd).ok()) else {
            continue;
        };
        let duplicate = process::pidfd(member.pid)
            .and_then(|pidfd| Ok(pidfd_getfd(&pidfd, fd, PidfdGetfdFlags::empty())?));
        match duplicate {
            Ok(duplicate) => return Ok(duplicate),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn flags(fd: &OwnedFd) -> io::Result<PollFlags> {
    let mut polled = [PollFd::new(fd, Flags::IN | Flags::OUT | Flags::RDHUP)];
    poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    Ok(PollFlags(polled[0].revents().bits()))
}

/// The name of the program's file is enough: it can only make a process look less at rest than it is,
/// or excuse one timer in a process that chose the name itself.
fn runtime(process: &OpenProcess) -> Runtime {
    let exe = process.exe().unwrap_or_default();
    let name = exe.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    if matches!(name, b"node" | b"nodejs") { Runtime::Node } else { Runtime::Other }
}

fn threads(process: &OpenProcess, pid: Pid) -> io::Result<Vec<ThreadLook>> {
    let mut tids = process.threads(MAX_THREADS)?;
    // The first thread comes first, then the others in the order of their creation.
    tids.sort_unstable_by_key(|tid| (*tid != pid, *tid));
    let look = |tid: Pid| {
        let wait = process.syscall(tid).map_or(Wait::Unread, |text| syscall::wait(&text));
        ThreadLook { tid, wait }
    };
    Ok(tids.into_iter().map(look).collect())
}
