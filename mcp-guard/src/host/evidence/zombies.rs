//! Counts the processes of a cgroup that have ended and are not reaped.
//!
//! No list of a cgroup has them, but `pids.current` counts them (Documentation/admin-guide/cgroup-v2.rst).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use mcp_guard_core::{
    evidence::{Reaper, Unreaped},
    id::Pid,
};

use crate::host::{cgroup::ChargedTasks, process::OpenProcess};

/// Counts the zombies of a pids cgroup. `names_parent`: looks through all processes for their parent. Returns `None` if
/// there are too many tasks to be counted.
#[must_use]
pub fn unreaped(charged: &ChargedTasks, names_parent: bool) -> Option<Unreaped> {
    let mut living = BTreeSet::new();
    let before = charged.current().ok()?;
    let tasks = charged.living(|task| {
        living.insert(task);
    });
    if !tasks.is_exact {
        return None;
    }
    // Tasks may begin and end meanwhile.
    let zombies = before.min(charged.current().ok()?).saturating_sub(tasks.least);
    if !names_parent || zombies < Unreaped::FEWEST {
        return Some(Unreaped { zombies, reaper: None });
    }
    let (on_host, reaper) = zombies_of(&living)?;
    Some(Unreaped { zombies: zombies.min(on_host), reaper })
}

/// Counts the zombies of the host, and finds the one of these processes that has the most of them as children.
fn zombies_of(living: &BTreeSet<Pid>) -> Option<(u64, Option<Reaper>)> {
    let mut on_host = 0;
    let mut zombies: BTreeMap<Pid, u64> = BTreeMap::new();
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()).map(Pid) else { continue };
        let stat = OpenProcess::open(pid).and_then(|process| process.stat());
        if let Ok(stat) = stat
            && stat.zombie
        {
            on_host += 1;
            if living.contains(&stat.parent) {
                *zombies.entry(stat.parent).or_default() += 1;
            }
        }
    }
    let most = zombies.into_iter().max_by_key(|(_, zombies)| *zombies);
    Some((on_host, most.and_then(|(pid, _)| reaper(pid))))
}

fn reaper(pid: Pid) -> Option<Reaper> {
    let process = OpenProcess::open(pid).ok()?;
    let name = String::from_utf8_lossy(&process.comm().ok()?).trim_end().to_owned();
    Some(Reaper { pid, name, is_init: process.is_init_below().unwrap_or_default() })
}
