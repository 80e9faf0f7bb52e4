//! Looks at one server: whether its client can reach it, and what its threads wait for.
//!
//! Each look reads the files of a process one after the other while it runs. So it is a proof only if
//! a second look, with the server frozen, says the same.
//!
//! Reading some of these files waits while a process executes a program. So this is done on reading
//! threads only.

mod budget;
pub mod clients;
mod descriptors;
mod holders;
mod peers;
mod stopped;
mod survey;
mod unix_diag;
mod zombies;

use std::{collections::BTreeSet, io, os::fd::OwnedFd};

use mcp_guard_core::{
    evidence::{
        Channel, Channels, Connection, PollFlags, ProcessLook, Runtime, StdioAtExec, ThreadLook,
        TreeLook, Wait, Waker,
    },
    id::{Pid, Ticks},
    registry::Member,
};
use rustix::{
    event::{PollFd, PollFlags as Flags, Timespec, poll},
    fs::fstat,
    net::sockopt,
    process::{PidfdGetfdFlags, pidfd_getfd},
};

use self::{
    budget::{CpuLimit, LookBudget},
    descriptors::Descriptors,
    peers::Peers,
};
pub use self::{
    holders::{GuardSearch, SEARCH, holders},
    zombies::unreaped,
};
pub use self::{stopped::Freezers, survey::survey};
use super::{
    proc::{stat::Stat, syscall},
    process::{self, OpenProcess},
};

/// Reads what a process has as stdin and stdout, and its start time.
///
/// # Errors
/// If the process is gone.
pub fn stdio(pid: Pid) -> io::Result<(Ticks, StdioAtExec)> {
    let process = OpenProcess::open(pid)?;
    let stdio = stdio_of(&process)?;
    Ok((process.start_ticks()?, stdio))
}

fn stdio_of(process: &OpenProcess) -> io::Result<StdioAtExec> {
    let channel = |fd: u32| -> io::Result<Option<Channel>> {
        match process.descriptor(fd) {
            Ok(link) => Ok(Channel::parse(&link)),
            // It was closed.
            Err(error) if process::is_gone(&error) && process.stat().is_ok() => Ok(None),
            Err(error) => Err(error),
        }
    };
    Ok(match (channel(0)?, channel(1)?) {
        (Some(stdin), Some(stdout)) => StdioAtExec::Are(Channels { stdin, stdout }),
        _ => StdioAtExec::Other,
    })
}

/// One look at a server.
#[derive(Clone, Debug)]
pub struct ServerLook {
    pub connection: Connection,
    pub tree: TreeLook,
}

/// A process that is being looked at.
struct Opened {
    member: Member,
    process: OpenProcess,
    descriptors: Descriptors,
}

impl Opened {
    fn all(members: &[Member], budget: &mut LookBudget) -> io::Result<Vec<Self>> {
        let open = |member: &Member| {
            let process = open(member)?;
            let descriptors = Descriptors::of(&process, budget)?;
            Ok(Self { member: *member, process, descriptors })
        };
        members.iter().map(open).collect()
    }
}

/// Duplicates a channel of a server, whichever of its processes has it.
///
/// # Errors
/// If a process is gone, or cannot be read, or if none of them has the channel any more.
pub fn duplicate_channel(members: &[Member], channel: Channel) -> io::Result<OwnedFd> {
    let mut budget = LookBudget::within(CpuLimit::of_a_look());
    duplicate(&Opened::all(members, &mut budget)?, channel)
}

/// Looks at a server with these processes.
///
/// # Errors
/// If a process is gone, or cannot be read, or if it takes too much CPU time, or if none of them has the channels any more.
pub fn look(members: &[Member], channels: Channels) -> io::Result<ServerLook> {
    look_within(members, channels, CpuLimit::of_a_look())
}

fn look_within(members: &[Member], channels: Channels, cpu: CpuLimit) -> io::Result<ServerLook> {
    let mut budget = LookBudget::within(cpu);
    let all = Opened::all(members, &mut budget)?;
    let stdin = (channels.stdin, flags(&duplicate(&all, channels.stdin)?)?);
    let stdout = (channels.stdout, flags(&duplicate(&all, channels.stdout)?)?);
    let processes = look_into(all, channels, &mut budget)?;
    let tree = TreeLook { stdin, outputs: vec![stdout.1], processes };
    Ok(ServerLook { connection: Connection::of(stdin, stdout), tree })
}

