//! How many tasks a container needs for what it is for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::facts::{Facts, Process};
use crate::{
    id::Pid,
    launcher::Launchers,
    limit::{HEADROOM, Limit, room_for},
    registry::{Observed, Registry},
};

/// What the servers in a container take, measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizing {
    /// Live launcher trees, all packages together.
    pub servers: u64,
    /// Live launcher trees by package.
    pub by_package: BTreeMap<String, u64>,
    /// Tasks of the largest tree.
    pub tasks_per_server: u64,
    /// Tasks outside of every tree.
    pub other_tasks: u64,
    /// Tasks left free above those that are needed.
    #[serde(default = "default_headroom")]
    pub headroom: u64,
    /// What the limit must be for the servers that run.
    pub limit_now: u64,
    /// What the declared limit holds; None where nothing is declared.
    pub servers_that_fit: Option<u64>,
}

impl Sizing {
    /// None where no server runs: then there is nothing to measure.
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

    /// What the limit must be for so many servers.
    #[must_use]
    pub fn limit_for(&self, servers: u64) -> u64 {
        let tasks = self.other_tasks.saturating_add(servers.saturating_mul(self.tasks_per_server));
        room_for(tasks, servers, self.headroom)
    }

    /// How many servers a limit holds, without any headroom.
    fn fit(&self, limit: u64) -> u64 {
        limit.saturating_sub(self.other_tasks) / self.tasks_per_server.max(1)
    }
}

/// Of a policy that says nothing of it.
fn default_headroom() -> u64 {
    HEADROOM
}

/// Each live launcher tree: its package, and its tasks.
fn trees(facts: &Facts) -> Vec<(String, u64)> {
    let mut registry = Registry::default();
    let observed = facts.members.iter().map(observed).collect();
    registry.reconcile(observed, &Launchers::default());
    let threads: BTreeMap<Pid, u64> =
        facts.members.iter().map(|process| (process.pid, process.threads)).collect();
    let tasks = |pids: Vec<Pid>| pids.iter().filter_map(|pid| threads.get(pid)).sum();
    registry.trees().into_iter().map(|(package, pids)| (package, tasks(pids))).collect()
}

fn observed(process: &Process) -> Observed {
    let argv = process.argv.iter().flat_map(|word| [word.as_bytes(), &[0]].concat()).collect();
    Observed { pid: process.pid, start_ticks: process.start, parent: process.parent, argv }
}
