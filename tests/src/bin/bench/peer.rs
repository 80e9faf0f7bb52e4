//! The programs we are compared with, as their users run them.

use crate::stats;
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Loading takes well under a second; a busy machine may need more.
const PATIENCE: Duration = Duration::from_secs(20);
/// They look up tracepoints in tracefs. Mounted for them alone: the host stays as it was.
const WITH_TRACEFS: &str = "mount -t tracefs tracefs /sys/kernel/tracing && exec \"$@\"";

/// A running peer; ended when dropped.
pub struct Peer(Child);

impl Peer {
    /// Starts it and waits until each of its programs has run.
    pub fn start(words: &[&str]) -> Result<Self> {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", WITH_TRACEFS, "sh"]);
        command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut peer = Self(command.spawn().context("unshare")?);
        let end = Instant::now() + PATIENCE;
        while !peer.watches()? {
            if Instant::now() > end {
                bail!("{words:?} does not begin to watch");
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(peer)
    }

    fn watches(&mut self) -> Result<bool> {
        if let Some(status) = self.0.try_wait()? {
            bail!("the peer ended with {status}; does it run by hand?");
        }
        // One fork and one exec, for it to see.
        Command::new("true").status().context("true")?;
        let runs = self.runs().unwrap_or_default();
        Ok(!runs.is_empty() && runs.values().all(|run| run.count > 0))
    }

    pub fn runs(&self) -> Result<stats::Runs> {
        stats::of_process(&self.0.id().to_string())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // They detach in order on an interrupt.
        let _ = kill_process(Pid::from_child(&self.0), Signal::INT);
        let end = Instant::now() + Duration::from_secs(3);
        while matches!(self.0.try_wait(), Ok(None)) && Instant::now() < end {
            thread::sleep(Duration::from_millis(10));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
