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

/// Most threads of a process that are compared.
const MOST_COMPARED: usize = 64;

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
    let on_host = OnHost::count(&living)?;
    let zombies = zombies.saturating_sub(on_host.leaderless).min(on_host.zombies);
    Some(Unreaped { zombies, reaper: on_host.worst.and_then(reaper) })
}

/// The counts of all processes of the host, beside the tasks of one cgroup that live.
struct OnHost {
    zombies: u64,
    /// Processes with such a task whose first thread has ended before the others. The kernel charges for that thread
    /// and does not list it, as for a zombie, but nobody can reap it.
    leaderless: u64,
    /// The process with the most zombies as children.
    worst: Option<Pid>,
}

impl OnHost {
    fn count(living: &BTreeSet<Pid>) -> Option<Self> {
        let (mut on_host, mut leaderless) = (0, 0);
        let mut zombies: BTreeMap<Pid, u64> = BTreeMap::new();
        for entry in fs::read_dir("/proc").ok()?.flatten() {
            let name = entry.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()).map(Pid) else {
                continue;
            };
            let Ok(process) = OpenProcess::open(pid) else { continue };
            let Ok(stat) = process.stat() else { continue };
            if !stat.zombie {
                continue;
            }
            if !stat.ending {
                leaderless += u64::from(has_any(&process, living));
                continue;
            }
            on_host += 1;
            if living.contains(&stat.parent) {
                *zombies.entry(stat.parent).or_default() += 1;
            }
        }
        let worst = zombies.into_iter().max_by_key(|(_, zombies)| *zombies).map(|(pid, _)| pid);
        Some(Self { zombies: on_host, leaderless, worst })
    }
}

/// Whether one of the first threads of a process is among these tasks.
fn has_any(process: &OpenProcess, tasks: &BTreeSet<Pid>) -> bool {
    let threads = process.first_threads(MOST_COMPARED).into_iter().flatten().flatten();
    threads.into_iter().any(|thread| tasks.contains(&thread))
}

fn reaper(pid: Pid) -> Option<Reaper> {
    let process = OpenProcess::open(pid).ok()?;
    let name = String::from_utf8_lossy(&process.comm().ok()?).trim_end().to_owned();
    Some(Reaper { pid, name, is_init: process.is_init_below().unwrap_or_default() })
}
