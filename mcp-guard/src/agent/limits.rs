//! Feeds the core its inputs for limits: a reading every second, facts when it asks for them, and the
//! requests of operators.
//!
//! A reading takes one small file per guard, and so notices every writer. Slow sources (facts, an engine,
//! systemd) are asked elsewhere, and their answers come back to the loop.

use std::time::{Duration, SystemTime};

use mcp_guard_core::{
    effect::{Input, SeenLimit},
    id::{GuardId, Ticket},
};
use tokio::sync::mpsc::UnboundedSender;

use super::{
    Agent,
    reader::{FactsQuestion, FactsReader, News},
};
use crate::{engine::EngineId, requests::Requests};

pub(super) struct Upkeep {
    /// Stored requests of operators.
    pub requests: Requests,
    pub reader: FactsReader,
    /// Where answers about limits are sent.
    pub to_news: UnboundedSender<News>,
}

impl Agent {
    /// Notes the limit that the engine declares for a container.
    pub(super) fn declare(&mut self, guard: GuardId, limit: Option<u64>) {
        self.step(Input::Declared { guard, limit });
    }

    pub(super) fn look_at_limits(&mut self) {
        for guard in self.guards.watched() {
            self.look_at_limit(guard);
        }
    }

    /// Feeds one reading of a guard's limit to the core. Done for a new guard too: a restarted container has
    /// the limit that its engine gave it.
    pub(super) fn look_at_limit(&mut self, guard: GuardId) {
        if let Some(seen) = self.seen_limit(guard) {
            self.step(Input::LimitSeen { guard, seen });
        }
    }

    /// Reads a guard's limit. Returns `None` if it cannot be read.
    fn seen_limit(&mut self, guard: GuardId) -> Option<SeenLimit> {
        let held = self.guards.get_mut(guard)?;
        held.cgroup.find_pids(&self.layout);
        let in_force = held.cgroup.pids_max().ok()?;
        let tasks = held.cgroup.pids_current().ok();
        let request = held.container.as_deref().and_then(|id| self.upkeep.requests.get(id));
        Some(SeenLimit { in_force, tasks, request, agent_goes_on: false, clamped: false })
    }

    /// Asks the reader for facts. Returns a failed answer at once if the reader is gone.
    pub(super) fn ask_for_facts(&mut self, guard: GuardId, ticket: Ticket) -> Option<Input> {
        let held = self.guards.get(guard)?;
        let ask = FactsQuestion {
            guard,
            ticket,
            container: held.container.clone(),
            cgroup: held.subject.cgroup.clone(),
            described: self.engines.described.clone(),
        };
        if self.upkeep.reader.ask(ask) {
            return None;
        }
        let facts = Err("the thread that reads facts is gone".to_owned());
        Some(Input::LimitFacts { guard, ticket, facts, seen: None })
    }

    pub(super) fn forget_request(&self, guard: GuardId, at: Duration) {
        let held = self.guards.get(guard);
        let Some(id) = held.and_then(|held| held.container.as_deref()) else { return };
        if let Err(error) = self.upkeep.requests.remove_as_of(id, at) {
            tracing::warn!(%error, "cannot remove a request for a limit that has ended");
        }
    }

    /// Asks an engine that has just become reachable for all its containers.
    pub(super) fn ask_for_list(&self, id: EngineId) {
        let Some(engine) = self.engines.all.get(id) else { return };
        let news = self.upkeep.to_news.clone();
        tokio::spawn(async move {
            let since = SystemTime::now();
            if let Ok(listed) = engine.containers().await {
                let ids = listed.into_iter().map(|one| one.id).collect();
                let _ = news.send(News::Listed(id, ids, since));
            }
        });
    }

    pub(super) fn news(&mut self, news: News) {
        match news {
            News::Facts { guard, ticket, facts } => {
                let seen = self.seen_limit(guard);
                self.step(Input::LimitFacts { guard, ticket, facts, seen });
            }
            News::Listed(engine, ids, since) => {
                let Some(engine) = self.engines.all.get(engine) else { return };
                let requests = &self.upkeep.requests;
                if let Err(error) = requests.forget_gone(&ids, engine.socket(), since) {
                    tracing::warn!(%error, "cannot remove the requests for containers that are gone");
                }
            }
        }
    }
}
