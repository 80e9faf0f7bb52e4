//! The programs that mcp-guard is compared with, run as their users run them.

use crate::stats;
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long loading may take. It takes well under a second, and longer on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// They look up tracepoints in tracefs. It is mounted in their own mount namespace, so that the host
/// does not change.
const WITH_TRACEFS: &str = "mount -t tracefs tracefs /sys/kernel/tracing && exec \"$@\"";

/// A running peer. Ended on drop.
pub struct Peer(Child);

impl Peer {
    /// Starts a peer and waits until each of its BPF programs has run.
    pub fn start(words: &[&str]) -> Result<Self> {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", WITH_TRACEFS, "sh"]);
        command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut peer = Self(command.spawn().context("cannot start unshare")?);
        let end = Instant::now() + PATIENCE;
        while !peer.watches()? {
            if Instant::now() > end {
                bail!("the BPF programs of {words:?} did not run within {PATIENCE:?}");
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(peer)
    }

    fn watches(&mut self) -> Result<bool> {
        if let Some(status) = self.0.try_wait()? {
            bail!("the peer ended with {status}; check that it runs on the command line");
        }
        // Causes one fork and one exec for it to see.
        Command::new("true").status().context("cannot start true")?;
        let runs = self.runs().unwrap_or_default();
        Ok(!runs.is_empty() && runs.values().all(|run| run.count > 0))
    }

    pub fn runs(&self) -> Result<stats::Runs> {
        stats::of_process(&self.0.id().to_string())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // They detach cleanly on an interrupt.
        let _ = kill_process(Pid::from_child(&self.0), Signal::INT);
        let end = Instant::now() + Duration::from_secs(3);
        while matches!(self.0.try_wait(), Ok(None)) && Instant::now() < end {
            thread::sleep(Duration::from_millis(10));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
