//! Corrects the registry by what `/proc` shows, because records of births, execs and ends may be lost.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
};

use super::{Departure, LiveProcess, Observed, Registry, Running, Sighting, TICK_NS, ticks};
use crate::{
    Time,
    id::{Pid, Ticks},
    server::{Grammar, Naming, Start},
};

impl Registry {
    /// Makes the registry match what `/proc` shows now. Known processes keep their history.
    pub fn reconcile(&mut self, now: Time, mut seen: Vec<Observed>, grammar: &Grammar) {
        self.latest = self.latest.max(now);
        seen.sort_unstable_by_key(|process| (process.start_ticks, process.pid));
        self.remove_all_but(&seen);
        let mut parents: BTreeSet<Pid> = self.processes.values().map(|one| one.parent).collect();
        // Processes that are new, or of another server than before. Their children may be known already.
        let mut moved = BTreeSet::new();
        for mut process in seen {
            let pid = process.pid;
            let known = self.processes.get(&pid).map(|known| (known.tree, known.parent));
            // A launcher starts one program. What else it has as a child was given to it when its own parent
            // ended: it is the first process of the container.
            let is_given = self.is_launcher(process.parent)
                && parents.contains(&process.parent)
                && known.is_none_or(|(_, parent)| parent != process.parent);
            if is_given {
                process.parent = Pid(0);
            }
            parents.insert(process.parent);
            let Some((tree, parent)) = known else {
                self.observe(now, &process, grammar);
                moved.insert(pid);
                continue;
            };
            let is_outside = self.is_launcher(parent) && self.tree_of(parent) != tree;
            if is_outside || moved.contains(&parent) || self.adopt(&process) {
                self.place_again(&process, grammar);
            }
            self.observe(now, &process, grammar);
            if self.tree_of(pid) != tree {
                moved.insert(pid);
            }
        }
    }

    /// Removes the processes that are gone.
    fn remove_all_but(&mut self, seen: &[Observed]) {
        let alive: BTreeMap<Pid, Ticks> =
            seen.iter().map(|process| (process.pid, process.start_ticks)).collect();
        let is_gone = |pid: &Pid, known: &LiveProcess| alive.get(pid) != Some(&ticks(known.born));
        let gone = self.processes.iter().filter(|(pid, known)| is_gone(pid, known));
        let gone: Vec<Pid> = gone.map(|(pid, _)| *pid).collect();
        for pid in gone {
            self.exit(pid);
        }
    }

    fn is_launcher(&self, pid: Pid) -> bool {
        self.processes.get(&pid).is_some_and(LiveProcess::is_launcher)
    }

    /// Gives a process its parent, if the record of its birth was lost and it was taken for a start of its own.
    fn adopt(&mut self, seen: &Observed) -> bool {
        let has_parent = seen.parent != seen.pid && self.holds(seen.parent);
        match self.processes.get_mut(&seen.pid) {
            Some(known)
                if known.parent == Pid(0) && has_parent && !seen.command.argv.is_empty() =>
            {
                known.parent = seen.parent;
                true
            }
            Some(_) | None => false,
        }
    }

    /// Makes a process a part of its parent's server, if it turns out to be one. Whether it was born before the
    /// parent ran that program is unknown here, but it is rare.
    fn place_again(&mut self, seen: &Observed, grammar: &Grammar) {
        let Some(known) = self.processes.get(&seen.pid) else { return };
        let Some(parent) = self.processes.get(&known.parent) else { return };
        let (tree, runs) = (parent.tree, parent.runs.clone());
        let born = LiveProcess { tree, runs, ..LiveProcess::alone(known.born) };
        let runs = if known.has_execed {
            // An unreadable command line says nothing.
            if seen.command.argv.is_empty() {
                return;
            }
            let Start::Server(named) = grammar.identify(&seen.command) else { return };
            let joined = born.position_of(&named);
            let Some(position) = joined.or_else(|| self.joins_its_script(seen.pid, &born, &named))
            else {
                return;
            };
            let identity = if named.naming == Naming::Unclear { "" } else { &named.identity };
            Some(Running { identity: identity.into(), position })
        } else {
            born.runs
        };
        self.enter(tree);
        let Some(process) = self.processes.get_mut(&seen.pid) else { return };
        process.runs = runs;
        let left = mem::replace(&mut process.tree, tree);
        self.leave(left, Departure::Mistake);
    }

    pub(super) fn observe(&mut self, now: Time, seen: &Observed, grammar: &Grammar) {
        let born = Time(seen.start_ticks.0.saturating_mul(TICK_NS));
        if !self.holds(seen.pid) {
            self.fork(born, seen.pid, seen.parent);
        }
        let Some(known) = self.processes.get(&seen.pid) else { return };
        let command = seen.command.fingerprint();
        // An unreadable command line says nothing, and a process that renamed itself is what it was.
        let is_known =
            known.has_execed && (known.command == command || !seen.command.is_as_started());
        if seen.command.argv.is_empty() || is_known {
            return;
        }
        let start = &grammar.identify(&seen.command);
        if !known.has_execed || known.runs_another(start) {
            self.run(seen.pid, Sighting { at: known.born, learned: now, start, command });
        }
    }
}

impl LiveProcess {
    /// Returns whether it runs another program than we know: the record of an exec was lost.
    fn runs_another(&self, start: &Start) -> bool {
        let Start::Server(named) = start else { return false };
        let runs = self.runs.as_ref().map(|runs| &*runs.identity);
        named.naming != Naming::Unclear && runs != Some(&named.identity)
    }
}
