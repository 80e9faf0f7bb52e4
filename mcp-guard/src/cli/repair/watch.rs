//! Whether an agent holds the limit that is repaired.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use mcp_guard_core::id::CgroupId;

use crate::{
    cli::HostOptions,
    control::{client, lock, wire::WatchedStatus},
};

/// How often the agent is asked.
const ASK: Duration = Duration::from_secs(5);
/// An agent that is restarted goes on within this time.
const GRACE: Duration = Duration::from_secs(60);

pub(super) struct AgentWatch {
    run_dir: PathBuf,
    /// The cgroup; None where an agent is not told of the request.
    cgroup: Option<CgroupId>,
    /// When it is asked again.
    next: Option<Instant>,
    went_on: Option<Instant>,
}

impl AgentWatch {
    pub fn new(host: &HostOptions, cgroup: Option<CgroupId>) -> Self {
        Self { run_dir: host.run_dir.clone(), cgroup, next: None, went_on: None }
    }

    /// The target as an agent guards it, if one does.
    pub fn guarded(&self) -> Option<WatchedStatus> {
        let cgroup = self.cgroup.filter(|_| lock::is_held(&self.run_dir))?;
        let status = client::status(&lock::socket(&self.run_dir)).ok()?;
        status.guards.into_iter().find(|one| one.cgroup_id == cgroup)
    }

    /// Whether an agent lowers the limit by itself now.
    pub fn goes_on_now(&self) -> bool {
        self.guarded().is_some_and(|one| one.guard.limit_is_written() && !one.pids_left)
    }

    /// The same, or did so a moment ago: it may be restarted. It is not asked at every look.
    pub fn goes_on(&mut self) -> bool {
        let began = Instant::now();
        if self.next.is_none_or(|next| began >= next) {
            if self.goes_on_now() {
                self.went_on = Some(Instant::now());
            }
            // One that hangs is not waited for at every look.
            let pause = if began.elapsed() < ASK { ASK } else { GRACE };
            self.next = Some(Instant::now() + pause);
        }
        self.went_on.is_some_and(|at| at.elapsed() < GRACE)
    }
}
