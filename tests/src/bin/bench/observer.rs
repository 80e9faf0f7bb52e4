//! Our BPF programs, loaded a second time by the bench itself: single programs to measure their
//! cost, and a count of forks that does not depend on the agent under test.

use anyhow::{Context, Result};
use aya::Btf;
use mcp_guard::host::bpf::{Kernel, KernelOptions, RingRecord};
use mcp_guard_core::id::{CgroupId, GuardId};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::OwnedFd;
use std::time::Duration;

pub struct Observer {
    kernel: Kernel,
    ring: OwnedFd,
}

impl Observer {
    /// Attaches only these programs, each given as (program, tracepoint).
    pub fn start(programs: &[(&'static str, &str)], send_events: bool, btf: &Btf) -> Result<Self> {
        let mut kernel = Kernel::load(KernelOptions { send_events, ..KernelOptions::default() })?;
        for (program, tracepoint) in programs {
            kernel.attach(program, tracepoint, btf)?;
        }
        let ring = kernel.readiness()?;
        Ok(Self { kernel, ring })
    }

    pub fn watch(&mut self, cgroup: u64) -> Result<()> {
        self.kernel.add_cgroup(CgroupId(cgroup), GuardId(0))?;
        Ok(())
    }

    /// Returns all records in the ring, read the way the agent reads them.
    pub fn records(&mut self) -> impl Iterator<Item = RingRecord> {
        std::iter::from_fn(|| self.kernel.next_record())
    }

    /// Sleeps like the agent's loop: until a record wakes it, or for at most `limit`.
    pub fn wait(&self, limit: Duration) -> Result<()> {
        let limit = Timespec::try_from(limit)?;
        poll(&mut [PollFd::new(&self.ring, PollFlags::IN)], Some(&limit))
            .context("cannot poll the ring")?;
        Ok(())
    }
}
