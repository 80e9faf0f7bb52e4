//! The live processes of one guard, and the servers that they form.
//!
//! A server is one start of a program with everything it became: its re-execs, its shells, what it forks, and, if
//! the program is a launcher, what that starts. Another program that it runs is a server of its own, unless that
//! is the program itself: a pool of workers, or the zygotes of a browser. A server lives as long as any of its
//! processes, because it can outlive a killed launcher.

mod ages;
mod identity;
mod idleness;
mod rescan;
mod servers;

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    ops::Bound,
    sync::Arc,
    time::Duration,
};

#[cfg(test)]
pub use self::ages::STEPS;
pub use self::{
    identity::{Identity, MAX_STARTS, STARTS_KEPT, TreeId},
    servers::{FarEnd, LiveServer, Member, SoughtClient, TargetServer, ToLookAt},
};
use self::{
    identity::{NewServer, Remains},
    idleness::Idleness,
    servers::Origin,
};
pub use crate::server::OTHER_IDENTITIES;
use crate::{
    Time,
    evidence::Known,
    id::{Pid, Ticks},
    server::{CommandLine, Grammar, Named, Naming, Start},
};

/// Maximum number of processes tracked per guard. The kernel's default for a whole host is 32,768.
pub const MAX_PROCESSES: usize = 65_536;
/// Maximum number of live identities per guard, once for the packages of launchers, and once for
/// all other programs. Those beyond it share the name [`OTHER_IDENTITIES`] and are not acted on, because they are
/// not a single package. A build has hundreds of programs, and must not take the places of packages.
pub const MAX_IDENTITIES: usize = 1024;
/// How many servers around a used one are noted as used.
const MAX_NESTED: usize = 16;

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
    pub command: CommandLine,
}

#[derive(Clone, Debug)]
struct LiveProcess {
    born: Time,
    /// The parent at birth. Later reparenting does not matter.
    parent: Pid,
    tree: Option<TreeId>,
    /// The program that it or its nearest ancestor runs: shells and wrappers add nothing.
    runs: Option<Running>,
    /// It has run a program itself, and does not only continue what its parent was.
    has_execed: bool,
    /// The command line of that program, as [`CommandLine::fingerprint`].
    command: u64,
    /// It is a shell or a wrapper, and starts what it was told to start.
    is_wrapper: bool,
}

/// A program that runs as a part of a server.
#[derive(Clone, Debug)]
struct Running {
    /// Empty if its command line does not say.
    identity: Arc<str>,
    position: Position,
}

/// The position of a program in its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    /// Runs the server as a process of its own.
    Launcher,
    /// Was started by the launcher.
    Launched,
    Program,
}

impl LiveProcess {
    fn alone(born: Time) -> Self {
        let (parent, has_execed, is_wrapper) = (Pid(0), false, false);
        Self { born, parent, tree: None, runs: None, has_execed, command: 0, is_wrapper }
    }

    /// Returns whether it is a launcher itself, and not only one of its shells.
    fn is_launcher(&self) -> bool {
        let launches = |runs: &Running| runs.position == Position::Launcher;
        self.has_execed && self.runs.as_ref().is_some_and(launches)
    }

    /// Returns the position of a new program of this process in its present server, or `None` if it is a new
    /// start.
    fn position_of(&self, new: &Named) -> Option<Position> {
        self.tree?;
        let Running { identity, position } = self.runs.as_ref()?;
        // Two relative paths of one name may be two files. In one process they are one.
        let is_same = **identity == *new.identity && (self.has_execed || !new.is_relative);
        let joins = match position {
            // A launcher of another package is a new start. The same one only starts itself again: through `#!`,
            // or by a wrapper script and its shells.
            Position::Launcher => is_same || !new.naming.begins(),
            // The file of a package is often a script that becomes the server.
            Position::Launched if self.has_execed => is_same || !new.naming.begins(),
            // A server that starts its own package again is a new start, so that recursion is counted.
            Position::Launched | Position::Program => {
                // A launched server starts helpers from the cache that it was started from itself.
                let is_helper = new.naming == Naming::Cached && *position == Position::Launched;
                is_helper || (is_same && (self.has_execed || !new.naming.begins()))
            }
        };
        let own = match (new.launches, position) {
            (true, _) => Position::Launcher,
            (false, Position::Program) => Position::Program,
            (false, Position::Launched) if !self.has_execed => Position::Program,
            (false, Position::Launcher | Position::Launched) => Position::Launched,
        };
        joins.then_some(own)
    }
}

