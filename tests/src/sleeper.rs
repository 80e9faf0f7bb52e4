//! A process that does nothing, under any program name.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::{agent::DEADLINE, cgroup::FixtureCgroup, wait::until};

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

    /// Starts a command that does nothing for as long, such as `unshare ... sleep 600`, and waits
    /// until the process itself runs `program`.
    pub fn run(cgroup: &FixtureCgroup, command: Command, program: &Path) -> Result<Self> {
        let sleeper = Self { child: cgroup.spawn(command)? };
        let exe = format!("/proc/{}/exe", sleeper.pid());
        let runs = || Ok(fs::read_link(&exe)? == program);
        ensure!(until(DEADLINE, runs)?, "{} does not run", program.display());
        Ok(sleeper)
    }

    /// Starts a command that does nothing for as long, and whose output is read.
    pub fn spawn(cgroup: &FixtureCgroup, mut command: Command) -> Result<Self> {
        command.stdout(Stdio::piped());
        Ok(Self { child: cgroup.spawn(command)? })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the first line that it writes to its piped output.
    pub fn line(&mut self) -> Result<String> {
        let output = self.child.stdout.take().context("its output is not piped")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
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
