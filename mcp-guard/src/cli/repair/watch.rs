//! Asks the agent whether it lowers the limit under repair.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use mcp_guard_core::id::CgroupId;

use crate::{
    cli::HostOptions,
    control::{client, lock, wire::WatchedStatus},
};

/// Interval between two questions to the agent.
const ASK: Duration = Duration::from_secs(5);
/// Longest time in which a restarted agent resumes the work.
const GRACE: Duration = Duration::from_secs(60);

pub(super) struct AgentWatch {
    run_dir: PathBuf,
    /// The target's cgroup. `None` if no request is stored that an agent could take over.
    cgroup: Option<CgroupId>,
    /// When the agent is asked next.
    next: Option<Instant>,
    /// When the agent was last seen lowering the limit.
    went_on: Option<Instant>,
}

impl AgentWatch {
    pub fn new(host: &HostOptions, cgroup: Option<CgroupId>) -> Self {
        Self { run_dir: host.run_dir.clone(), cgroup, next: None, went_on: None }
    }

    /// Returns the agent's status of the target, if an agent guards it.
    pub fn guarded(&self) -> Option<WatchedStatus> {
        let cgroup = self.cgroup.filter(|_| lock::is_held(&self.run_dir))?;
        let status = client::status(&lock::socket(&self.run_dir)).ok()?;
        status.guards.into_iter().find(|one| one.cgroup_id == cgroup)
    }

    /// Returns whether an agent lowers the limit to `limit` now.
    pub fn goes_on_now(&self, limit: u64) -> bool {
        self.guarded().is_some_and(|one| {
            one.guard.limit_is_written() && !one.pids_left && one.pids_wanted == Some(limit)
        })
    }

    /// Returns whether an agent lowers the limit, or did so within [`GRACE`]: it may be restarting. Most
    /// calls reuse the last answer.
    pub fn goes_on(&mut self, limit: u64) -> bool {
        let began = Instant::now();
        if self.next.is_none_or(|next| began >= next) {
            if self.goes_on_now(limit) {
                self.went_on = Some(Instant::now());
            }
            // An agent that hangs is asked less often.
            let pause = if began.elapsed() < ASK { ASK } else { GRACE };
            self.next = Some(Instant::now() + pause);
        }
        self.went_on.is_some_and(|at| at.elapsed() < GRACE)
    }
}
