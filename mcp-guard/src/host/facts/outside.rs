//! Finds engines outside a cgroup by the processes that they started in it.

use std::io;

use mcp_guard_core::{container::container_in, escape::cgroup_path, id::Pid, refusal::holds};

use super::program::Programs;
use crate::host::{
    cgroup::Dir,
    process::{self, OpenProcess},
};

/// The host around a cgroup.
pub struct Outside<'a> {
    pub programs: &'a Programs,
    /// The cgroup and its path.
    pub whole: (&'a Dir, &'a str),
}

impl Outside<'_> {
    /// Whether an engine outside the cgroup started a process in it. Nobody in the cgroup can have such a
    /// parent by his own doing: an engine that he starts is in the cgroup too.
    pub fn started(&self, pid: Pid) -> io::Result<bool> {
        match self.is_child_of_an_engine(pid) {
            Err(error) if process::is_gone(&error) => Ok(false),
            // A container makes cgroups that are nested too deep to be named, and no engine lives there.
            Err(error) if error.raw_os_error() == Some(libc::ENAMETOOLONG) => Ok(false),
            looked => looked,
        }
    }

    fn is_child_of_an_engine(&self, pid: Pid) -> io::Result<bool> {
        let parent = OpenProcess::open(pid)?.stat()?.parent;
        if self.programs.has_engines_name(parent) == Some(false) {
            return Ok(false);
        }
        let (dir, whole) = self.whole;
        let membership = OpenProcess::open(parent)?.membership()?;
        let Some(place) = membership.unified() else { return Ok(false) };
        let path = cgroup_path(place);
        if holds(whole, &path) {
            return Ok(false);
        }
        let cgroup = dir.elsewhere(whole, place)?;
        let in_container = container_in(&path).is_some();
        Ok(self.programs.engine(parent, &cgroup, in_container)?.is_some())
    }
}
