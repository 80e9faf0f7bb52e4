//! Judges a server right before anything is done to it: whether it is still as the looks have shown it, and which
//! processes it has.

use std::{collections::BTreeSet, io, os::fd::OwnedFd, thread, time::Duration};

use mcp_guard_core::{
    evidence::{Contact, Quiescence, ServerSeen},
    id::{Pid, Ticks},
    registry::{TargetServer, ToLookAt},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Signal, pidfd_send_signal},
};

use crate::host::{
    evidence::{Freezers, survey},
    proc::membership::is_inside,
    process::{self, OpenProcess, is_gone},
};

/// CPU time, in clock ticks, that a server at rest may use between two looks.
const AT_REST: u64 = 2;
/// How often a wait looks whether it is over.
pub const STEP: Duration = Duration::from_millis(100);

/// One server, with a handle on each of its processes.
pub struct Judged {
    pub target: TargetServer,
    pub seen: ServerSeen,
    pub processes: Vec<Handle>,
    /// The bytes that its processes had read and written when they were opened.
    pub bytes: Option<u64>,
}

pub struct Handle {
    pub pid: Pid,
    pub process: OpenProcess,
    pub pidfd: OwnedFd,
    program: ExecutedProgram,
}

/// Changes with an exec, unlike a start time: the file of the program, and where its stack begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ExecutedProgram {
    file: (u32, u32, u64),
    stack: u64,
}

/// Why a server is spared.
pub type Spared = String;

fn look(target: &TargetServer, freezers: &Freezers) -> ServerSeen {
    let TargetServer { server, stdio, activity, members, .. } = target.clone();
    survey(&ToLookAt { server, stdio, activity: Some(activity), members }, freezers)
}

/// Whether a server is as it was at the look before. One without a client may have run timers.
fn is_unchanged(before: &ServerSeen, now: &ServerSeen) -> Result<(), Spared> {
    if now.is_stopped {
        return Err("it is frozen or stopped".to_owned());
    }
    if now.contact != before.contact {
        return Err(format!("it was {}, and is {} now", before.contact, now.contact));
    }
    let (Some(then), Some(activity)) = (before.activity, now.activity) else {
        return Err("it cannot be read, or has ended".to_owned());
    };
    let is_idle = match now.contact {
        Contact::Disconnected => {
            if now.is_busy != Some(false) {
                return Err("it is at work, or that is not known".to_owned());
            }
            (activity.io, activity.written, activity.processes)
                == (then.io, then.written, then.processes)
        }
        Contact::Connected => {
            if now.quiescence != Quiescence::Quiescent {
                return Err("it may wait for more than its client".to_owned());
            }
            activity == then
        }
        Contact::Unknown | Contact::NoStdio | Contact::Closing => false,
    };
    is_idle.then_some(()).ok_or_else(|| "it has done something meanwhile".to_owned())
}

/// Opens the processes of a server that live, and refuses it if one of them is more than a part of it.
fn open_all(target: &TargetServer, cgroup: &str) -> Result<Vec<Handle>, Spared> {
    let mut handles = Vec::new();
    let mut session = None;
    for member in &target.members {
        let pid = member.pid;
        let unread = |error: io::Error| format!("process {pid} cannot be read: {error}");
        let handle = match Handle::open(pid, member.start_ticks) {
            Ok(Some(handle)) => handle,
            Ok(None) => continue,
            Err(error) => return Err(unread(error)),
        };
        handle.is_inside(cgroup)?;
        if handle.process.is_first_of_its_namespace().map_err(unread)? {
            return Err(format!("process {pid} is the first one of its container"));
        }
        let its = handle.process.stat().map_err(unread)?.session;
        if *session.get_or_insert(its) != its {
            return Err(format!("process {pid} has a session of its own"));
        }
        handles.push(handle);
    }
    if handles.is_empty() {
        return Err("it has ended".to_owned());
    }
    has_no_others(&handles)?;
    Ok(handles)
}