/// Looks at what the processes of a server have open, and for what their threads wait.
fn look_into(
    all: Vec<Opened>,
    channels: Channels,
    budget: &mut LookBudget,
) -> io::Result<Vec<ProcessLook>> {
    let own = all.iter().flat_map(|one| &one.descriptors.channels);
    let epolls = all.iter().flat_map(|one| &one.descriptors.epolls);
    let watched = epolls.flat_map(|set| set.inodes.iter().copied());
    let mut peers = Peers::new(own.map(|own| (own.channel, own.is_write_only)), watched);
    let members: BTreeSet<Pid> = all.iter().map(|one| one.member.pid).collect();
    let look = |Opened { member, process, mut descriptors }: Opened| {
        budget.question()?;
        if process.has_timer()? {
            descriptors.wakers.push(Waker::Timer);
        }
        let threads = threads(&process, member.pid, &descriptors, budget)?;
        if runs_another(&process, &threads, &members, budget)? {
            descriptors.wakers.push(Waker::Child);
        }
        Ok(ProcessLook {
            pid: member.pid,
            runtime: runtime(&process),
            is_launcher: member.is_launcher,
            threads,
            channels: descriptors.open_channels(
                &mut peers,
                (member.pid, &process),
                channels,
                budget,
            )?,
            epolls: descriptors.epolls,
            wakers: descriptors.wakers,
            locks: descriptors.locks,
        })
    };
    all.into_iter().map(look).collect()
}

/// Whether a process has a child that is no part of its server, and has not ended.
fn runs_another(
    process: &OpenProcess,
    threads: &[ThreadLook],
    members: &BTreeSet<Pid>,
    budget: &LookBudget,
) -> io::Result<bool> {
    for ThreadLook { tid, .. } in threads {
        budget.question()?;
        let children = match process.children_of(*tid) {
            Err(error) if process::is_gone(&error) && process.has_lost(*tid) => continue,
            children => children?,
        };
        for child in children.into_iter().filter(|child| !members.contains(child)) {
            budget.question()?;
            match OpenProcess::open(child).and_then(|child| child.stat()) {
                Ok(stat) if stat.ending => {}
                Err(error) if process::is_gone(&error) => {}
                Ok(_) | Err(_) => return Ok(true),
            }
        }
    }
    Ok(false)
}

/// # Errors
/// If the process is gone, also if another one has its pid.
fn open(member: &Member) -> io::Result<OpenProcess> {
    Ok(open_with_stat(member)?.0)
}

fn open_with_stat(member: &Member) -> io::Result<(OpenProcess, Stat)> {
    let process = OpenProcess::open(member.pid)?;
    let stat = process.stat()?;
    if stat.start != member.start_ticks {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    Ok((process, stat))
}

/// Duplicates the descriptor of a channel, whichever process has it.
fn duplicate(all: &[Opened], channel: Channel) -> io::Result<OwnedFd> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for Opened { member, descriptors, .. } in all {
        let Some(fd) = descriptors.with(channel).and_then(|fd| i32::try_from(fd).ok()) else {
            continue;
        };
        match duplicate_of(member.pid, fd, channel) {
            Ok(duplicate) => return Ok(duplicate),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Duplicates a descriptor of a process. Fails if it is not of this channel any more.
fn duplicate_of(pid: Pid, fd: i32, channel: Channel) -> io::Result<OwnedFd> {
    let duplicate = pidfd_getfd(process::pidfd(pid)?, fd, PidfdGetfdFlags::empty())?;
    if fstat(&duplicate)?.st_ino != channel.inode() {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(duplicate)
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

fn threads(
    process: &OpenProcess,
    pid: Pid,
    descriptors: &Descriptors,
    budget: &mut LookBudget,
) -> io::Result<Vec<ThreadLook>> {
    let mut tids = budget.threads(process)?;
    // The first thread comes first, then the others in the order of their creation.
    tids.sort_unstable_by_key(|tid| (*tid != pid, *tid));
    let look = |tid: Pid| {
        budget.question()?;
        let wait = process.syscall(tid).map_or(Wait::Unread, |text| syscall::wait(&text));
        Ok(ThreadLook { tid, wait: with_timeout(pid, wait, descriptors) })
    };
    tids.into_iter().map(look).collect()
}

/// Finds out whether a read of a socket ends after some time (`SO_RCVTIMEO` of socket(7)).
fn with_timeout(pid: Pid, wait: Wait, descriptors: &Descriptors) -> Wait {
    let Wait::Read(fd) = wait else { return wait };
    let Some(channel @ Channel::Socket(_)) = descriptors.channel(fd) else { return wait };
    let timeout = i32::try_from(fd).map_err(io::Error::other).and_then(|fd| {
        let duplicate = duplicate_of(pid, fd, channel)?;
        Ok(sockopt::socket_timeout(&duplicate, sockopt::Timeout::Recv)?)
    });
    match timeout {
        Ok(None) => wait,
        Ok(Some(_)) => Wait::Timed("recv"),
        Err(_) => Wait::Unread,
    }
}
