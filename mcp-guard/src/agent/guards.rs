//! Which cgroups are guarded: those of containers that the policy names, those it names by path,
//! and those an operator acts upon by hand.

use std::{fmt::Display, time::Duration};

use anyhow::anyhow;
use mcp_guard_core::{
    Time,
    audit::Record,
    container::container_in,
    effect::{GuardId, Input},
    policy::{Mode, Response, Subject, Terms},
    refusal::refusal,
};

use super::{Agent, TRY_AGAIN};
use crate::{
    control::wire::EngineState,
    engine::{Change, Container, EngineId},
    executor::Held,
    host::{cgroup::Cgroup, clock, facts},
};

/// That a cgroup could not be guarded is said again after this time.
const SAID: Duration = Duration::from_secs(3600);
/// Of so many containers is remembered that it was said that their cgroup is not found.
const MAX_UNFOUND: usize = 1024;

/// A cgroup that could not be guarded.
pub(super) struct Unguardable {
    try_again: Time,
    said: Time,
}

impl Agent {
    pub(super) fn change(&mut self, engine: EngineId, change: Change) {
        match change {
            Change::Up(container) => self.container_is_up(container),
            Change::Paused { id, paused } => {
                let all = self.executor.held_mut().values_mut();
                for held in all.filter(|held| held.container.as_deref() == Some(&id)) {
                    held.paused = paused;
                }
            }
            // It is reached anew, and may have lost containers meanwhile.
            Change::Described(described) => {
                self.described.insert(engine, *described);
                // It may have no container that would tell.
                self.engine_state = EngineState::Connected;
                self.ask_for_list(engine);
            }
            Change::Away(error) => {
                tracing::warn!(error, "the engine is away; guards stay in force");
                self.engine_state = EngineState::Away(error);
            }
            Change::Back => self.engine_state = EngineState::Connected,
        }
    }

    fn container_is_up(&mut self, container: Container) {
        if self.engine_state == EngineState::Connecting {
            self.engine_state = EngineState::Connected;
        }
        let cgroup = match Cgroup::of_process(&self.layout, container.init, Some(&container.id)) {
            Ok(cgroup) => cgroup,
            Err(error) => return self.say_unfound(container, &error),
        };
        self.unfound.remove(&container.id);
        let subject = Subject {
            name: &container.name,
            image: &container.image,
            labels: Some(&container.labels),
            cgroup: cgroup.path(),
        };
        let Some(terms) = self.core.policy().terms(&subject) else { return };
        if let Some(known) = self.guard_of(cgroup.id()) {
            if let Some(held) = self.executor.held_mut().get_mut(&known) {
                held.paused = container.paused;
            }
            match self.by_hand.get_mut(&known) {
                Some(told) => *told = Some(container),
                None => self.declare(known, container.limit),
            }
            return;
        }
        let Container { id, name, paused, limit, .. } = container;
        if let Some(guard) = self.guard(Held::new(cgroup, &name, Some(id), paused), terms) {
            self.declare(guard, limit);
            self.look_at_limit(guard);
        }
    }

    /// It is told of again and again; this is said once.
    fn say_unfound(&mut self, container: Container, error: &dyn Display) {
        if self.unfound.len() >= MAX_UNFOUND {
            self.unfound.clear();
        }
        if self.unfound.insert(container.id) {
            tracing::warn!(name = container.name, %error, "container not guarded");
        }
    }

    /// Cgroups that the policy names by path are guarded as soon as they exist.
    pub(super) fn guard_named_cgroups(&mut self) {
        let rules: Vec<_> =
            self.core.policy().guard.iter().filter_map(|rule| rule.cgroup.clone()).collect();
        for path in rules {
            // One that was removed and made again was let go before, by its descriptor.
            if self.executor.held().values().any(|held| held.subject.cgroup == path) {
                continue;
            }
            let Ok(cgroup) = Cgroup::open(&self.layout, &path) else { continue };
            if self.guard_of(cgroup.id()).is_some() {
                continue;
            }
            let subject = Subject { cgroup: &path, ..Subject::default() };
            if let Some(terms) = self.core.policy().terms(&subject) {
                let container = container_in(cgroup.path()).map(|found| found.id.to_owned());
                if let Some(guard) = self.guard(Held::new(cgroup, &path, container, false), terms) {
                    self.look_at_limit(guard);
                }
            }
        }
    }

    pub(super) fn guard_of(&self, cgroup_id: u64) -> Option<GuardId> {
        let mut held = self.executor.held().iter();
        held.find(|(_, held)| held.subject.cgroup_id == cgroup_id).map(|(guard, _)| *guard)
    }

