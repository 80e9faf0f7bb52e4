//! All processes of the host, read once, with their cgroups, pid namespaces and parents.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
};

use mcp_guard_core::{
    container::container_in,
    diagnose::facts,
    escape::{cgroup_path, escape, is_cgroup_path},
    id::{Pid, Ticks},
    registry::Observed,
};

use super::{
    observer::Observer,
    proc::{self, membership::is_inside},
    process::{self, OpenProcess},
};

/// Most words kept of a command line.
const MAX_WORDS: usize = 32;
/// Most bytes kept of a word or a name.
const MAX_WORD: usize = 256;

/// One process.
#[derive(Clone, Debug)]
struct Row {
    parent: Pid,
    start: Ticks,
    threads: u64,
    zombie: bool,
    /// The inode of `ns/pid`. `None` if it may not be read, and for a zombie.
    pid_ns: Option<u64>,
    /// Whether its namespace may not be read.
    is_hidden: bool,
    /// Its cgroup in the hierarchy with the pids controller, as [`cgroup_path`] writes it.
    cgroup: String,
}

pub struct Census {
    rows: BTreeMap<Pid, Row>,
    observer: Observer,
    /// The number of processes whose namespace could not be read.
    pub hidden: usize,
}

impl Census {
    /// Reads all processes. `v1`: the pids controller has a version 1 hierarchy of its own.
    ///
    /// # Errors
    /// If `/proc` cannot be listed.
    pub fn take(v1: bool, observer: Observer) -> io::Result<Self> {
        let mut rows = BTreeMap::new();
        let mut hidden = 0;
        for entry in fs::read_dir("/proc")?.flatten() {
            let name = entry.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()).map(Pid) else {
                continue;
            };
            // A process that ended meanwhile is not an error.
            let Some(row) = row(pid, v1) else { continue };
            hidden += usize::from(row.is_hidden);
            rows.insert(pid, row);
        }
        Ok(Self { rows, observer, hidden })
    }

    /// Returns the processes in a cgroup and below it, without zombies.
    #[must_use]
    pub fn members(&self, cgroup: &str) -> Vec<facts::Process> {
        let inside = |row: &Row| !row.zombie && is_in(&row.cgroup, cgroup);
        self.shown(self.rows.iter().filter(|(_, row)| inside(row)))
    }

    /// Returns the zombies whose parent is one of these processes, in any cgroup: a version 1
    /// hierarchy shows every zombie at its root (`proc_cgroup_show` in the kernel).
    #[must_use]
    pub fn zombies_of(&self, parents: &[facts::Process]) -> Vec<facts::Process> {
        let parents: BTreeSet<Pid> = parents.iter().map(|process| process.pid).collect();
        let dead = |row: &Row| row.zombie && parents.contains(&row.parent);
        self.shown(self.rows.iter().filter(|(_, row)| dead(row)))
    }

    /// Returns the processes outside a cgroup that are in the pid namespace of `init`, or descend
    /// from processes inside (an inner engine creates namespaces of its own), without zombies.
    /// `None` if that namespace is the host's own, or is not known.
    #[must_use]
    pub fn aliens(&self, init: Pid, cgroup: &str) -> Option<Vec<facts::Process>> {
        let namespace = self.pid_ns(init)?;
        if Some(namespace) == self.pid_ns(process::this()) {
            return None;
        }
        let living = self.rows.iter().filter(|(_, row)| !row.zombie);
        let (inside, mut outside): (Vec<_>, Vec<_>) =
            living.partition(|(_, row)| is_in(&row.cgroup, cgroup));
        let mut family: BTreeSet<Pid> = inside.into_iter().map(|(pid, _)| *pid).collect();
        let mut found = BTreeMap::new();
        loop {
            let belongs = |(_, row): &(&Pid, &Row)| {
                row.pid_ns == Some(namespace) || family.contains(&row.parent)
            };
            let (more, others): (Vec<_>, Vec<_>) = outside.into_iter().partition(belongs);
            if more.is_empty() {
                return Some(self.shown(found.into_iter()));
            }
            // A child may have a lower pid than its parent, so the others are checked again.
            family.extend(more.iter().map(|(pid, _)| **pid));
            found.extend(more);
            outside = others;
        }
    }

    fn shown<'a>(&self, rows: impl Iterator<Item = (&'a Pid, &'a Row)>) -> Vec<facts::Process> {
        let rows: Vec<_> = rows.collect();
        let seen = self.observer.observe(rows.iter().map(|(pid, _)| **pid).collect());
        let seen: BTreeMap<Pid, Observed> = seen.into_iter().map(|one| (one.pid, one)).collect();
        rows.into_iter().map(|(pid, row)| shown(*pid, row, seen.get(pid))).collect()
    }

    /// Whether `/proc` hides the processes of other users, see `hidepid` in proc(5).
    #[must_use]
    pub fn is_partial(&self) -> bool {
        !self.rows.contains_key(&Pid(1))
    }

    /// Whether a process in the pid namespace of `pid` may trace a process that enters it.
    #[must_use]
    pub fn may_trace_in_namespace_of(&self, pid: Pid) -> bool {
        let namespace = self.pid_ns(pid);
        let mut inside = self.rows.iter().filter(|(_, row)| row.pid_ns == namespace && !row.zombie);
        inside.any(|(pid, _)| OpenProcess::open(*pid).is_ok_and(|process| process.may_trace()))
    }

    /// Returns the number of tasks in the pid namespace of a process. `None` if that namespace is
    /// the host's own, or is not known.
    #[must_use]
    pub fn tasks_in_namespace_of(&self, pid: Pid) -> Option<u64> {
        let namespace = self.pid_ns(pid)?;
        if Some(namespace) == self.pid_ns(process::this()) {
            return None;
        }
        let inside = self.rows.values().filter(|row| row.pid_ns == Some(namespace));
        Some(inside.map(|row| row.threads).sum())
    }

    /// Returns the cgroup of a process.
    #[must_use]
    pub fn cgroup_of(&self, pid: Pid) -> Option<&str> {
        self.rows.get(&pid).map(|row| row.cgroup.as_str())
    }

    /// Returns the own cgroup of each container that has a process, by the container's id.
    #[must_use]
    pub fn containers(&self) -> BTreeMap<&str, &str> {
        let found = self.rows.values().filter_map(|row| container_in(&row.cgroup));
        let found = found.filter(|found| is_cgroup_path(found.path));
        found.map(|found| (found.id, found.path)).collect()
    }

    fn pid_ns(&self, pid: Pid) -> Option<u64> {
        self.rows.get(&pid)?.pid_ns
    }
}

