//! Counts the processes of a cgroup that have ended and are not reaped.
//!
//! `cgroup.procs` and `cgroup.threads` do not list them, but `pids.current` counts them
//! (Documentation/admin-guide/cgroup-v2.rst).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use mcp_guard_core::{
    evidence::{Reaper, Unreaped},
    id::Pid,
};

use crate::host::{cgroup::Dir, process::OpenProcess};

/// Counts the zombies in a cgroup and below it. `charged`: its `pids.current`, read right before. Returns `None` if
/// there are too many tasks to be counted.
#[must_use]
pub fn unreaped(dir: &Dir, charged: u64) -> Option<Unreaped> {
    let mut living = BTreeSet::new();
    let tasks = dir.each_task(|task| {
        living.insert(task);
        true
    });
    if !tasks.is_exact {
        return None;
    }
    let zombies = charged.saturating_sub(tasks.least);
    let reaper = if zombies >= Unreaped::FEWEST { parent_of_most(&living) } else { None };
    Some(Unreaped { zombies, reaper })
}

/// Finds the one of these processes that has the most zombies as children.
fn parent_of_most(living: &BTreeSet<Pid>) -> Option<Reaper> {
    let mut zombies: BTreeMap<Pid, u64> = BTreeMap::new();
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()).map(Pid) else { continue };
        let stat = OpenProcess::open(pid).and_then(|process| process.stat());
        if let Ok(stat) = stat
            && stat.zombie
            && living.contains(&stat.parent)
        {
            *zombies.entry(stat.parent).or_default() += 1;
        }
    }
    let (pid, _) = zombies.into_iter().max_by_key(|(_, zombies)| *zombies)?;
    let process = OpenProcess::open(pid).ok()?;
    let name = String::from_utf8_lossy(&process.comm().ok()?).trim_end().to_owned();
    Some(Reaper { pid, name, is_init: process.is_init_below().unwrap_or_default() })
}
