//! Keeps the limit of each guard in force: a look every second, fresh facts where one is not, then
//! what `restore` makes of them.
//!
//! The look reads one small file per guard and sees whoever wrote it, by whatever way. What takes time
//! (facts, an engine, systemd) is asked elsewhere, and its answer comes back to the loop.

use std::{collections::VecDeque, sync::Arc, time::SystemTime};

use mcp_guard_core::{
    diagnose::facts::Facts,
    effect::GuardId,
    keep::Keep,
    limit::Limit,
    repair::{Next, Plan, Write},
};

use super::{Agent, reader::Ask};
use crate::{
    engine::EngineId,
    executor::limit::{Carried, Change},
    host::clock,
};

/// How the limit of one guard is held.
#[derive(Default)]
pub(super) struct Kept {
    pub(super) keep: Keep,
    /// What its engine keeps.
    pub(super) declared: Option<u64>,
    /// When an operator asked for it.
    asked_at: Option<SystemTime>,
    /// The facts that are being read for it; an answer to another question is not for it.
    asked: Option<u64>,
    /// It was said that its facts cannot be read.
    pub(super) said_unread: bool,
    /// What is still to be written, after the write that is under way, and what that comes to.
    pub(super) waiting: VecDeque<Write>,
    pub(super) then: Option<Then>,
    /// A plan that has nothing to write until tasks end.
    pub(super) idle: Option<Plan>,
    pub(super) reason: String,
}

/// What the writes of a plan come to.
pub(super) enum Then {
    Step(u64),
    Reached(Plan),
}

/// An answer to something that was asked for a limit.
pub(super) enum News {
    Facts {
        guard: GuardId,
        number: u64,
        facts: Result<Box<Facts>, String>,
    },
    Written(Arc<Change>, Carried),
    /// Ids of all containers of an engine, running or not, as it listed them after this time.
    Listed(EngineId, Vec<String>, SystemTime),
}

impl Agent {
    /// What the engine says that a container's limit is.
    pub(super) fn declare(&mut self, guard: GuardId, limit: Option<u64>) {
        self.keeps.entry(guard).or_default().declared = limit;
    }

    /// An operator's word, else the policy's, else the engine's.
    pub(super) fn wanted(&self, guard: GuardId) -> Option<u64> {
        let held = self.executor.held().get(&guard)?;
        let asked = held.container.as_deref().and_then(|id| self.limits.get(id));
        let declared = self.keeps.get(&guard).and_then(|kept| kept.declared);
        asked.or(self.policy_limit(guard)).or(declared)
    }

    pub(super) fn policy_limit(&self, guard: GuardId) -> Option<u64> {
        self.core.guard(guard)?.terms.pids_limit
    }

    pub(super) fn is_left(&self, guard: GuardId) -> bool {
        self.keeps.get(&guard).is_some_and(|kept| kept.keep.has_stopped())
    }

    pub(super) fn look_at_limits(&mut self) {
        for guard in self.counted() {
            self.look_at_limit(guard);
        }
    }

    /// Also for a guard that is new: a container that was started again has whatever its engine gave it.
    pub(super) fn look_at_limit(&mut self, guard: GuardId) {
        let Some(in_force) = self.in_force(guard) else { return };
        self.hear_the_operator(guard, in_force);
        let wanted = self.wanted(guard);
        let tasks = self.tasks(guard);
        let kept = self.keeps.entry(guard).or_default();
        let now = clock::now();
        if !kept.keep.look(now, wanted, in_force) {
            return;
        }
        let is_idle = |plan: &Plan| {
            Some(plan.limit) == wanted
                && tasks
                    .is_some_and(|tasks| plan.next(tasks, in_force, kept.keep.step()) == Next::Wait)
        };
        if kept.idle.as_ref().is_some_and(is_idle) {
            return kept.keep.waits(now);
        }
        kept.idle = None;
        self.ask_for_facts(guard);
    }

