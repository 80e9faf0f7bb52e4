//! The facts that [`mcp_guard_core::refusal`] judges, read again each time.

use std::{fs, io};

use mcp_guard_core::{
    container::container_in,
    escape::{cgroup_path, escape},
    id::Pid,
    refusal::{BystanderFacts, ENGINES},
};

use super::{
    cgroup::{Cgroup, MAX_DESCENDANTS},
    proc::membership::Membership,
    process::{self, OpenProcess},
};

/// `/proc/PID/comm` keeps 15 bytes of a program's name.
const COMM: usize = 15;

/// # Errors
/// If the cgroup is gone, or if more cgroups are below it than can be checked: a login session may
/// be among the rest. A container is exempt, because it owns its cgroups.
pub fn gather(cgroup: &Cgroup) -> io::Result<BystanderFacts> {
    let processes = cgroup.processes()?;
    let descendants = cgroup.descendants()?;
    if descendants.len() >= MAX_DESCENDANTS && container_in(cgroup.path()).is_none() {
        let what = format!("it has {MAX_DESCENDANTS} or more cgroups below it, too many to check");
        return Err(io::Error::other(what));
    }
    Ok(BystanderFacts {
        path: cgroup.path().to_owned(),
        descendants: descendants.into_iter().map(|(path, _)| path).collect(),
        own: own_path()?,
        holds_pid_1: processes.contains(&Pid(1)),
        holds_the_agent: processes.contains(&process::this()),
        engine_processes: processes.iter().filter_map(|pid| engine(*pid)).collect(),
    })
}

fn own_path() -> io::Result<String> {
    let membership = Membership::new(fs::read("/proc/self/cgroup")?);
    let unified = membership.unified().unwrap_or_default();
    Ok(cgroup_path(unified).trim_end_matches('/').to_owned())
}

/// Returns the process if it is an engine. A container can give its programs any name, so an engine
/// must also be in the host's pid namespace.
fn engine(pid: Pid) -> Option<(Pid, String)> {
    let process = OpenProcess::open(pid).ok()?;
    let comm = process.comm().ok()?;
    let is_engine = ENGINES.iter().any(|name| comm == name.as_bytes()[..name.len().min(COMM)]);
    (is_engine && process.shares_our_pid_namespace()).then(|| (pid, escape(&comm, 64)))
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::OwnedFd};

    use mcp_guard_core::incident::Hold;

    use super::*;
    use crate::host::{
        cgroup::Dir,
        layout::{Layout, LayoutKind},
    };

    #[test]
    fn a_cgroup_with_too_many_descendants_to_check_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..=MAX_DESCENDANTS {
            fs::create_dir(folder.path().join(number.to_string())).unwrap();
        }
        fs::write(folder.path().join("cgroup.procs"), "").unwrap();
        let dir = Dir::from(OwnedFd::from(File::open(folder.path()).unwrap()));
        let layout =
            Layout { kind: LayoutKind::Unified, unified: None, pids: None, nsdelegate: None };
        let cgroup = |path: &str| Cgroup::at(&dir, path, Hold::Freeze, &layout).unwrap();
        let other = cgroup("/");
        assert_eq!(other.descendants().unwrap().len(), MAX_DESCENDANTS);
        assert!(gather(&other).unwrap_err().to_string().contains("16384 or more cgroups below it"));
        // A container owns the cgroups below it, and must not get out of reach by creating many.
        let container = cgroup(&format!("/docker/{}", "0123456789abcdef".repeat(4)));
        assert_eq!(gather(&container).unwrap().descendants.len(), MAX_DESCENDANTS);
    }
}
