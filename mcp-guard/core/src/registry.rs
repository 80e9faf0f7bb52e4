//! The live processes of one guard and the launcher trees they form.
//!
//! A tree is one start of a launcher with everything it became: its re-execs, its shells, and the
//! server at the end. A tree lives as long as any of its processes, because a server can outlive a
//! killed launcher.

mod ages;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    mem,
    ops::Bound,
    time::Duration,
};

use self::ages::Ages;
use crate::{
    Time,
    id::{Pid, Ticks},
    launcher::{Launchers, Program, stranded_server},
};

/// Maximum number of processes tracked per guard. The kernel's default for a whole host is 32,768.
pub const MAX_PROCESSES: usize = 65_536;
/// Maximum number of identities tracked separately per guard. All others share the name
/// [`OTHER_IDENTITIES`] and are not acted on, because they are not a single package.
pub const MAX_IDENTITIES: usize = 1024;
/// Maximum number of start times kept per identity, for rates over the last minute.
pub const MAX_STARTS: usize = 4096;
/// How long a start counts towards a rate.
pub const STARTS_KEPT: Duration = Duration::from_secs(60);
pub const OTHER_IDENTITIES: &str = "(other)";

/// Nanoseconds per clock tick in `/proc/PID/stat`: 100 ticks a second on every architecture
/// (`USER_HZ`).
const TICK_NS: u64 = 10_000_000;

/// A process as `/proc` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    pub pid: Pid,
    /// `starttime` of `/proc/PID/stat`.
    pub start_ticks: Ticks,
    pub parent: Pid,
    /// `/proc/PID/cmdline`, NUL-separated; empty if it could not be read.
    pub argv: Vec<u8>,
}

#[derive(Clone, Debug)]
struct LiveProcess {
    born: Time,
    /// The parent at birth. Later reparenting does not matter.
    parent: Pid,
    tree: Option<TreeId>,
    program: Program,
}

type TreeId = u64;

#[derive(Clone, Debug)]
struct Tree {
    identity: String,
    started: Time,
    members: u32,
}

/// One package in one guard: its starts and its live trees.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// Trees ever started, including those found when the guard began.
    pub starts: u64,
    pub live_peak: usize,
    live: Ages<TreeId>,
    recent: VecDeque<Time>,
}

impl Identity {
    #[must_use]
    pub fn live(&self) -> usize {
        self.live.len()
    }

    /// Counts the live trees that are at least `age` old.
    #[must_use]
    pub fn live_aged(&self, now: Time, age: Duration) -> usize {
        now.checked_before(age).map_or(0, |moment| self.live.until(moment))
    }

    /// Returns when the `n`th oldest live tree started. `n` counts from 1.
    #[must_use]
    pub fn nth_oldest(&self, n: usize) -> Option<Time> {
        self.live.nth_oldest(n)
    }

    /// Counts the starts less than `age` ago.
    #[must_use]
    pub fn starts_within(&self, now: Time, age: Duration) -> usize {
        self.recent.len() - self.recent.partition_point(|start| now.since(*start) >= age)
    }

    /// Counts the starts at least `second` seconds ago and less than one second more.
    #[must_use]
    pub fn starts_in_second(&self, now: Time, second: u64) -> usize {
        let [from, to] = [second, second + 1].map(Duration::from_secs);
        self.starts_within(now, to) - self.starts_within(now, from)
    }

