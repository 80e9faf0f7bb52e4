//! A process that does nothing, under any program name.

use std::{
    path::Path,
    process::{Child, Command},
};

use anyhow::Result;

use crate::cgroup::FixtureCgroup;

/// Sleeps for longer than any test. Killed and reaped on drop.
pub struct Sleeper {
    child: Child,
}

impl Sleeper {
    pub fn start(cgroup: &FixtureCgroup) -> Result<Self> {
        Self::start_as(cgroup, Path::new("sleep"))
    }

    /// Starts `program`: `sleep`, or a copy of it whose name the kernel then shows.
    pub fn start_as(cgroup: &FixtureCgroup, program: &Path) -> Result<Self> {
        let mut command = Command::new(program);
        command.arg("600");
        Ok(Self { child: cgroup.spawn(command)? })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn lives(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