fn is_in(path: &str, cgroup: &str) -> bool {
    is_inside(Some(path.as_bytes()), cgroup.trim_end_matches('/').as_bytes())
}

fn row(pid: Pid, v1: bool) -> Option<Row> {
    let process = OpenProcess::open(pid).ok()?;
    let stat = process.stat().ok()?;
    let membership = process.membership().ok()?;
    let cgroup = if v1 { membership.v1_pids() } else { membership.unified() };
    let pid_ns = process.pid_namespace().ok();
    Some(Row {
        parent: stat.parent,
        start: stat.start,
        threads: stat.threads,
        // The first thread may have ended before the others. Such a process shows no namespace, but
        // is no zombie.
        zombie: stat.zombie && stat.threads <= 1,
        is_hidden: pid_ns.is_none() && !stat.zombie,
        pid_ns,
        cgroup: cgroup_path(cgroup?),
    })
}

/// Describes a process. `seen` is ignored if it belongs to a later process with the same pid.
fn shown(pid: Pid, row: &Row, seen: Option<&Observed>) -> facts::Process {
    let same = |process: &OpenProcess| process.start_ticks().is_ok_and(|start| start == row.start);
    let process = OpenProcess::open(pid).ok().filter(same);
    let comm = process.and_then(|process| process.comm().ok()).unwrap_or_default();
    let seen = seen.filter(|seen| seen.start_ticks == row.start);
    let argv = seen.map_or(&[][..], |seen| &seen.command.argv);
    let words = argv.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    facts::Process {
        pid,
        parent: row.parent,
        start: row.start,
        threads: row.threads,
        comm: escape(&comm, MAX_WORD),
        argv: words.take(MAX_WORDS).map(|word| escape(word, MAX_WORD)).collect(),
        cgroup: row.cgroup.clone(),
    }
}

/// Returns the number of tasks on the whole host.
#[must_use]
pub fn host_tasks() -> Option<u64> {
    proc::tasks(&fs::read_to_string("/proc/loadavg").ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_inside_only_by_whole_components() {
        assert!(is_in("/docker/a", "/docker/a") && is_in("/docker/a/b", "/docker/a"));
        assert!(!is_in("/docker/ab", "/docker/a") && !is_in("/docker", "/docker/a"));
        assert!(is_in("/docker", "/"));
        assert!(is_in(&cgroup_path(b"/docker/a/\xff"), "/docker/a"), "its name does not matter");
    }

    #[test]
    fn we_are_in_the_census() {
        let layout = crate::host::layout::Layout::read().unwrap();
        let v1 = layout.pids.is_some_and(|tree| tree.v1);
        let census = Census::take(v1, Observer::start()).unwrap();
        let me = process::this();
        let own = census.cgroup_of(me).unwrap().to_owned();
        let members = census.members(&own);
        let found = members.iter().find(|process| process.pid == me).unwrap();
        assert!(found.threads >= 1 && !found.argv.is_empty());
        assert_eq!(census.aliens(me, &own).map(|all| all.len()), None, "our own namespace");
        assert!(host_tasks().unwrap() > 0);
        assert!(!census.is_partial());
        let observer = Observer::start();
        let empty = Census { rows: BTreeMap::new(), observer, hidden: 0 };
        assert!(empty.is_partial(), "no PID 1: hidepid");
        // This process had the same pid earlier, so our name and command line are not its own.
        let other = Row { start: Ticks(0), ..census.rows[&me].clone() };
        let shown = shown(me, &other, empty.observer.observe(vec![me]).first());
        assert_eq!((shown.comm.as_str(), shown.argv.len()), ("", 0));
    }
}
