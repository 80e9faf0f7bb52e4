//! Keeps the limit of each guard in force: a look every second, fresh facts where one is not, then
//! the writes of the repair plan, one after the other.
//!
//! The look reads one small file per guard and sees whoever wrote it, by whatever way. What takes time
//! (facts, an engine, systemd) is asked elsewhere, and its answer comes back to the loop.

use std::collections::VecDeque;

use mcp_guard_core::{
    diagnose::facts::Facts,
    effect::{GuardId, Outcome},
    keep::{Keep, Verdict},
    limit::Limit,
    policy::{Mode, Terms},
    repair::{self, Next, Plan, Write},
};
use tokio::sync::mpsc;

use super::Agent;
use crate::{engine::Engine, executor::limit::Change, host::clock, owner, snapshot::Snapshot};

/// How the limit of one guard is held.
#[derive(Default)]
pub(super) struct Kept {
    keep: Keep,
    /// What its engine keeps.
    declared: Option<u64>,
    /// What is still to be written, after the write that is under way.
    waiting: VecDeque<Write>,
    /// The plan behind it, and whether it ends with these writes.
    plan: Option<(Plan, bool)>,
    reason: String,
}

/// An answer to something that was asked for a limit.
pub(super) enum News {
    /// None: they could not be read, or the container is gone.
    Facts(GuardId, Option<Box<Facts>>),
    Written(Box<Change>, Result<(), String>),
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
        let terms = self.core.guard(guard)?.terms;
        let declared = self.keeps.get(&guard).and_then(|kept| kept.declared);
        asked.or(terms.pids_limit).or(declared)
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
        let wanted = self.wanted(guard);
        let kept = self.keeps.entry(guard).or_default();
        if kept.keep.look(clock::now(), wanted, in_force) {
            self.ask_for_facts(guard);
        }
    }

    /// None where nothing is to be done about it: our clamp holds it, or somebody stands against it.
    fn in_force(&mut self, guard: GuardId) -> Option<Limit> {
        let state = self.core.guard(guard)?;
        if state.clamp.is_some() || state.refusal.is_some() {
            return None;
        }
        let held = self.executor.held_mut().get_mut(&guard)?;
        held.cgroup.find_pids(&self.layout);
        held.cgroup.pids_max().ok()
    }

    fn ask_for_facts(&self, guard: GuardId) {
        let Some(held) = self.executor.held().get(&guard) else { return };
        let container = held.container.clone();
        let path = held.subject.cgroup.clone();
        let socket = self.engine.as_ref().map_or_else(String::new, Engine::socket);
        let (news, limits) = (self.news.clone(), self.limits.clone());
        let described = self.described.clone();
        // It reads all of /proc: on a thread of its own, so that the loop goes on.
        tokio::task::spawn_blocking(move || {
            let taken = Snapshot::of_engine(Engine::new(&socket), limits, described);
            let facts = facts(taken, container.as_deref(), &path);
            let _ = news.send(News::Facts(guard, facts.map(Box::new)));
        });
    }

    pub(super) fn limit_news(&mut self, news: News) {
        match news {
            News::Facts(guard, Some(facts)) => self.repair_limit(guard, &facts),
            News::Facts(guard, None) => self.limit_ended(guard, false),
            News::Written(change, carried) => self.limit_written(&change, carried),
        }
    }

    fn repair_limit(&mut self, guard: GuardId, facts: &Facts) {
        if !self.are_of(guard, facts) {
            return self.limit_ended(guard, false);
        }
        if let Some(container) = &facts.container {
            let declared = container.pids_limit.and_then(|limit| u64::try_from(limit).ok());
            self.declare(guard, declared.filter(|limit| *limit > 0));
        }
        let wanted = self.wanted(guard);
        let in_force = self.in_force(guard);
        let mode = self.core.guard(guard).map(|state| state.terms);
        let (Some(in_force), Some(Terms { mode, .. })) = (in_force, mode) else {
            return self.limit_ended(guard, false);
        };
        let Some(kept) = self.keeps.get_mut(&guard) else { return };
        let verdict = kept.keep.judge(clock::now(), wanted, in_force);
        let plan = match (verdict, repair::plan(facts, wanted, false)) {
            (Verdict::Rest, _) => return,
            (_, Ok(plan)) => plan,
            (_, Err(refused)) => {
                let name = &facts.target.name;
                tracing::warn!(name, why = refused.0, "a limit is not in force and not repaired");
                return self.limit_ended(guard, false);
            }
        };
        let tasks = facts.own().and_then(|own| own.current).unwrap_or(u64::MAX);
        let (writes, last) = match plan.next(tasks, in_force) {
            Next::Last(writes) => (writes, true),
            Next::Lower(writes, _) => (writes, false),
            Next::Wait => return self.limit_ended(guard, true),
        };
        kept.reason = repair::undone_by(facts, plan.limit, in_force);
        kept.plan = Some((plan, last));
        kept.waiting = writes.into();
        match (verdict, mode) {
            (Verdict::GiveUp, _) => self.limit_not_written(guard, Outcome::NotOurs),
            (_, Mode::Observe) => self.limit_not_written(guard, Outcome::WouldDo),
            (_, Mode::Enforce) => self.write_next(guard),
        }
    }

    /// A slot may have another guard by the time that its facts are there.
    fn are_of(&self, guard: GuardId, facts: &Facts) -> bool {
        let Some(held) = self.executor.held().get(&guard) else { return false };
        match &facts.container {
            Some(container) => held.container.as_ref() == Some(&container.id),
            None => held.container.is_none() && held.subject.cgroup == facts.target.cgroup,
        }
    }

    /// All checks and both records, and no write.
    fn limit_not_written(&mut self, guard: GuardId, outcome: Outcome) {
        let Some(kept) = self.keeps.get_mut(&guard) else { return };
        let reason = std::mem::take(&mut kept.reason);
        let detail = if outcome == Outcome::WouldDo {
            "observe mode: nothing is written".to_owned()
        } else {
            format!("undone three times within an hour: {reason}; left as it is")
        };
        for write in std::mem::take(&mut kept.waiting) {
            let left = self.executor.leave_limit(guard, write, &reason, outcome, &detail);
            tracing::warn!(guard, ?outcome, reason, ?left, "a limit is not in force");
        }
        if let Some(kept) = self.keeps.get_mut(&guard) {
            kept.keep.leave();
        }
    }

    /// What was asked for when the loop ended gets its record all the same.
    pub(super) async fn last_limits(&mut self, news: &mut mpsc::UnboundedReceiver<News>) {
        while self.asked > 0 {
            let Some(news) = news.recv().await else { return };
            if let News::Written(change, carried) = news {
                self.asked -= 1;
                self.executor.end_limit(&change, carried);
            }
        }
    }

    fn write_next(&mut self, guard: GuardId) {
        let Some(kept) = self.keeps.get_mut(&guard) else { return };
        let Some(write) = kept.waiting.pop_front() else { return self.all_written(guard) };
        let reason = kept.reason.clone();
        match self.executor.begin_limit(guard, write, &reason) {
            Some(Ok(change)) => {
                let engine =
                    Engine::new(&self.engine.as_ref().map_or_else(String::new, Engine::socket));
                let news = self.news.clone();
                self.asked += 1;
                tokio::spawn(async move {
                    let carried = owner::ask(&change, &engine).await;
                    let _ = news.send(News::Written(Box::new(change), carried));
                });
            }
            Some(Err(_)) | None => self.limit_ended(guard, false),
        }
    }

    fn limit_written(&mut self, change: &Change, carried: Result<(), String>) {
        self.asked = self.asked.saturating_sub(1);
        let (outcome, _) = self.executor.end_limit(change, carried);
        match outcome {
            Outcome::Done => self.write_next(change.guard()),
            Outcome::WouldDo | Outcome::Refused | Outcome::NotOurs | Outcome::Failed => {
                self.limit_ended(change.guard(), false);
            }
        }
    }

    fn all_written(&mut self, guard: GuardId) {
        let Some(kept) = self.keeps.get_mut(&guard) else { return };
        let Some((plan, true)) = kept.plan.take() else { return self.limit_ended(guard, true) };
        kept.keep.reached();
        if !plan.is_kept_by_its_owner() {
            return;
        }
        kept.declared = Some(plan.limit);
        let id = self.executor.held().get(&guard).and_then(|held| held.container.as_deref());
        if let Some(id) = id
            && let Err(error) = self.limits.remove(id)
        {
            tracing::warn!(%error, "a wanted limit that is reached cannot be removed");
        }
    }

    fn limit_ended(&mut self, guard: GuardId, went_well: bool) {
        if let Some(kept) = self.keeps.get_mut(&guard) {
            kept.waiting.clear();
            kept.keep.ended(clock::now(), went_well);
        }
    }
}

/// As `diagnose` reads them. None where the target is gone.
fn facts(
    taken: impl Future<Output = std::io::Result<Snapshot>>,
    container: Option<&str>,
    path: &str,
) -> Option<Facts> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    runtime.block_on(async {
        let snapshot = taken.await.ok()?;
        match container {
            Some(id) => snapshot.container(id).await,
            None => Some(snapshot.cgroup(path).await),
        }
    })
}
