//! Whether an agent holds the limit that is repaired.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use mcp_guard_core::{policy::Mode, status::GuardState};

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
    cgroup: Option<u64>,
    asked: Option<Instant>,
    went_on: Option<Instant>,
}

impl AgentWatch {
    pub fn new(host: &HostOptions, cgroup: Option<u64>) -> Self {
        Self { run_dir: host.run_dir.clone(), cgroup, asked: None, went_on: None }
    }

    /// The target as an agent guards it, if one does.
    pub fn guarded(&self) -> Option<WatchedStatus> {
        let cgroup = self.cgroup.filter(|_| lock::is_held(&self.run_dir))?;
        let status = client::status(&lock::socket(&self.run_dir)).ok()?;
        status.guards.into_iter().find(|one| one.cgroup_id == cgroup)
    }

    /// Whether an agent lowers the limit by itself now.
    pub fn goes_on_now(&self) -> bool {
        self.guarded().is_some_and(|one| {
            one.guard.mode == Mode::Enforce
                && one.guard.refused.is_none()
                && one.guard.state == GuardState::Free
                && !one.pids_left
        })
    }

    /// The same, or did so a moment ago: it may be restarted. It is not asked at every look.
    pub fn goes_on(&mut self) -> bool {
        if self.asked.is_none_or(|asked| asked.elapsed() >= ASK) {
            self.asked = Some(Instant::now());
            if self.goes_on_now() {
                self.went_on = self.asked;
            }
        }
        self.went_on.is_some_and(|at| at.elapsed() < GRACE)
    }
}
