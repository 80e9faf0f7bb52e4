//! Looks at the servers of all guards, one guard after the other, on threads of their own.
//!
//! The stdio of a new server is read on a thread of its own, because it must be read soon, and cannot hang.

use std::{
    io,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use mcp_guard_core::{
    Time,
    effect::Input,
    evidence::Unreaped,
    id::{CgroupId, GuardId, Pid},
};
use tokio::sync::mpsc::UnboundedSender;

use super::{
    Agent,
    lanes::{Lanes, Sighted, ToLook},
    turns::{LookTurns, NextLook, Rest},
};
use crate::host::{
    clock,
    evidence::{self, Freezers},
};

/// How old a lone server must be: younger than this, no detector asks for it.
const LEAST_AGE: Duration = Duration::from_secs(30);
/// How long the guards of one turn are prepared at most.
const PREPARING: Duration = Duration::from_millis(10);
/// Most batches of new servers that wait for their stdio to be read. More are left out.
const BATCHES: usize = 64;

/// A process that has just begun a server.
type Begun = (GuardId, Pid);

pub(super) struct Lookers {
    stdio: mpsc::SyncSender<Vec<Begun>>,
    /// Processes that have begun a server since the last turn.
    begun: Vec<Begun>,
    lanes: Lanes,
    turns: LookTurns,
    next_round: Time,
}

impl Lookers {
    /// # Errors
    /// A thread cannot be created.
    pub fn start(
        now: Time,
        freezers: Freezers,
        found: &UnboundedSender<Sighted>,
    ) -> io::Result<Self> {
        let look = move |server: &_| evidence::survey(server, &freezers);
        let lanes = Lanes::start(Arc::new(look), found.clone())?;
        let (stdio, batches) = mpsc::sync_channel::<Vec<Begun>>(BATCHES);
        let found = found.clone();
        thread::Builder::new().name("stdio".to_owned()).spawn(move || {
            for batch in batches {
                let read = |(guard, pid): Begun| {
                    let (start, stdio) = evidence::stdio(pid).ok()?;
                    Some((guard, pid, start, stdio))
                };
                // The loop ends only with the program.
                let _ = found.send(Sighted::Stdio(batch.into_iter().filter_map(read).collect()));
            }
        })?;
        Ok(Self { stdio, begun: Vec::new(), lanes, turns: LookTurns::default(), next_round: now })
    }

    /// Has the stdio of a new server read at the end of the turn.
    pub fn want_stdio(&mut self, guard: GuardId, pid: Pid) {
        self.begun.push((guard, pid));
    }
}

impl Agent {
    /// Has the stdio of new servers read.
    pub(super) fn read_stdio(&mut self) {
        if !self.lookers.begun.is_empty() {
            let batch = std::mem::take(&mut self.lookers.begun);
            // Those that are left out are looked for later.
            let _ = self.lookers.stdio.try_send(batch);
        }
    }

    /// Begins a round if one is due, and gives the idle lanes something to do.
    pub(super) fn look_at_servers(&mut self) {
        let now = clock::now();
        if now >= self.lookers.next_round && !self.lookers.turns.is_round() {
            self.lookers.turns.begin_round(self.guards.watched().into_iter());
            self.lookers.next_round = now.after(self.core.policy().evidence.every);
        }
        let end = now.after(PREPARING);
        while let Some(lane) = self.lookers.lanes.free(now)
            && clock::now() < end
            && let Some(next) = self.lookers.turns.next(now)
        {
            match next {
                NextLook::Guard(guard) => self.give(lane, guard),
                NextLook::Rest(Rest { guard, cgroup, servers: rest }) => {
                    let state = self.core.guard(guard).filter(|_| self.is_present(guard, cgroup));
                    let Some(state) = state else { continue };
                    // They may have other processes by now.
                    let mut servers = state.registry.to_look_at(now, LEAST_AGE);
                    servers.retain(|one| rest.contains(&one.server));
                    if !servers.is_empty() {
                        let rest = ToLook { guard, cgroup, servers, zombies: None };
                        self.lookers.lanes.give(lane, rest);
                    }
                }
            }
        }
        if let Some(guard) = self.lookers.lanes.hanging(now) {
            let name = self.guards.get(guard).map_or("", |held| held.subject.name.as_str());
            tracing::error!(name, "a look at the servers hangs; this guard has no evidence");
        }
    }

    fn give(&mut self, lane: usize, guard: GuardId) {
        let (Some(held), Some(state)) = (self.guards.get(guard), self.core.guard(guard)) else {
            return;
        };
        let (now, cgroup) = (clock::now(), held.cgroup.id());
        if self.lookers.turns.has_rest(guard, cgroup) || self.lookers.lanes.are_at(guard) {
            return;
        }
        let servers = state.registry.to_look_at(now, LEAST_AGE);
        // Threads are charged as well: the thread that looks counts what lives.
        let living = u64::try_from(state.registry.processes()).unwrap_or(u64::MAX);
        let may_be = |charged: u64| charged.saturating_sub(living) >= Unreaped::FEWEST;
        let may_be = held.cgroup.pids_current().ok().map(may_be);
        let had_some = state.had_zombies();
        let charged = if may_be == Some(true) { held.cgroup.charged().ok() } else { None };
        let zombies = charged.map(|charged| (charged, had_some));
        if had_some && may_be == Some(false) {
            self.step(Input::Unreaped { guard, found: Unreaped::default() });
        }
        if !servers.is_empty() || zombies.is_some() {
            self.lookers.lanes.give(lane, ToLook { guard, cgroup, servers, zombies });
        }
    }

    /// Whether a slot still has this guard: it may have another one by now.
    fn is_present(&self, guard: GuardId, cgroup: CgroupId) -> bool {
        self.guards.get(guard).is_some_and(|held| held.cgroup.id() == cgroup)
    }

    /// Takes what a thread has found.
    pub(super) fn take_evidence(&mut self, found: Sighted) {
        match found {
            Sighted::Stdio(all) => {
                for (guard, pid, start_ticks, stdio) in all {
                    self.step(Input::StdioRead { guard, pid, start_ticks, stdio });
                }
            }
            Sighted::Clients(engine, look) => self.take_clients(engine, look),
            Sighted::Zombies { guard, cgroup, found } => {
                if self.is_present(guard, cgroup) {
                    self.step(Input::Unreaped { guard, found });
                }
            }
            Sighted::Servers { lane, guard, cgroup, seen, last } => {
                if let Some(left) = last {
                    self.lookers.lanes.finished(lane);
                    let servers = left.servers.into_iter().map(|one| one.server).collect();
                    let rest = Rest { guard, cgroup, servers };
                    self.lookers.turns.put_back(clock::now(), rest, left.owes);
                }
                if !seen.is_empty() && self.is_present(guard, cgroup) {
                    self.step(Input::Looked { guard, servers: seen });
                }
                self.look_at_servers();
            }
        }
    }
}