/// A live server.
#[derive(Clone, Debug)]
struct Tree {
    identity: Arc<str>,
    started: Time,
    naming: Naming,
    /// When it was last used, or started.
    active: Time,
    idleness: Idleness,
    /// The server whose process started it.
    outer: Option<TreeId>,
    members: u32,
    origin: Origin,
    known: Known,
    /// It is no package, but a look has proved that it is a stdio server without work.
    is_proven: bool,
    /// The process that runs the program of this script, see [`Registry::joins_its_script`].
    program: Option<(Pid, Time)>,
    /// Since when it is suspended.
    asleep: Option<Time>,
}

/// A process that has left the registry.
#[derive(Clone, Debug)]
pub struct Exited {
    /// The server that ended with it.
    pub server: Option<ServerEnd>,
}

/// A server without a process.
#[derive(Clone, Debug)]
pub struct ServerEnd {
    pub identity: Arc<str>,
    pub naming: Naming,
    pub started: Time,
}

/// Why a process leaves a server.
#[derive(Clone, Copy)]
enum Departure {
    End,
    /// It belongs to another server. If it was the last process here, this start was none.
    Mistake,
}

/// An event that begins or continues a server, and its time.
#[derive(Clone, Copy)]
struct Sighting<'a> {
    /// When the program was started.
    at: Time,
    /// When we learned of it: later, if it was found in `/proc`.
    learned: Time,
    start: &'a Start,
    /// See [`LiveProcess::command`].
    command: u64,
}

#[derive(Clone, Debug, Default)]
pub struct Registry {
    processes: BTreeMap<Pid, LiveProcess>,
    births: BTreeSet<(Time, Pid)>,
    trees: BTreeMap<TreeId, Tree>,
    identities: BTreeMap<Arc<str>, Identity>,
    next_tree: u64,
    /// Identities whose servers have started or ended since they were last taken. Detectors run for these
    /// only.
    changed: BTreeSet<Arc<str>>,
    /// Processes that have just begun a server.
    begun: Vec<Pid>,
    /// Live servers that are not plain programs.
    live_servers: usize,
    /// Those that looks have found idle, by the time until which that holds.
    found_until: BTreeSet<(Time, TreeId)>,
    /// Live identities of packages, and all others.
    live_identities: [usize; 2],
    /// The latest time that is known.
    latest: Time,
    /// The time between two looks at a server.
    looks_every: Duration,
    /// How many servers have ended, or were none.
    ended: u64,
    /// Processes not tracked because [`MAX_PROCESSES`] was reached.
    pub overflowed: u64,
}

impl Registry {
    #[must_use]
    pub fn processes(&self) -> usize {
        self.processes.len()
    }

    /// Returns the identities that have changed since the last call.
    pub fn take_changed(&mut self) -> BTreeSet<Arc<str>> {
        mem::take(&mut self.changed)
    }

    /// Sets the time between two looks at a server.
    pub fn expect_looks(&mut self, every: Duration) {
        self.looks_every = every;
    }

    /// Returns a number that grows with each end of a server.
    #[must_use]
    pub fn ended(&self) -> u64 {
        self.ended
    }

    /// Live servers of all identities but plain programs.
    #[must_use]
    pub fn live_servers(&self) -> usize {
        self.live_servers
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
        self.identities.iter().map(|(name, identity)| (&**name, identity))
    }

    #[must_use]
    pub fn identity(&self, name: &str) -> Option<&Identity> {
        self.identities.get(name)
    }

    /// Returns the identity and the processes of each live server.
    #[must_use]
    pub fn trees(&self) -> Vec<(String, Vec<Pid>)> {
        self.grouped(Some)
    }

    /// Returns the identity and the processes of each live server of a package,
    /// with all programs that it started.
    #[must_use]
    pub fn launched(&self) -> Vec<(String, Vec<Pid>)> {
        // The outer server is older, and so has the lower number.
        let mut launched_by: BTreeMap<TreeId, TreeId> = BTreeMap::new();
        for (id, tree) in &self.trees {
            let outer = tree.outer.and_then(|outer| launched_by.get(&outer).copied());
            if let Some(by) = if tree.naming.is_firm() { Some(*id) } else { outer } {
                launched_by.insert(*id, by);
            }
        }
        self.grouped(|id| launched_by.get(&id).copied())
    }

    fn grouped(&self, by: impl Fn(TreeId) -> Option<TreeId>) -> Vec<(String, Vec<Pid>)> {
        let mut members: BTreeMap<TreeId, Vec<Pid>> = BTreeMap::new();
        for (pid, process) in &self.processes {
            if let Some(tree) = process.tree.and_then(&by) {
                members.entry(tree).or_default().push(*pid);
            }
        }
        let tree = |(id, pids)| Some((self.trees.get(&id)?.identity.to_string(), pids));
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
        self.latest = self.latest.max(born);
        self.exit(child); // The pid was reused, so the old process is gone.
        let (tree, runs) = match self.processes.get(&parent) {
            Some(parent) => (parent.tree, parent.runs.clone()),
            None => (None, None),
        };
        self.add(child, LiveProcess { parent, tree, runs, ..LiveProcess::alone(born) });
    }

