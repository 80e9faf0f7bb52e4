//! How many tasks a container needs for its MCP servers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::facts::{Facts, Process};
use crate::{
    Time,
    id::Pid,
    limit::{HEADROOM, Limit, room_for},
    registry::{Observed, Registry},
    server::Grammar,
};

/// The measured demand of the servers in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizing {
    /// Live launcher trees, all packages together.
    pub servers: u64,
    /// Live launcher trees by package.
    pub by_package: BTreeMap<String, u64>,
    /// Tasks of the largest tree.
    pub tasks_per_server: u64,
    /// Tasks that are in no launcher tree.
    pub other_tasks: u64,
    /// Tasks to leave free above the demand.
    #[serde(default = "default_headroom")]
    pub headroom: u64,
    /// The limit that the running servers need.
    pub limit_now: u64,
    /// The number of servers that fit in the declared limit; None if none is declared.
    pub servers_that_fit: Option<u64>,
}

impl Sizing {
    /// Returns None if no server runs, because there is nothing to measure.
    #[must_use]
    pub fn measure(facts: &Facts, declared: Limit) -> Option<Self> {
        let trees = trees(facts);
        let servers = u64::try_from(trees.len()).unwrap_or(u64::MAX);
        let tasks_per_server = trees.iter().map(|(_, tasks)| *tasks).max()?;
        let in_trees: u64 = trees.iter().map(|(_, tasks)| tasks).sum();
        let other_tasks = facts.threads().saturating_sub(in_trees);
        let mut by_package = BTreeMap::new();
        for (package, _) in trees {
            *by_package.entry(package).or_default() += 1;
        }
        let mut sizing = Self {
            servers,
            by_package,
            tasks_per_server,
            other_tasks,
            headroom: facts.headroom.unwrap_or_else(default_headroom),
            limit_now: 0,
            servers_that_fit: None,
        };
        sizing.limit_now = sizing.limit_for(servers);
        sizing.servers_that_fit = declared.tasks().map(|limit| sizing.fit(limit));
        Some(sizing)
    }

    /// Returns the limit that this number of servers needs.
    #[must_use]
    pub fn limit_for(&self, servers: u64) -> u64 {
        let tasks = self.other_tasks.saturating_add(servers.saturating_mul(self.tasks_per_server));
        room_for(tasks, servers, self.headroom)
    }

    /// Returns how many servers fit in a limit, without headroom.
    fn fit(&self, limit: u64) -> u64 {
        limit.saturating_sub(self.other_tasks) / self.tasks_per_server.max(1)
    }
}

/// The headroom of a policy that does not set one.
fn default_headroom() -> u64 {
    HEADROOM
}

/// Returns the package and the number of tasks of each live launcher tree.
fn trees(facts: &Facts) -> Vec<(String, u64)> {
    let mut registry = Registry::default();
    let observed = facts.members.iter().map(observed).collect();
    registry.reconcile(Time::default(), observed, &Grammar::default());
    let threads: BTreeMap<Pid, u64> =
        facts.members.iter().map(|process| (process.pid, process.threads)).collect();
    let tasks = |pids: Vec<Pid>| pids.iter().filter_map(|pid| threads.get(pid)).sum();
    registry.launched().into_iter().map(|(package, pids)| (package, tasks(pids))).collect()
}

fn observed(process: &Process) -> Observed {
    let argv: Vec<u8> =
        process.argv.iter().flat_map(|word| [word.as_bytes(), &[0]].concat()).collect();
    let (pid, start_ticks, parent) = (process.pid, process.start, process.parent);
    Observed { pid, start_ticks, parent, command: argv.into() }
}