    /// A request that is new begins anew. One that the engine keeps and that is in force has done its work,
    /// and would undo the engine's next word; but where the policy says another number, it stands against that.
    fn hear_the_operator(&mut self, guard: GuardId, in_force: Limit) {
        let held = self.executor.held().get(&guard);
        let Some(id) = held.and_then(|held| held.container.as_deref()) else { return };
        let asked_at = self.limits.asked_at(id);
        let policy = self.policy_limit(guard);
        let kept = self.keeps.entry(guard).or_default();
        if asked_at.is_some() && asked_at != kept.asked_at {
            kept.keep.asked_again();
        }
        kept.asked_at = asked_at;
        if asked_at.is_some()
            && let Some(asked) = self.limits.get(id)
            && kept.declared == Some(asked)
            && policy.is_none_or(|limit| limit == asked)
            && in_force <= Limit::Tasks(asked)
            && let Err(error) = self.limits.remove(id)
        {
            tracing::warn!(%error, "a wanted limit that is reached cannot be removed");
        }
    }

    /// None where nothing is to be done about it: our clamp holds it, or somebody stands against it.
    pub(super) fn in_force(&mut self, guard: GuardId) -> Option<Limit> {
        let state = self.core.guard(guard)?;
        if state.clamp.is_some() || state.refusal.is_some() {
            return None;
        }
        let held = self.executor.held_mut().get_mut(&guard)?;
        held.cgroup.find_pids(&self.layout);
        held.cgroup.pids_max().ok()
    }

    pub(super) fn tasks(&self, guard: GuardId) -> Option<u64> {
        self.executor.held().get(&guard)?.cgroup.pids_current().ok()
    }

    fn ask_for_facts(&mut self, guard: GuardId) {
        let Some(held) = self.executor.held().get(&guard) else { return };
        self.questions += 1;
        let ask = Ask {
            guard,
            number: self.questions,
            container: held.container.clone(),
            cgroup: held.subject.cgroup.clone(),
            described: self.described.clone(),
        };
        if let Some(kept) = self.keeps.get_mut(&guard) {
            kept.asked = Some(self.questions);
        }
        if !self.reader.ask(ask) {
            self.facts_unread(guard, "the thread that reads facts is gone");
        }
    }

    /// Asks an engine, which has just been reached, for all that it has.
    pub(super) fn ask_for_list(&self, id: EngineId) {
        let Some(engine) = self.engines.get(id) else { return };
        let news = self.news.clone();
        tokio::spawn(async move {
            let since = SystemTime::now();
            if let Ok(listed) = engine.containers().await {
                let ids = listed.into_iter().map(|one| one.id).collect();
                let _ = news.send(News::Listed(id, ids, since));
            }
        });
    }

    pub(super) fn limit_news(&mut self, news: News) {
        match news {
            News::Facts { guard, number, facts } => {
                // A slot may have another guard by the time that its facts are there.
                let Some(kept) = self.keeps.get_mut(&guard) else { return };
                if kept.asked != Some(number) {
                    return;
                }
                kept.asked = None;
                match facts {
                    Ok(facts) => self.repair_limit(guard, &facts),
                    Err(why) => self.facts_unread(guard, &why),
                }
            }
            News::Written(change, carried) => self.limit_written(&change, carried),
            News::Listed(engine, ids, since) => {
                let Some(engine) = self.engines.get(engine) else { return };
                if let Err(error) = self.limits.forget_gone(&ids, engine.socket(), since) {
                    tracing::warn!(%error, "wanted limits of containers that are gone");
                }
            }
        }
    }

    fn facts_unread(&mut self, guard: GuardId, why: &str) {
        let name = self.executor.held().get(&guard).map_or("", |held| held.subject.name.as_str());
        let Some(kept) = self.keeps.get_mut(&guard) else { return };
        if !std::mem::replace(&mut kept.said_unread, true) {
            tracing::warn!(name, why, "a limit is not in force, and what holds it cannot be read");
        }
        self.limit_failed(guard);
    }
}
