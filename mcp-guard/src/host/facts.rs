//! The facts that [`mcp_guard_core::refusal`] judges, read anew each time.

use std::{fs, io};

use mcp_guard_core::{
    container::container_in,
    escape::{cgroup_path, escape},
    refusal::{ENGINES, Facts},
};

use super::{
    cgroup::{Cgroup, MAX_DESCENDANTS},
    process::Process,
};

/// `/proc/PID/comm` keeps 15 bytes of a program's name.
const COMM: usize = 15;

/// # Errors
/// The cgroup is gone, or holds more than can be looked at: a session may be among what was not seen. Not in
/// a container, whose cgroups are its own.
pub fn gather(cgroup: &Cgroup) -> io::Result<Facts> {
    let processes = cgroup.processes()?;
    let descendants = cgroup.descendants()?;
    if descendants.len() >= MAX_DESCENDANTS && container_in(cgroup.path()).is_none() {
        let what = format!("it has {MAX_DESCENDANTS} cgroups below it, or more");
        return Err(io::Error::other(what));
    }
    Ok(Facts {
        path: cgroup.path().to_owned(),
        descendants: descendants.into_iter().map(|(path, _)| path).collect(),
        own: own_path()?,
        holds_pid_1: processes.contains(&1),
        holds_the_agent: processes.contains(&std::process::id()),
        engine_processes: processes.iter().filter_map(|pid| engine(*pid)).collect(),
    })
}

fn own_path() -> io::Result<String> {
    let places = fs::read("/proc/self/cgroup")?;
    let unified = places.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"0::"));
    Ok(cgroup_path(unified.unwrap_or_default()).trim_end_matches('/').to_owned())
}

/// A container can call its programs what it likes; an engine lives in the host's pid namespace.
fn engine(pid: u32) -> Option<(u32, String)> {
    let comm = fs::read(format!("/proc/{pid}/comm")).ok()?;
    let comm = comm.strip_suffix(b"\n").unwrap_or(&comm);
    let is_engine = ENGINES.iter().any(|name| comm == &name.as_bytes()[..name.len().min(COMM)]);
    let process = is_engine.then(|| Process::open(pid).ok()).flatten()?;
    process.shares_our_pid_namespace().then(|| (pid, escape(comm, 64)))
}
