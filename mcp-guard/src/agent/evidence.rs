//! Looks at the servers of all guards, one guard after the other, on threads of their own.
//!
//! Some files below `/proc` wait for the process that they are about (`exec_update_lock` in the kernel). So there
//! are two lanes: a guard that holds up one of them does not keep the others from being looked at. The stdio of a
//! new server is read on a third thread, because it must be read soon, and cannot hang.

use std::{
    collections::VecDeque,
    io,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use mcp_guard_core::{
    Time,
    effect::Input,
    evidence::{ServerSeen, StdioAtExec},
    id::{CgroupId, GuardId, Pid, Ticks},
    registry::{ToLookAt, TreeId},
};
use tokio::sync::mpsc::UnboundedSender;

use super::Agent;
use crate::host::{
    clock,
    evidence::{self, Freezers},
};

/// Lanes on which servers are looked at.
const LANES: usize = 2;
/// How old a lone server must be: younger than this, no detector asks for it.
const LEAST_AGE: Duration = Duration::from_secs(30);
/// After this much work a lane rests [`REST`] times as long, so that it costs a tenth of a CPU at most.
const WORK: Duration = Duration::from_millis(5);
const REST: u32 = 9;
/// A look that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long the guards of one turn are prepared at most.
const PREPARING: Duration = Duration::from_millis(10);
/// Most batches of new servers that wait for their stdio to be read. More are left out.
const BATCHES: usize = 64;

/// A process that has just begun a server.
type Begun = (GuardId, Pid);

/// A finding of a thread.
pub(super) enum Sighted {
    Stdio(Vec<(GuardId, Pid, Ticks, StdioAtExec)>),
    Servers { lane: usize, guard: GuardId, cgroup: CgroupId, seen: Vec<(TreeId, ServerSeen)> },
}

/// A guard whose servers are to be looked at.
struct ToLook {
    guard: GuardId,
    cgroup: CgroupId,
    servers: Vec<ToLookAt>,
}

struct Lane {
    thread: mpsc::Sender<ToLook>,
    /// Since when, and at which guard.
    busy: Option<(Time, GuardId)>,
    is_reported: bool,
}

pub(super) struct Lookers {
    stdio: mpsc::SyncSender<Vec<Begun>>,
    /// Processes that have begun a server since the last turn.
    begun: Vec<Begun>,
    lanes: Vec<Lane>,
    /// Guards that are still to be looked at in this round.
    queue: VecDeque<GuardId>,
    next_round: Time,
}

impl Lookers {
    /// # Errors
    /// A thread cannot be created.
    pub fn start(
        now: Time,
        freezers: &Freezers,
        found: &UnboundedSender<Sighted>,
    ) -> io::Result<Self> {
        let lane = |at: usize| {
            let (thread, wanted) = mpsc::channel();
            let (freezers, found) = (freezers.clone(), found.clone());
            let look = move || look(at, &freezers, &wanted, &found);
            thread::Builder::new().name("evidence".to_owned()).spawn(look)?;
            Ok(Lane { thread, busy: None, is_reported: false })
        };
        let lanes = (0..LANES).map(lane).collect::<io::Result<_>>()?;
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
        Ok(Self { stdio, begun: Vec::new(), lanes, queue: VecDeque::new(), next_round: now })
    }

    /// Has the stdio of a new server read at the end of the turn.
    pub fn want_stdio(&mut self, guard: GuardId, pid: Pid) {
        self.begun.push((guard, pid));
    }

    /// Returns a lane that has nothing to do.
    fn idle_lane(&self) -> Option<usize> {
        self.lanes.iter().position(|lane| lane.busy.is_none())
    }

    /// Returns the guard that holds up a lane, once.
    fn hanging(&mut self, now: Time) -> Option<GuardId> {
        let hangs = |lane: &&mut Lane| {
            !lane.is_reported && lane.busy.is_some_and(|(since, _)| now.since(since) > PATIENCE)
        };
        let lane = self.lanes.iter_mut().find(hangs)?;
        lane.is_reported = true;
        lane.busy.map(|(_, guard)| guard)
    }
}

/// Looks at the servers of one guard after the other.
fn look(
    lane: usize,
    freezers: &Freezers,
    wanted: &mpsc::Receiver<ToLook>,
    found: &UnboundedSender<Sighted>,
) {
    for ToLook { guard, cgroup, servers } in wanted {
        let mut seen = Vec::with_capacity(servers.len());
        let mut began = Instant::now();
        for server in servers {
            seen.push((server.server, evidence::survey(&server, freezers)));
            let worked = began.elapsed();
            if worked >= WORK {
                thread::sleep(worked * REST);
                began = Instant::now();
            }
        }
        // The loop ends only with the program.
        let _ = found.send(Sighted::Servers { lane, guard, cgroup, seen });
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
        if self.lookers.queue.is_empty() && now >= self.lookers.next_round {
            self.lookers.queue = self.guards.watched().into();
            self.lookers.next_round = now.after(self.core.policy().evidence.every);
        }
        let end = now.after(PREPARING);
        while let Some(lane) = self.lookers.idle_lane()
            && clock::now() < end
            && let Some(guard) = self.lookers.queue.pop_front()
        {
            self.give(lane, guard);
        }
        if let Some(guard) = self.lookers.hanging(now) {
            let name = self.guards.get(guard).map_or("", |held| held.subject.name.as_str());
            tracing::error!(name, "a look at the servers hangs; this guard has no evidence");
        }
    }

    fn give(&mut self, lane: usize, guard: GuardId) {
        let (Some(held), Some(state)) = (self.guards.get(guard), self.core.guard(guard)) else {
            return;
        };
        let is_hanging =
            self.lookers.lanes.iter().any(|lane| lane.busy.is_some_and(|(_, busy)| busy == guard));
        if is_hanging {
            return;
        }
        let (now, cgroup) = (clock::now(), held.cgroup.id());
        let servers = state.registry.to_look_at(now, LEAST_AGE);
        if servers.is_empty() {
            return;
        }
        let Some(lane) = self.lookers.lanes.get_mut(lane) else { return };
        match lane.thread.send(ToLook { guard, cgroup, servers }) {
            Ok(()) => lane.busy = Some((now, guard)),
            Err(_) => tracing::error!("a thread that looks at servers is gone"),
        }
    }

    /// Takes what a thread has found.
    pub(super) fn take_evidence(&mut self, found: Sighted) {
        match found {
            Sighted::Stdio(all) => {
                for (guard, pid, start_ticks, stdio) in all {
                    self.step(Input::StdioRead { guard, pid, start_ticks, stdio });
                }
            }
            Sighted::Servers { lane, guard, cgroup, seen } => {
                if let Some(lane) = self.lookers.lanes.get_mut(lane) {
                    (lane.busy, lane.is_reported) = (None, false);
                }
                // The slot may have another guard by now.
                if self.guards.get(guard).is_some_and(|held| held.cgroup.id() == cgroup) {
                    self.step(Input::Looked { guard, servers: seen });
                }
                self.look_at_servers();
            }
        }
    }
}
