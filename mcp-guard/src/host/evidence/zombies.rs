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
    let is_asked = names_parent && zombies >= Unreaped::FEWEST;
    Some(Unreaped { zombies, reaper: is_asked.then(|| parent_of_most(&living)).flatten() })
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