/// Refuses a server that has started another one: what that does is not known here.
pub fn has_no_others(handles: &[Handle]) -> Result<(), Spared> {
    let own: BTreeSet<Pid> = handles.iter().map(|one| one.pid).collect();
    for Handle { pid, process, .. } in handles {
        let children = match process.children() {
            Ok(children) => children,
            Err(error) if is_gone(&error) && process.stat().is_err() => continue,
            Err(error) => {
                return Err(format!("the children of process {pid} cannot be read: {error}"));
            }
        };
        let runs = |child: &&Pid| !own.contains(child) && !has_ended(**child);
        if let Some(child) = children.iter().find(runs) {
            return Err(format!("process {child} runs in it"));
        }
    }
    Ok(())
}

/// Whether a child is gone, or a zombie that its parent has not reaped.
fn has_ended(child: Pid) -> bool {
    match OpenProcess::open(child).and_then(|child| child.stat()) {
        Ok(stat) => stat.ending,
        Err(error) => is_gone(&error),
    }
}

impl Judged {
    /// Looks at a server, and opens its processes.
    pub fn look(target: &TargetServer, cgroup: &str, freezers: &Freezers) -> Result<Self, Spared> {
        let (contact, activity) = (target.contact, Some(target.activity));
        let seen = look(target, freezers);
        is_unchanged(&ServerSeen { contact, activity, ..ServerSeen::default() }, &seen)?;
        let processes = open_all(target, cgroup)?;
        let mut judged = Self { target: target.clone(), seen, processes, bytes: None };
        judged.bytes = judged.bytes_now();
        Ok(judged)
    }

    /// Looks again: nothing may have changed since the look before.
    pub fn is_the_same(&self, cgroup: &str, freezers: &Freezers) -> Result<(), Spared> {
        let seen = look(&self.target, freezers);
        is_unchanged(&self.seen, &seen)?;
        let cpu = |seen: &ServerSeen| seen.activity.map_or(0, |activity| activity.cpu);
        if cpu(&seen).saturating_sub(cpu(&self.seen)) > AT_REST {
            return Err("it runs".to_owned());
        }
        self.runs_the_same(cgroup)?;
        has_no_others(&self.processes)
    }

    /// Refuses a server in which a process has executed another program since it was judged, or has left the guard.
    fn runs_the_same(&self, cgroup: &str) -> Result<(), Spared> {
        for one in self.processes.iter().filter(|one| one.lives()) {
            one.is_inside(cgroup)?;
            if ExecutedProgram::of(&one.process).ok() != Some(one.program) && one.lives() {
                return Err(format!("process {} has executed another program", one.pid));
            }
        }
        Ok(())
    }

    pub fn may_be_killed(&self, cgroup: &str, freezers: &Freezers) -> Result<(), Spared> {
        self.runs_the_same(cgroup)?;
        if look(&self.target, freezers).is_stopped {
            return Err("it is frozen or stopped".to_owned());
        }
        let before = self.moved();
        thread::sleep(STEP);
        match self.moved() {
            Some(now) if Some(now) == before => Ok(()),
            _ => Err("it goes on reading or writing".to_owned()),
        }
    }

    /// Returns how many bytes its processes have moved. `None` if that cannot be read.
    pub fn moved(&self) -> Option<u64> {
        let living = self.processes.iter().filter(|one| one.lives());
        let usage = living.map(|one| one.process.usage().ok().map(|usage| usage.io));
        usage.map(|io| io.map(|io| io.moved.wrapping_add(io.written))).sum()
    }

    /// Returns how many bytes its processes have read and written. `None` if that cannot be read.
    pub fn bytes_now(&self) -> Option<u64> {
        let living = self.processes.iter().filter(|one| one.lives());
        living.map(|one| one.process.usage().ok().map(|usage| usage.io.bytes)).sum()
    }

    pub fn signal(&self, signal: Signal) {
        for one in &self.processes {
            match pidfd_send_signal(&one.pidfd, signal) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => tracing::warn!(pid = one.pid.0, %error, "cannot signal a process"),
            }
        }
    }

    pub fn lives(&self) -> bool {
        self.processes.iter().any(Handle::lives)
    }
}