    fn note_start(&mut self, started: Time, tree: TreeId) {
        self.starts += 1;
        self.live.insert(started, tree);
        self.live_peak = self.live_peak.max(self.live.len());
        // Nearly always the end; a rescan may find older starts.
        let at = self.recent.partition_point(|start| *start <= started);
        self.recent.insert(at, started);
        let newest = self.recent.back().copied().unwrap_or(started);
        while self.recent.len() > MAX_STARTS
            || self.recent.front().is_some_and(|start| newest.since(*start) > STARTS_KEPT)
        {
            self.recent.pop_front();
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct Registry {
    processes: BTreeMap<Pid, LiveProcess>,
    births: BTreeSet<(Time, Pid)>,
    trees: BTreeMap<TreeId, Tree>,
    identities: BTreeMap<String, Identity>,
    next_tree: TreeId,
    /// Identities whose trees have started or ended since they were last taken. Detectors run for these
    /// only.
    changed: BTreeSet<String>,
    /// Live trees of all identities.
    live_trees: usize,
    /// The next time at which unused identities may be removed, which visits each of them.
    room_not_before: Time,
    /// Processes not tracked because [`MAX_PROCESSES`] was reached.
    pub overflowed: u64,
}

impl Registry {
    #[must_use]
    pub fn processes(&self) -> usize {
        self.processes.len()
    }

    /// Returns the identities that have changed since the last call.
    pub fn take_changed(&mut self) -> BTreeSet<String> {
        mem::take(&mut self.changed)
    }

    /// Live trees of all identities.
    #[must_use]
    pub fn live_trees(&self) -> usize {
        self.live_trees
    }

    #[must_use]
    pub fn pids(&self) -> Vec<Pid> {
        self.processes.keys().copied().collect()
    }

    #[must_use]
    pub fn holds(&self, pid: Pid) -> bool {
        self.processes.contains_key(&pid)
    }

    pub fn identities(&self) -> impl Iterator<Item = (&str, &Identity)> {
        self.identities.iter().map(|(name, identity)| (name.as_str(), identity))
    }

    #[must_use]
    pub fn identity(&self, name: &str) -> Option<&Identity> {
        self.identities.get(name)
    }

    /// Returns the identity and the processes of each live tree.
    #[must_use]
    pub fn trees(&self) -> Vec<(String, Vec<Pid>)> {
        let mut members: BTreeMap<TreeId, Vec<Pid>> = BTreeMap::new();
        for (pid, process) in &self.processes {
            if let Some(tree) = process.tree {
                members.entry(tree).or_default().push(*pid);
            }
        }
        let tree = |(id, pids)| Some((self.trees.get(&id)?.identity.clone(), pids));
        members.into_iter().filter_map(tree).collect()
    }

    /// Counts the live processes that are at least `age` old.
    #[must_use]
    pub fn processes_aged(&self, now: Time, age: Duration) -> usize {
        // Counts the younger ones: they are few if most stay.
        let Some(moment) = now.checked_before(age) else { return 0 };
        let younger = (Bound::Excluded((moment, Pid(u32::MAX))), Bound::Unbounded);
        self.births.len() - self.births.range(younger).count()
    }

    pub fn fork(&mut self, born: Time, child: Pid, parent: Pid) {
        if self.processes.get(&child).is_some_and(|known| ticks(known.born) == ticks(born)) {
            return; // A rescan found it before its record was read.
        }
        self.exit(child); // The pid was reused, so the old process is gone.
        let (tree, program) = match self.processes.get(&parent) {
            Some(parent) => (parent.tree, parent.program.clone()),
            None => (None, Program::Other),
        };
        self.add(child, LiveProcess { born, parent, tree, program });
    }

    pub fn exec(&mut self, now: Time, born: Time, pid: Pid, argv: &[u8], launchers: &Launchers) {
        if !self.holds(pid) {
            self.add(
                pid,
                LiveProcess { born, parent: Pid(0), tree: None, program: Program::Other },
            );
        }
        self.run(now, pid, launchers.classify(argv));
    }

    /// Adds a process that was moved in from outside: a `docker exec`, or a container's first
    /// process. It may be a launcher that never execs again, so it is classified by what `/proc`
    /// shows.
    pub fn arrive(&mut self, born: Time, pid: Pid, seen: Option<&Observed>, launchers: &Launchers) {
        if !self.holds(pid) {
            self.add(
                pid,
                LiveProcess { born, parent: Pid(0), tree: None, program: Program::Other },
            );
        }
        if let Some(seen) = seen.filter(|seen| seen.start_ticks == ticks(born)) {
            self.observe(seen, launchers);
        }
    }

    /// Removes a process that ended or was moved out. Returns whether it was known.
    pub fn exit(&mut self, pid: Pid) -> bool {
        let Some(process) = self.processes.remove(&pid) else { return false };
        self.births.remove(&(process.born, pid));
        self.leave(process.tree);
        true
    }

    /// Makes the registry match what `/proc` shows now. Known processes keep their history.
    pub fn reconcile(&mut self, mut seen: Vec<Observed>, launchers: &Launchers) {
        seen.sort_unstable_by_key(|process| (process.start_ticks, process.pid));
        let alive: BTreeMap<Pid, Ticks> =
            seen.iter().map(|process| (process.pid, process.start_ticks)).collect();
        let gone: Vec<Pid> = self
            .processes
            .iter()
            .filter(|(pid, known)| alive.get(pid) != Some(&ticks(known.born)))
            .map(|(pid, _)| *pid)
            .collect();
        for pid in gone {
            self.exit(pid);
        }
        // Processes whose tree is discovered only now, because the record of it was lost.
        let mut found = BTreeSet::new();
        for process in seen {
            let had_none = self.tree_of(process.pid).is_none();
            self.join_found_parent(process.pid, &found);
            self.observe(&process, launchers);
            if had_none && self.tree_of(process.pid).is_some() {
                found.insert(process.pid);
            }
        }
    }

    /// Adds a known child to the tree that its parent turns out to belong to. Whether the child was
    /// born before the parent became a launcher is unknown here, but it is rare.
    fn join_found_parent(&mut self, pid: Pid, found: &BTreeSet<Pid>) {
        let Some(known) = self.processes.get(&pid).filter(|known| known.tree.is_none()) else {
            return;
        };
        if !found.contains(&known.parent) {
            return;
        }
        let Some(id) = self.tree_of(known.parent) else { return };
        if let (Some(process), Some(tree)) = (self.processes.get_mut(&pid), self.trees.get_mut(&id))
        {
            process.tree = Some(id);
            tree.members += 1;
        }
    }

    fn tree_of(&self, pid: Pid) -> Option<TreeId> {
        self.processes.get(&pid)?.tree
    }

    fn observe(&mut self, seen: &Observed, launchers: &Launchers) {
        let born = Time(seen.start_ticks.0.saturating_mul(TICK_NS));
        if !self.holds(seen.pid) {
            self.fork(born, seen.pid, seen.parent);
        }
        let Some(known) = self.processes.get(&seen.pid) else { return };
        // An unreadable command line says nothing.
        if seen.argv.is_empty() {
            return;
        }
        let (born, in_tree) = (known.born, known.tree.is_some());
        match launchers.classify(&seen.argv) {
            // A launcher that renamed itself stays in its tree.
            Program::Launcher(_) if in_tree => {}
            program @ Program::Launcher(_) => self.run(born, seen.pid, program),
            Program::Other if !in_tree => {
                if let Some(bin) = stranded_server(&seen.argv) {
                    self.start_tree(born, seen.pid, bin);
                }
            }
            program @ (Program::Shell | Program::Other) => self.run(born, seen.pid, program),
        }
    }

    fn run(&mut self, now: Time, pid: Pid, program: Program) {
        if let Program::Launcher(identity) = &program
            && !self.continues_its_tree(pid, identity)
        {
            self.start_tree(now, pid, identity.clone());
        }
        if let Some(process) = self.processes.get_mut(&pid) {
            process.program = program;
        }
    }

    /// Returns whether `pid`, which is about to run the launcher of `identity`, still belongs to
    /// its current start: a re-exec through `#!`, or a wrapper script and its shells. A server that
    /// starts its own package again is a new start, so that recursion is counted.
    fn continues_its_tree(&self, pid: Pid, identity: &str) -> bool {
        let Some(tree) = self.tree_of(pid) else { return false };
        // A tree under the shared name may be of any package. The launchers checked below decide.
        let is_of = |tree: &Tree| tree.identity == identity || tree.identity == OTHER_IDENTITIES;
        if !self.trees.get(&tree).is_some_and(is_of) {
            return false;
        }
        let mut at = pid;
        // Bounded: a longer chain of shells is not one start.
        for _ in 0..16 {
            let Some(process) = self.processes.get(&at) else { return false };
            match &process.program {
                _ if process.tree != Some(tree) => return false,
                Program::Launcher(own) => return own == identity,
                Program::Shell => at = process.parent,
                Program::Other => return false,
            }
        }
        false
    }

    fn start_tree(&mut self, started: Time, pid: Pid, identity: String) {
        let identity = if self.has_room_for(&identity, started) {
            identity
        } else {
            OTHER_IDENTITIES.to_owned()
        };
        let Some(process) = self.processes.get_mut(&pid) else { return };
        self.next_tree += 1;
        let id = self.next_tree;
        let left = process.tree.replace(id);
        self.identities.entry(identity.clone()).or_default().note_start(started, id);
        self.changed.insert(identity.clone());
        self.trees.insert(id, Tree { identity, started, members: 1 });
        self.live_trees += 1;
        self.leave(left);
    }

    /// Returns whether `identity` can be tracked separately. If the table is full, identities with
    /// no live tree and no recent start are removed first.
    fn has_room_for(&mut self, identity: &str, now: Time) -> bool {
        if self.identities.contains_key(identity) {
            return true;
        }
        if self.identities.len() >= MAX_IDENTITIES && now >= self.room_not_before {
            self.room_not_before = now.after(Duration::from_secs(1));
            self.identities
                .retain(|_, known| known.live() > 0 || known.starts_within(now, STARTS_KEPT) > 0);
        }
        self.identities.len() < MAX_IDENTITIES
    }

    fn add(&mut self, pid: Pid, process: LiveProcess) {
        if self.processes.len() >= MAX_PROCESSES {
            self.overflowed += 1;
            return;
        }
        if let Some(tree) = process.tree.and_then(|tree| self.trees.get_mut(&tree)) {
            tree.members += 1;
        }
        self.births.insert((process.born, pid));
        self.processes.insert(pid, process);
    }

    fn leave(&mut self, tree: Option<TreeId>) {
        let Some(id) = tree else { return };
        let Some(tree) = self.trees.get_mut(&id) else { return };
        tree.members -= 1;
        if tree.members > 0 {
            return;
        }
        if let Some(identity) = self.identities.get_mut(&tree.identity) {
            identity.live.remove(tree.started, id);
        }
        self.changed.insert(tree.identity.clone());
        self.trees.remove(&id);
        self.live_trees -= 1;
    }
}

/// Returns a time as `/proc/PID/stat` shows it.
#[must_use]
pub fn ticks(time: Time) -> Ticks {
    Ticks(time.0 / TICK_NS)
}

#[cfg(test)]
mod tests;
