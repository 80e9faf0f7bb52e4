//! Puts a limit back where it is kept: a plan from fresh facts, its writes one after the other, and what
//! they came to.

use std::collections::VecDeque;

use mcp_guard_core::{
    diagnose::facts::Facts,
    effect::{GuardId, Outcome},
    keep::Verdict,
    policy::Mode,
    repair::{self, Next, Write},
};
use tokio::sync::mpsc;

use super::{
    Agent,
    limits::{News, Then},
};
use crate::{
    executor::limit::{Carried, Change},
    host::clock,
    owner,
};

impl Agent {
    pub(super) fn repair_limit(&mut self, guard: GuardId, facts: &Facts) {
        if let Some(container) = &facts.container {
            let declared = container.pids_limit.and_then(|limit| u64::try_from(limit).ok());
            self.declare(guard, declared.filter(|limit| *limit > 0));
        }
        let wanted = self.wanted(guard);
        let now = (self.in_force(guard), self.tasks(guard));
        let mode = self.core.guard(guard).map(|state| state.terms.mode);
        let ((Some(in_force), Some(tasks)), Some(mode)) = (now, mode) else {
            return self.limit_failed(guard);
        };
        let Some(kept) = self.keeps.get_mut(&guard) else { return };
        kept.said_unread = false;
        let verdict = kept.keep.judge(clock::now(), wanted, in_force);
        let (Some(wanted), Verdict::Repair | Verdict::GiveUp) = (wanted, verdict) else { return };
        kept.reason = repair::undone_by(facts, wanted, in_force);
        let plan = match repair::plan(facts, Some(wanted), false) {
            Ok(plan) => plan,
            // The record names what cannot be written.
            Err(_) if verdict == Verdict::GiveUp => {
                kept.waiting = VecDeque::from([Write::PidsMax { limit: wanted }]);
                return self.limit_not_written(guard, Outcome::NotOurs);
            }
            Err(refused) => {
                let name = &facts.target.name;
                tracing::warn!(name, why = refused.0, "a limit is not in force and not repaired");
                return self.limit_failed(guard);
            }
        };
        let next = plan.next(tasks, in_force, kept.keep.step());
        kept.waiting = match (&next, verdict) {
            (Next::Wait, Verdict::GiveUp) => plan.last(),
            (next, _) => next.writes().to_vec(),
        }
        .into();
        match (verdict, next, mode) {
            (Verdict::GiveUp, ..) => return self.limit_not_written(guard, Outcome::NotOurs),
            (_, Next::Wait, _) => {
                kept.idle = Some(plan);
                return kept.keep.waits(clock::now());
            }
            (_, _, Mode::Observe) => return self.limit_not_written(guard, Outcome::WouldDo),
            (_, Next::Last(_), Mode::Enforce) => kept.then = Some(Then::Reached(plan)),
            (_, Next::Lower(_, step), Mode::Enforce) => kept.then = Some(Then::Step(step)),
        }
        self.write_next(guard);
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
        while self.executor.has_limits_under_way() {
            let Some(news) = news.recv().await else { return };
            if let News::Written(change, carried) = news {
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
                let engines = self.engines.clone();
                let news = self.news.clone();
                tokio::spawn(async move {
                    let carried = owner::ask(&change, &engines).await;
                    let _ = news.send(News::Written(change, carried));
                });
            }
            Some(Err(_)) | None => self.limit_failed(guard),
        }
    }

    pub(super) fn limit_written(&mut self, change: &Change, carried: Carried) {
        let (outcome, _) = self.executor.end_limit(change, carried);
        // A slot may have another guard by now.
        if !self.executor.held().get(&change.guard()).is_some_and(|held| change.is_of(held)) {
            return;
        }
        match outcome {
            Outcome::Done => self.write_next(change.guard()),
            Outcome::WouldDo | Outcome::Refused | Outcome::NotOurs | Outcome::Failed => {
                self.limit_failed(change.guard());
            }
        }
    }

    fn all_written(&mut self, guard: GuardId) {
        let Some(kept) = self.keeps.get_mut(&guard) else { return };
        match kept.then.take() {
            Some(Then::Step(step)) => kept.keep.stepped(clock::now(), step),
            Some(Then::Reached(plan)) => {
                kept.keep.reached();
                if plan.is_kept_by_its_owner() {
                    kept.declared = Some(plan.limit);
                }
            }
            None => self.limit_failed(guard),
        }
    }

    pub(super) fn limit_failed(&mut self, guard: GuardId) {
        if let Some(kept) = self.keeps.get_mut(&guard) {
            kept.waiting.clear();
            kept.then = None;
            kept.keep.failed(clock::now());
        }
    }
}