    /// Holds a cgroup only to act upon it for an operator: it is neither counted nor judged, and is let
    /// go once nothing of it is frozen or clamped.
    pub(super) fn hold_by_hand(&mut self, held: Held) -> Option<GuardId> {
        let guard = self.free.pop_front()?;
        let name = held.subject.name.clone();
        let refusal = facts::gather(&held.cgroup).ok().as_ref().and_then(refusal);
        self.executor.hold(guard, held);
        let terms = Terms { mode: Mode::Observe, highest: Response::Record, pids_limit: None };
        self.step(Input::Guarded { guard, name, terms, refusal });
        self.by_hand.insert(guard, None);
        Some(guard)
    }

    /// Begins to guard. Membership first, then the baseline: a process born in between is told of by
    /// its record.
    pub(super) fn guard(&mut self, mut held: Held, terms: Terms) -> Option<GuardId> {
        let now = clock::now();
        if self.unguardable.get(&held.cgroup.id()).is_some_and(|one| now < one.try_again) {
            return None;
        }
        let Some(guard) = self.free.pop_front() else {
            self.say_unguardable(now, &held, &"all guard slots are taken");
            return None;
        };
        held.cgroup.find_pids(&self.layout);
        if let Err(error) = self.count_from_now(guard, &held.cgroup) {
            self.say_unguardable(now, &held, &error);
            self.kernel.remove_guard(guard);
            self.free.push_back(guard);
            return None;
        }
        self.unguardable.remove(&held.cgroup.id());
        let refusal = facts::gather(&held.cgroup).ok().as_ref().and_then(refusal);
        let name = held.subject.name.clone();
        let Terms { mode, highest, .. } = terms;
        tracing::info!(name, cgroup = held.subject.cgroup, %mode, %highest, "guarding");
        self.executor.audit.write(Record::GuardStart {
            guard: held.subject.clone(),
            mode,
            highest,
            refused: refusal.as_ref().map(ToString::to_string),
        });
        self.executor.hold(guard, held);
        self.step(Input::Guarded { guard, name, terms, refusal });
        self.rescan(guard);
        Some(guard)
    }

    /// It is tried again later; this is said once.
    fn say_unguardable(&mut self, now: Time, held: &Held, why: &dyn Display) {
        // One that is said anew, or that is gone.
        self.unguardable.retain(|_, one| now.since(one.said) < SAID);
        let try_again = now.after(TRY_AGAIN);
        let entry = self.unguardable.entry(held.cgroup.id());
        entry.and_modify(|one| one.try_again = try_again).or_insert_with(|| {
            tracing::error!(name = held.subject.name, %why, "not guarded");
            Unguardable { try_again, said: now }
        });
    }

    /// An engine's process may have come or gone since the guard began.
    pub(super) fn refresh_refusal(&mut self, guard: GuardId) {
        let Some(held) = self.executor.held().get(&guard) else { return };
        if let Ok(facts) = facts::gather(&held.cgroup) {
            self.step(Input::Standing { guard, refusal: refusal(&facts) });
        }
    }

    fn count_from_now(&mut self, guard: GuardId, cgroup: &Cgroup) -> anyhow::Result<()> {
        self.kernel.clear_totals(guard)?;
        let kernel = &mut self.kernel;
        let mut trouble = None;
        cgroup.walk(&mut |dir, _| {
            let id = rustix::fs::fstat(dir)?.st_ino;
            match kernel.guard_of(id) {
                // A cgroup has one guard: counting it for two would be wrong for both.
                Some(other) if other != guard => {
                    trouble = Some(anyhow!("it overlaps guard {other}"))
                }
                _ => {
                    if let Err(error) = kernel.add_cgroup(id, guard) {
                        trouble = Some(error.into());
                    }
                }
            }
            Ok(())
        })?;
        trouble.map_or(Ok(()), Err)
    }

    /// Its cgroup is gone, and its freeze, its limit and our marks with it.
    pub(super) fn unguard(&mut self, guard: GuardId) {
        let Some(held) = self.executor.forget(guard) else { return };
        self.keeps.remove(&guard);
        let by_hand = self.by_hand.remove(&guard);
        if by_hand.is_none() {
            tracing::info!(name = held.subject.name, "the cgroup is gone, guarding ends");
            self.executor.audit.write(Record::GuardStop { guard: held.subject });
        }
        // There may be room now.
        let now = clock::now();
        self.unguardable.values_mut().for_each(|one| one.try_again = now);
        self.kernel.remove_guard(guard);
        self.free.push_back(guard);
        self.step(Input::Released { guard });
        if let Some(mut container) = by_hand.flatten().filter(|_| held.cgroup.events().is_ok()) {
            container.paused = held.paused;
            self.container_is_up(container);
        }
    }
}
