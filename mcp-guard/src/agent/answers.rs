//! Answers about all guards. They are made in parts, over several turns of the loop, so that they do not delay it.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use mcp_guard_core::{
    Time,
    id::GuardId,
    registry::SoughtClient,
    status::{GuardState, HerdStatus, ServerStatus},
};
use serde_json::Value;

use super::{
    Agent,
    askers::{ReplyTo, send_reply},
    clients::ClientList,
};
use crate::{
    control::wire::{GetServers, GuardServers, Reply, Servers, Status, WatchedStatus, failed},
    host::{clock, evidence::GuardSearch, process},
};

/// How long answers are made in one turn. The last guard may take longer.
const PART: Duration = Duration::from_millis(10);
/// Most servers in one answer. A person cannot read more.
const MOST_SERVERS: usize = 10_000;

/// Answers that are being made.
#[derive(Default)]
pub(super) struct Answers(VecDeque<Unfinished>);

impl Answers {
    pub fn are_waited_for(&self) -> bool {
        !self.0.is_empty()
    }
}

struct Unfinished {
    reply: ReplyTo,
    /// Guards that are not in the answer yet.
    left: VecDeque<GuardId>,
    about: About,
}

enum About {
    Guards(Vec<Value>),
    Servers {
        asked: GetServers,
        listed: Servers,
        began: Time,
        /// How many servers are listed.
        count: usize,
        /// For each listed guard.
        searches: Vec<GuardSearch>,
        /// For all other guards.
        others: Vec<GuardSearch>,
    },
}

impl Agent {
    pub(super) fn begin_status(&mut self, reply: ReplyTo) {
        self.begin_answer(reply, About::Guards(Vec::new()), self.guards.ids());
    }

    pub(super) fn begin_servers(&mut self, asked: GetServers, reply: ReplyTo) {
        let listed = Servers { guards: Vec::new(), left_out: 0, age_seconds: 0 };
        let (searches, others) = (Vec::new(), Vec::new());
        let began = clock::now();
        let about = About::Servers { asked, listed, began, count: 0, searches, others };
        self.begin_answer(reply, about, self.guards.watched());
    }

    fn begin_answer(&mut self, reply: ReplyTo, about: About, guards: Vec<GuardId>) {
        self.answers.0.push_back(Unfinished { reply, about, left: guards.into() });
    }

    /// Makes the next part of the answers that clients wait for.
    pub(super) fn go_on_answering(&mut self) {
        let end = clock::now().after(PART);
        while let Some(mut answer) = self.answers.0.pop_front() {
            match self.make_part(&mut answer, end) {
                Ok(true) => self.send_answer(answer),
                Ok(false) => return self.answers.0.push_front(answer),
                Err(error) => send_reply(answer.reply, failed(&error.to_string())),
            }
        }
    }

    /// Returns whether the answer has all guards.
    fn make_part(&mut self, answer: &mut Unfinished, end: Time) -> serde_json::Result<bool> {
        while clock::now() < end {
            let Some(guard) = answer.left.pop_front() else { return Ok(true) };
            match &mut answer.about {
                About::Guards(guards) => {
                    guards.extend(self.status_of(guard).map(serde_json::to_value).transpose()?);
                }
                About::Servers { asked, listed, count, searches, others, .. } => {
                    let room = MOST_SERVERS.saturating_sub(*count);
                    let Some(state) = self.core.guard(guard) else { continue };
                    let processes = state.registry.pids();
                    match self.servers_of(guard, asked, room) {
                        Some((guard, more, servers)) => {
                            *count += servers.len();
                            listed.left_out += more;
                            listed.guards.push(guard);
                            searches.push(GuardSearch { servers, processes });
                        }
                        None => others.push(GuardSearch { servers: Vec::new(), processes }),
                    }
                }
            }
        }
        Ok(false)
    }

    fn send_answer(&mut self, answer: Unfinished) {
        let Unfinished { reply, about, .. } = answer;
        match about {
            About::Guards(guards) => {
                let answer = serde_json::to_value(self.status()).map(|mut parameters| {
                    parameters["guards"] = Value::Array(guards);
                    Reply { parameters, ..Reply::default() }
                });
                send_reply(reply, answer.unwrap_or_else(|error| failed(&error.to_string())));
            }
            About::Servers { listed: servers, began: listed, mut searches, others, .. } => {
                searches.extend(others);
                let grammar = Arc::clone(self.core.grammar());
                self.clients.answer(ClientList { reply, servers, searches, grammar, listed });
            }
        }
    }

    /// Lists the servers of one guard, and says how many more it has, and by what their clients are found.
    fn servers_of(
        &self,
        guard: GuardId,
        asked: &GetServers,
        room: usize,
    ) -> Option<(GuardServers, usize, Vec<SoughtClient>)> {
        let (held, state) = (self.guards.get(guard)?, self.core.guard(guard)?);
        let subject = &held.subject;
        if asked.cgroup_id.is_some_and(|id| id != subject.cgroup_id) {
            return None;
        }
        let times = (clock::now(), self.core.policy().evidence.every);
        let identity = asked.identity.as_deref();
        let (servers, more) = ServerStatus::all(times, state, identity, room);
        let sought = state.registry.clients_of(identity, servers.len());
        let listed = GuardServers {
            name: subject.name.clone(),
            cgroup: subject.cgroup.clone(),
            cgroup_id: subject.cgroup_id,
            servers,
        };
        Some((listed, more, sought))
    }

    /// Reports the current state of a guard. It decides nothing and does not change the core.
    fn status_of(&mut self, guard: GuardId) -> Option<WatchedStatus> {
        // For a guard that began empty: on a hybrid host, its pids cgroup is found through a process.
        self.guards.get_mut(guard)?.cgroup.find_pids(&self.layout);
        let status = self.core.status_of(clock::now(), guard, self.counting.totals(guard))?;
        let by_hand = self.guards.is_by_hand(guard);
        let held = self.guards.get(guard)?;
        let stopping = self.executor.stopping(held);
        if by_hand && status.state == GuardState::Free && stopping.is_none() {
            return None;
        }
        let state = self.core.guard(guard)?;
        let policy = state.terms.pids_limit;
        let request = held.container.as_deref().and_then(|id| self.upkeep.requests.get(id));
        Some(WatchedStatus {
            guard: status,
            cgroup: held.subject.cgroup.clone(),
            cgroup_id: held.subject.cgroup_id,
            container: held.container.clone(),
            paused: held.paused,
            stopping,
            by_hand,
            pids_max: held.cgroup.pids_max().ok().map(|limit| limit.to_string()),
            pids_current: held.cgroup.pids_current().ok(),
            pids_wanted: state.limits.wanted_now(policy, request),
            pids_policy: policy,
            pids_left: state.limits.is_left(),
        })
    }

    /// Reports the agent's own state, without its guards.
    fn status(&self) -> Status {
        let now = clock::now();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: process::this(),
            uptime_ms: u64::try_from(now.since(self.turns.started).as_millis()).unwrap_or(u64::MAX),
            mode: self.core.policy().mode,
            guards: Vec::new(),
            losses: self.counting.losses(),
            audit_lost: self.executor.audit.lost(),
            unguarded: self.unguarded(now),
            longest_turn_us: u64::try_from(self.turns.longest().as_micros()).unwrap_or(u64::MAX),
            herds: self.core.herds(now).map(HerdStatus::from).collect(),
            clients_unseen: self.clients_unseen(now),
            engine: self.engines.state.clone(),
            policy: self.reloads.status(),
        }
    }
}