    pub fn exec(
        &mut self,
        now: Time,
        born: Time,
        pid: Pid,
        command: &CommandLine,
        grammar: &Grammar,
    ) {
        if !self.holds(pid) {
            self.add(pid, LiveProcess::alone(born));
        }
        let (start, command) = (&grammar.identify(command), command.fingerprint());
        self.run(pid, Sighting { at: now, learned: now, start, command });
    }

    /// Adds a process that was moved in from outside: a `docker exec`, or a container's first
    /// process. It may be a launcher that never execs again, so it is identified by what `/proc`
    /// shows.
    pub fn arrive(
        &mut self,
        now: Time,
        born: Time,
        pid: Pid,
        seen: Option<&Observed>,
        grammar: &Grammar,
    ) {
        if !self.holds(pid) {
            self.add(pid, LiveProcess::alone(born));
        }
        if let Some(seen) = seen.filter(|seen| seen.start_ticks == ticks(born)) {
            self.observe(now, seen, grammar);
        }
    }

    /// Removes a process that ended or was moved out. Returns `None` if it was not known.
    pub fn exit(&mut self, pid: Pid) -> Option<Exited> {
        let process = self.processes.remove(&pid)?;
        self.births.remove(&(process.born, pid));
        Some(Exited { server: self.leave(process.tree, Departure::End) })
    }

    /// Notes that a process did something: its server is in use, and those around it are.
    pub fn used(&mut self, now: Time, pid: Pid) {
        self.note_use(now, self.tree_of(pid));
        self.server_active(now, self.tree_of(pid));
    }

    fn note_use(&mut self, now: Time, mut at: Option<TreeId>) {
        for _ in 0..MAX_NESTED {
            let Some(tree) = at.and_then(|id| self.trees.get_mut(&id)) else { return };
            tree.known.used(now);
            at = tree.outer;
        }
    }

    /// Lets a server, and those around it, count as idle from `since` on.
    fn server_active(&mut self, since: Time, mut at: Option<TreeId>) {
        // Bounded: servers are not nested deeper.
        for _ in 0..MAX_NESTED {
            let Some((id, tree)) = at.and_then(|id| Some((id, self.trees.get_mut(&id)?))) else {
                return;
            };
            let before = tree.idle_since();
            tree.active = since;
            at = tree.outer;
            self.note_idle_since(id, before);
        }
    }

    fn tree_of(&self, pid: Pid) -> Option<TreeId> {
        self.processes.get(&pid)?.tree
    }

    fn run(&mut self, pid: Pid, seen: Sighting<'_>) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        process.is_wrapper = !matches!(seen.start, Start::Server(_));
        let Start::Server(named) = seen.start else { return };
        let is_clear = named.naming != Naming::Unclear;
        let joined = process.position_of(named).or_else(|| {
            let process = self.processes.get(&pid)?.clone();
            self.joins_its_script(pid, &process, named)
        });
        if joined.is_none() && is_clear {
            self.start_tree(pid, named, seen);
        }
        let alone = if named.launches && is_clear { Position::Launcher } else { Position::Program };
        let position = joined.unwrap_or(alone);
        let identity = if is_clear { named.identity.as_str() } else { "" };
        if let Some(process) = self.processes.get_mut(&pid) {
            process.runs = Some(Running { identity: identity.into(), position });
            process.has_execed = true;
            process.command = seen.command;
        }
    }

    /// Returns the position of a program in the server of the script that has started it. A script of an npm package
    /// often only starts a program for this platform, which is the same server then. One that starts several of them
    /// is a server beside them: they must be counted.
    fn joins_its_script(
        &mut self,
        pid: Pid,
        process: &LiveProcess,
        new: &Named,
    ) -> Option<Position> {
        let (id, runs) = (process.tree?, process.runs.as_ref()?);
        let tree = self.trees.get(&id)?;
        let is_the_script = tree.naming == Naming::Script
            && runs.position == Position::Program
            && runs.identity == tree.identity;
        let has_another = tree.program.is_some_and(|program| {
            program.0 != pid && self.lives(program) && self.tree_of(program.0) == Some(id)
        });
        if !is_the_script || has_another || !new.is_for_a_platform_of(&tree.identity) {
            return None;
        }
        self.trees.get_mut(&id)?.program = Some((pid, process.born));
        Some(Position::Program)
    }

