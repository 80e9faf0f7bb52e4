//! Waiting for changes of `cgroup.events`: the kernel wakes a poll when one of its values changes.

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

pub(super) struct Events {
    file: File,
}

impl Events {
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("cgroup.events");
        let file = File::open(&path).with_context(|| path.display().to_string())?;
        Ok(Self { file })
    }

    /// Reads through the polled descriptor: this read re-arms the poll.
    pub fn is_set(&self, key: &str) -> Result<bool> {
        let mut text = [0; 256];
        let length = self.file.read_at(&mut text, 0).context("cgroup.events")?;
        let text = String::from_utf8_lossy(&text[..length]);
        let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        Ok(value.with_context(|| format!("cgroup.events has no {key}: {text}"))? == "1")
    }

    /// Waits until a value has changed since the last read, for at most `longest`.
    pub fn wait(&self, longest: Duration) -> Result<()> {
        let mut files = [PollFd::new(&self.file, PollFlags::PRI)];
        let longest = Timespec::try_from(longest).context("timeout")?;
        match poll(&mut files, Some(&longest)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error).context("cannot poll cgroup.events"),
        }
    }
}