impl Handle {
    /// Opens a process. `None` if it is gone, or another one has its pid.
    fn open(pid: Pid, start: Ticks) -> io::Result<Option<Self>> {
        let open = || -> io::Result<Option<Self>> {
            let pidfd = process::pidfd(pid)?;
            // Opened after the pidfd: if it is the judged process, so is that of the pidfd.
            let process = OpenProcess::open(pid)?;
            let stat = process.stat()?;
            if stat.start != start || stat.ending {
                return Ok(None);
            }
            let program = ExecutedProgram::of(&process)?;
            Ok(Some(Self { pid, process, pidfd, program }))
        };
        match open() {
            Err(error) if is_gone(&error) => Ok(None),
            opened => opened,
        }
    }

    /// Refuses a process that was moved to another cgroup.
    fn is_inside(&self, cgroup: &str) -> Result<(), Spared> {
        match self.process.membership() {
            Ok(places) if is_inside(places.unified(), cgroup.as_bytes()) => Ok(()),
            Err(error) if is_gone(&error) => Ok(()),
            Ok(_) => Err(format!("process {} has left the container's cgroup", self.pid)),
            Err(error) => Err(format!("the cgroup of process {} is not known: {error}", self.pid)),
        }
    }

    /// Whether it has not ended. A zombie has.
    pub fn lives(&self) -> bool {
        let mut ended = [PollFd::new(&self.pidfd, PollFlags::IN)];
        poll(&mut ended, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready == 0)
    }
}

impl ExecutedProgram {
    fn of(process: &OpenProcess) -> io::Result<Self> {
        let file = process.exe_file()?;
        let stack = process.stat()?.stack;
        if stack == 0 {
            return Err(io::Error::other("the kernel does not show its stack"));
        }
        Ok(Self { file: (file.stx_dev_major, file.stx_dev_minor, file.stx_ino), stack })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::process::{Child, Command, Stdio};
    use std::time::Instant;

    use super::*;

    fn open(child: &Child) -> Handle {
        let pid = Pid(child.id());
        let start = OpenProcess::open(pid).unwrap().start_ticks().unwrap();
        Handle::open(pid, start).unwrap().unwrap()
    }

    #[test]
    fn a_process_is_known_by_its_cgroup_and_its_program() {
        let mut child = Command::new("sh")
            .args(["-c", "echo ready; read a; exec sleep 600"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // `spawn` may return in the middle of the exec, when the process has no stack yet.
        child.stdout.take().unwrap().read_exact(&mut [0; 6]).unwrap();
        let handle = open(&child);
        let membership = handle.process.membership().unwrap();
        let own = String::from_utf8(membership.unified().unwrap().to_vec()).unwrap();
        assert_eq!(handle.is_inside(&own), Ok(()));
        let other = handle.is_inside(&format!("{own}x"));
        assert!(other.unwrap_err().ends_with("has left the container's cgroup"));
        assert_eq!(ExecutedProgram::of(&handle.process).unwrap(), handle.program);
        drop(child.stdin.take());
        let deadline = Instant::now() + Duration::from_secs(60);
        // In the middle of its exec, the program cannot be read.
        while ExecutedProgram::of(&handle.process).ok().is_none_or(|now| now == handle.program) {
            assert!(Instant::now() < deadline, "its exec does not show");
            thread::sleep(STEP);
        }
        let pid = handle.pid;
        assert!(handle.lives() && !has_ended(pid));
        pidfd_send_signal(&handle.pidfd, Signal::KILL).unwrap();
        while handle.lives() {
            assert!(Instant::now() < deadline, "it does not end");
        }
        assert!(has_ended(pid), "a zombie");
        child.wait().unwrap();
        let wrong = Handle::open(Pid(std::process::id()), Ticks(1)).unwrap();
        assert!(has_ended(pid) && wrong.is_none(), "another process has its pid");
    }
}
