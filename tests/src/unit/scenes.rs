//! Situations that a unit can meet on its host.

use std::{
    fs,
    io::Read as _,
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{PATIENCE, PROGRAM, UNIT};

/// A host on which no process can be started, as in a fork storm without containment. Restored on
/// drop.
pub struct NoRoom {
    found: String,
}

impl NoRoom {
    const LIMIT: &str = "/proc/sys/kernel/threads-max";

    pub fn begin() -> Result<Self> {
        let found = fs::read_to_string(Self::LIMIT)?;
        // The smallest value that the kernel accepts.
        fs::write(Self::LIMIT, "20")?;
        Ok(Self { found })
    }
}

impl Drop for NoRoom {
    fn drop(&mut self) {
        let _ = fs::write(Self::LIMIT, &self.found);
    }
}

/// The unit's journal as it grows. Reading on needs no new process.
pub struct Journal {
    follower: Child,
    lines: ChildStdout,
    seen: Vec<u8>,
}

impl Journal {
    /// Starts to follow the journal. It must already have an entry of the unit.
    pub fn follow() -> Result<Self> {
        let mut command = Command::new("journalctl");
        command.args(["--follow", "--unit", UNIT, "--output", "cat", "--lines", "1"]);
        let mut follower = command.stdout(Stdio::piped()).spawn()?;
        let lines = follower.stdout.take().context("journalctl has no stdout")?;
        let mut journal = Self { follower, lines, seen: Vec::new() };
        journal.await_some("\n")?;
        journal.seen.clear();
        Ok(journal)
    }

    pub fn await_some(&mut self, text: &str) -> Result<()> {
        let patience = Timespec::try_from(PATIENCE)?;
        while !String::from_utf8_lossy(&self.seen).contains(text) {
            let mut ready = [PollFd::new(&self.lines, PollFlags::IN)];
            let count = poll(&mut ready, Some(&patience))?;
            let seen = String::from_utf8_lossy(&self.seen);
            ensure!(count == 1, "no output for {PATIENCE:?}, and no {text:?} in {seen}");
            let mut bytes = [0; 4096];
            let length = self.lines.read(&mut bytes)?;
            ensure!(length > 0, "the journal ended, and no {text:?} in {seen}");
            self.seen.extend_from_slice(&bytes[..length]);
        }
        Ok(())
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        let _ = self.follower.kill();
        let _ = self.follower.wait();
    }
}

/// An agent that an operator started instead of the unit. Killed on drop.
pub struct ByHand(Child);

impl ByHand {
    pub fn start(policy: &Path) -> Result<Self> {
        let mut command = Command::new(PROGRAM);
        command.arg("run").arg("--policy").arg(policy).stderr(Stdio::null());
        Ok(Self(command.spawn().context(PROGRAM)?))
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for ByHand {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