    fn start_tree(&mut self, pid: Pid, named: &Named, seen: Sighting<'_>) {
        let is_firm = named.naming.is_firm();
        let identity: Arc<str> = match self.has_room_for(&named.identity, is_firm) {
            true => named.identity.as_str().into(),
            false => OTHER_IDENTITIES.into(),
        };
        let origin = self.origin_of(pid, seen.at != seen.learned);
        let Some(process) = self.processes.get_mut(&pid) else { return };
        self.next_tree += 1;
        let id = TreeId(self.next_tree);
        let outer = process.tree.replace(id);
        let known = self.identities.entry(identity.clone());
        let known = known.or_insert_with(|| Identity::new(seen.learned));
        self.live_identities[usize::from(is_firm)] += usize::from(known.of_kind(is_firm) == 0);
        let is_new = seen.learned.since(seen.at) < servers::PROMPT;
        // Only a look says what a server did before we knew of it. D waits for that, but not longer than one takes.
        let active = if is_new { seen.at } else { seen.learned.after(self.looks_every) };
        let begins = NewServer { at: seen.at, learned: seen.learned, idle: active };
        known.start(begins, id, is_firm);
        known.processes += 1;
        if known.matters() {
            self.changed.insert(identity.clone());
        }
        self.live_servers += usize::from(named.naming != Naming::Program);
        let (naming, known, started) = (named.naming, Known::default(), seen.at);
        let (members, is_proven, program) = (1, false, None);
        let idleness = Idleness::default();
        let tree = Tree {
            identity,
            started,
            naming,
            active,
            idleness,
            outer,
            members,
            origin,
            known,
            is_proven,
            program,
            asleep: None,
        };
        self.trees.insert(id, tree);
        self.latest = self.latest.max(seen.learned);
        if is_new {
            self.begun.push(pid);
        }
        self.leave(outer, Departure::End);
    }

    /// Returns whether `identity` can be tracked separately.
    fn has_room_for(&self, identity: &str, is_firm: bool) -> bool {
        self.live_identities[usize::from(is_firm)] < MAX_IDENTITIES
            || self.identities.get(identity).is_some_and(|known| known.of_kind(is_firm) > 0)
    }

    fn add(&mut self, pid: Pid, process: LiveProcess) {
        if self.processes.len() >= MAX_PROCESSES {
            self.overflowed += 1;
            return;
        }
        self.enter(process.tree);
        self.births.insert((process.born, pid));
        self.processes.insert(pid, process);
    }

    /// Counts one more process of a server.
    fn enter(&mut self, tree: Option<TreeId>) {
        let Some(tree) = tree.and_then(|tree| self.trees.get_mut(&tree)) else { return };
        tree.members += 1;
        if let Some(identity) = self.identities.get_mut(&tree.identity) {
            identity.processes += 1;
        }
    }

    /// Counts one process of a server less. Returns the server if that was the last one.
    fn leave(&mut self, tree: Option<TreeId>, departure: Departure) -> Option<ServerEnd> {
        let id = tree?;
        let tree = self.trees.get_mut(&id)?;
        tree.members -= 1;
        let identity = self.identities.get_mut(&tree.identity)?;
        identity.processes -= 1;
        if tree.members > 0 {
            return None;
        }
        let tree = self.trees.remove(&id)?;
        let idle_since = tree.idle_since();
        let Tree { identity: name, started, naming, idleness, is_proven, .. } = tree;
        if let Idleness::FoundUntil(end) = idleness {
            self.found_until.remove(&(end, id));
        }
        if is_proven {
            identity.disprove(idle_since, id);
        }
        self.ended += 1;
        identity.turn_to(self.latest);
        self.live_servers -= usize::from(naming != Naming::Program);
        let is_firm = naming.is_firm();
        if identity.matters() {
            self.changed.insert(name.clone());
        }
        let remains = match departure {
            Departure::End => identity.end((started, idle_since), id, is_firm),
            Departure::Mistake => identity.withdraw((started, idle_since), id, is_firm),
        };
        self.live_identities[usize::from(is_firm)] -= usize::from(identity.of_kind(is_firm) == 0);
        match remains {
            Remains::Live => {}
            Remains::Nothing => drop(self.identities.remove(&name)),
            Remains::Memory => self.make_room(),
        }
        Some(ServerEnd { identity: name, naming, started })
    }

    /// Forgets the identities without a live server, if there are too many. First those that hardly started.
    fn make_room(&mut self) {
        let dead = |known: &&Identity| known.live.len() == 0;
        let live: usize = self.live_identities.iter().sum();
        if self.identities.len().saturating_sub(live) <= 2 * MAX_IDENTITIES {
            return;
        }
        self.identities.retain(|_, known| !dead(&&*known) || known.starts > 1);
        if self.identities.len().saturating_sub(live) > MAX_IDENTITIES {
            self.identities.retain(|_, known| !dead(&&*known));
        }
    }
}

/// Returns a time as `/proc/PID/stat` shows it.
#[must_use]
pub fn ticks(time: Time) -> Ticks {
    Ticks(time.0 / TICK_NS)
}

#[cfg(test)]
mod tests;
