//! A look at one of many servers: a few system calls for each of its processes.

use std::io;

use mcp_guard_core::{
    evidence::{
        Activity, Channel, Channels, Contact, PollFlags, Quiescence, ServerSeen, StdioAtExec,
        at_work, is_busy, is_reached_by_stdio_alone,
    },
    id::Pid,
    registry::{Member, ToLookAt},
};

use super::{
    Freezers, Opened,
    budget::{CpuLimit, LookBudget},
    descriptors::Descriptors,
    duplicate_of, flags, look_into, look_within, open_with_stat, stdio_of,
    stopped::{self, Standstill},
};
use crate::host::process::{OpenProcess, is_gone};

/// The processes of a server that live.
type Living = Vec<(Member, OpenProcess)>;

/// Looks at a server. What cannot be read stays unknown.
#[must_use]
pub fn survey(server: &ToLookAt, freezers: &Freezers) -> ServerSeen {
    let cpu = CpuLimit::of_a_look();
    let (mut living, mut stats) = (Living::new(), Vec::new());
    for member in &server.members {
        match open_with_stat(member) {
            Ok((process, stat)) => {
                living.push((*member, process));
                stats.push(stat);
            }
            Err(error) if is_gone(&error) => {}
            Err(_) => return ServerSeen::default(),
        }
    }
    if living.is_empty() {
        return ServerSeen::default();
    }
    // A launcher waits for the others in any case.
    let has_started = living.iter().any(|(member, _)| !member.is_launcher);
    let workers =
        living.iter().zip(&stats).filter(|((one, _), _)| !has_started || !one.is_launcher);
    let standstill = stopped::of(workers.map(|((_, process), stat)| (process, stat)), freezers);
    let stdio = match server.stdio {
        StdioAtExec::Unread => found_late(&living, cpu).unwrap_or_default(),
        read @ (StdioAtExec::Other | StdioAtExec::Are(_)) => read,
    };
    let contact = match stdio {
        StdioAtExec::Unread => Contact::Unknown,
        StdioAtExec::Other => Contact::NoStdio,
        StdioAtExec::Are(channels) => {
            let mut budget = LookBudget::within(cpu);
            let mut of = |channel| polled(&living, channel, &mut budget);
            match (of(channels.stdin), of(channels.stdout)) {
                (Ok(stdin), Ok(stdout)) => Contact::of(stdin, stdout),
                _ => Contact::Unknown,
            }
        }
    };
    if standstill == Standstill::All {
        return ServerSeen { is_stopped: true, stdio, contact, ..ServerSeen::default() };
    }
    let (activity, memory) = usage(&living).unwrap_or_default();
    let is_busy = match (contact, stdio) {
        (Contact::Disconnected, StdioAtExec::Are(channels)) if standstill == Standstill::None => {
            works(server, channels, cpu).ok()
        }
        _ => None,
    };
    // One that did something waits for nothing.
    let is_still =
        standstill == Standstill::None && activity.is_some() && activity == server.activity;
    let tree = match (contact, stdio) {
        (Contact::Connected, StdioAtExec::Are(channels)) if is_still => {
            look_within(&server.members, channels, cpu).ok().map(|look| look.tree)
        }
        _ => None,
    };
    let quiescence = tree.as_ref().map_or(Quiescence::Unknown, |tree| at_work(tree).into());
    let is_stdio_alone = tree.as_ref().and_then(is_reached_by_stdio_alone);
    let is_stopped = false;
    ServerSeen { is_stopped, stdio, contact, activity, memory, is_busy, quiescence, is_stdio_alone }
}

/// Whether a server that nobody can reach is at work all the same.
fn works(server: &ToLookAt, channels: Channels, cpu: CpuLimit) -> io::Result<bool> {
    let mut budget = LookBudget::within(cpu);
    let all = Opened::all(&server.members, &mut budget)?;
    Ok(is_busy(&look_into(all, channels, &mut budget)?, channels))
}

fn usage(living: &Living) -> io::Result<(Option<Activity>, Option<u64>)> {
    let (mut activity, mut memory) = (Activity::default(), 0_u64);
    // A launcher that only waits for its child has timers of its own: `npm exec` goes on for minutes.
    let has_started = living.iter().any(|(member, _)| !member.is_launcher);
    for (member, process) in living {
        let usage = match process.usage() {
            Ok(usage) => usage,
            Err(error) if is_gone(&error) => continue,
            Err(error) => return Err(error),
        };
        memory = memory.saturating_add(usage.memory.unwrap_or_default());
        if member.is_launcher && has_started {
            continue;
        }
        activity.processes += 1;
        activity.io = activity.io.wrapping_add(usage.io.moved);
        activity.written = activity.written.wrapping_add(usage.io.written);
        activity.context_switches = activity.context_switches.wrapping_add(usage.context_switches);
        activity.runtime = activity.runtime.wrapping_add(usage.runtime);
        activity.cpu = activity.cpu.wrapping_add(usage.cpu.0);
    }
    Ok((Some(activity), Some(memory)))
}

/// Finds the stdio of a server whose exec was not seen. Its first process may have moved it meanwhile: then it is
/// not known which of its pipes and sockets it was.
fn found_late(living: &Living, cpu: CpuLimit) -> io::Result<StdioAtExec> {
    let is_member = |pid: Pid| living.iter().any(|(member, _)| member.pid == pid);
    for (_, process) in living {
        if is_member(process.stat()?.parent) {
            continue;
        }
        return Ok(match stdio_of(process)? {
            are @ StdioAtExec::Are(_) => are,
            StdioAtExec::Unread | StdioAtExec::Other => {
                let mut budget = LookBudget::within(cpu);
                let has_any = |(_, process): &(Member, OpenProcess)| {
                    Descriptors::of(process, &mut budget)
                        .map_or(true, |all| !all.channels.is_empty())
                };
                if living.iter().any(has_any) { StdioAtExec::Unread } else { StdioAtExec::Other }
            }
        });
    }
    Ok(StdioAtExec::Unread)
}

/// Polls a channel through whichever process has it. `None` if none has it any more.
fn polled(
    living: &Living,
    channel: Channel,
    budget: &mut LookBudget,
) -> io::Result<Option<(Channel, PollFlags)>> {
    for (member, process) in living {
        let fd = match descriptor_of(process, channel, budget) {
            Err(error) if is_gone(&error) => None,
            found => found?,
        };
        let Some(fd) = fd.and_then(|fd| i32::try_from(fd).ok()) else { continue };
        match duplicate_of(member.pid, fd, channel) {
            Ok(duplicate) => return Ok(Some((channel, flags(&duplicate)?))),
            // It was closed, or the process has ended.
            Err(error)
                if matches!(error.raw_os_error(), None | Some(libc::EBADF | libc::ESRCH)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Returns a descriptor of a channel.
fn descriptor_of(
    process: &OpenProcess,
    channel: Channel,
    budget: &mut LookBudget,
) -> io::Result<Option<u32>> {
    let has =
        |fd: u32| process.descriptor(fd).is_ok_and(|link| Channel::parse(&link) == Some(channel));
    // Most have it where it was.
    if let Some(fd) = [0, 1].into_iter().find(|fd| has(*fd)) {
        return Ok(Some(fd));
    }
    for fd in budget.list(process)? {
        budget.question()?;
        if has(fd) {
            return Ok(Some(fd));
        }
    }
    Ok(None)
}
