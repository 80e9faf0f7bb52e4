//! Decides which cgroups are guarded: those of containers that the policy names, those it names by path,
//! and those held by an operator.

use std::{collections::BTreeSet, fmt::Display, time::Duration};

use anyhow::anyhow;
use mcp_guard_common::Totals;
use mcp_guard_core::{
    Time,
    audit::Record,
    container::container_in,
    effect::Input,
    id::GuardId,
    incident::Hold,
    policy::{Mode, Terms, Workload},
};

use super::Agent;
use crate::{
    control::wire::EngineState,
    engine::{Container, EngineEvent, EngineId, Speaker},
    guards::{Held, Role},
    host::{
        cgroup::{Cgroup, CgroupSearch},
        clock,
    },
};

/// Most guards that begin in one search: the next one follows a second later.
const MOST_BEGUN: usize = 32;

impl Agent {
    pub(super) fn engine_event(&mut self, engine: EngineId, event: EngineEvent) {
        match event {
            EngineEvent::Up { by, container } => {
                let speaker = (engine, by);
                self.herd_looker.note(clock::now(), speaker, &container, &self.observer);
                self.container_is_up(by, container);
            }
            EngineEvent::Paused { by, id, paused } => {
                let all = self.guards.all_mut();
                for held in all.filter(|held| held.container.as_deref() == Some(&id)) {
                    if by.may_speak_for(&held.cgroup) {
                        held.paused = paused;
                    }
                }
            }
            // The engine is reachable again, and may have lost containers in the meantime.
            EngineEvent::Described(described) => {
                self.engines.described.insert(engine, *described);
                // It may have no container whose event would show this.
                self.engines.state = EngineState::Connected;
                self.ask_for_list(engine);
            }
            EngineEvent::Away(error) => {
                tracing::warn!(error, "the engine cannot be reached; guards stay in force");
                self.engines.state = EngineState::Away(error);
            }
            EngineEvent::Back => self.engines.state = EngineState::Connected,
        }
    }

    fn container_is_up(&mut self, by: Speaker, container: Container) {
        self.engines.is_reached();
        let cgroup = match Cgroup::of_process(&self.layout, container.init, Some(&container.id)) {
            Ok(cgroup) => cgroup,
            Err(error) => return self.engines.warn_not_found(container, &error),
        };
        self.engines.found(&container.id);
        if !by.may_speak_for(&cgroup) {
            return self.disbelieve(by, cgroup, container);
        }
        self.guard_container(cgroup, container);
    }

    /// Ignores what a user's engine says about a container of somebody else, and records it once in a while.
    fn disbelieve(&mut self, by: Speaker, cgroup: Cgroup, container: Container) {
        let is_named = self.core.policy().terms(&container.workload(&cgroup)).is_some();
        if !self.unguarded.disbelieve(clock::now(), cgroup.id(), is_named) {
            return;
        }
        let reason = format!(
            "{by} names it, and may not speak for it; what the engine says about it is ignored"
        );
        let guard = Held::new(cgroup, &container.name, Some(container.id), false).subject;
        tracing::warn!(name = guard.name, cgroup = guard.cgroup, reason, "not guarding");
        self.executor.audit.write(Record::GuardRefused { guard, reason });
    }

    fn guard_container(&mut self, cgroup: Cgroup, container: Container) {
        let workload = container.workload(&cgroup);
        let Some(known) = self.guards.of_cgroup(cgroup.id()) else {
            let Some(terms) = self.core.policy().terms(&workload) else { return };
            let Container { id, name, paused, limit, .. } = container;
            let held = Held::new(cgroup, &name, Some(id), paused);
            if let Some(guard) = self.guard(held, terms, workload) {
                self.declare(guard, limit);
                self.look_at_limit(guard);
            }
            return;
        };
        if let Some(held) = self.guards.get_mut(known) {
            held.paused = container.paused;
        }
        if let Some(container) = self.guards.remember(known, Box::new(container)) {
            self.declare(known, container.limit);
            self.describe(known, &container.name, workload);
        }
    }

    /// Another rule may name a guard once its engine describes it, or describes it in other words.
    fn describe(&mut self, guard: GuardId, name: &str, workload: Workload) {
        let known = self.core.guard(guard).and_then(|state| state.workload());
        if known.is_none_or(|known| *known == workload) {
            return;
        }
        let Some(held) = self.guards.get_mut(guard) else { return };
        held.rename(name);
        let name = held.subject.name.clone();
        self.step(Input::Described { guard, name, workload: Box::new(workload) });
    }

    /// Cgroups that the policy names by path or unit are guarded as soon as they exist.
    pub(super) fn guard_named_cgroups(&mut self) {
        let mut search = CgroupSearch::new(&self.layout);
        search.rules(self.core.policy());
        self.unguarded.searched(search.is_cut());
        let found = search.found();
        if found.is_empty() {
            return;
        }
        // The old guard of a removed and re-created cgroup has ended by now: its descriptor failed.
        let held = self.guards.ids().into_iter().filter_map(|guard| self.guards.get(guard));
        let known: BTreeSet<String> = held.map(|held| held.subject.cgroup.clone()).collect();
        let mut begun = 0;
        for path in found {
            if known.contains(&path) {
                continue;
            }
            if begun == MOST_BEGUN {
                break;
            }
            let workload = Workload { cgroup: path.clone(), ..Workload::default() };
            let Some(terms) = self.core.policy().terms(&workload) else { continue };
            let Ok(cgroup) = Cgroup::open(&self.layout, &path) else { continue };
            if self.guards.of_cgroup(cgroup.id()).is_some() {
                continue;
            }
            let container = container_in(cgroup.path()).map(|found| found.id.to_owned());
            let held = Held::new(cgroup, &path, container, false);
            if let Some(guard) = self.guard(held, terms, workload) {
                begun += 1;
                self.look_at_limit(guard);
            }
        }
    }

    /// Holds a cgroup only to act on it for an operator. It is neither counted nor judged, and is dropped
    /// once nothing in it is frozen or clamped.
    pub(super) fn hold_by_hand(&mut self, held: Held) -> Option<GuardId> {
        let guard = self.guards.take_slot()?;
        let name = held.subject.name.clone();
        let refusal = self.first_refusal(guard, &held.cgroup);
        self.guards.insert(guard, held, Role::ByHand { seen: None });
        let terms = Terms::nothing();
        self.step(Input::Guarded { guard, name, terms, workload: None, refusal });
        Some(guard)
    }

    /// Begins to guard. Membership comes first, then the baseline: a process born in between is reported
    /// by its record.
    fn guard(&mut self, mut held: Held, terms: Terms, workload: Workload) -> Option<GuardId> {
        let now = clock::now();
        if self.unguarded.must_wait(now, held.cgroup.id()) {
            return None;
        }
        // Their remains would look like an overlap.
        self.free_slots();
        let Some(guard) = self.slot_for(terms.mode) else {
            self.warn_unguardable(now, &held, &"all guard slots are taken");
            return None;
        };
        held.cgroup.find_pids(&self.layout);
        let counts = self.overlapped(&held.cgroup);
        if let Err(error) = counts.and_then(|()| self.counting.begin(guard, &held.cgroup)) {
            self.warn_unguardable(now, &held, &error);
            self.counting.end(guard, held.cgroup.id());
            return None;
        }
        self.unguarded.is_guarded(held.cgroup.id());
        let refusal = self.first_refusal(guard, &held.cgroup);
        let name = held.subject.name.clone();
        let Terms { mode, highest, .. } = terms;
        tracing::info!(name, cgroup = held.subject.cgroup, %mode, %highest, "guarding");
        self.executor.audit.write(Record::GuardStart {
            guard: held.subject.clone(),
            mode,
            highest,
            refused: refusal.as_ref().map(ToString::to_string),
        });
        self.guards.insert(guard, held, Role::Watched);
        let workload = Some(Box::new(workload));
        self.step(Input::Guarded { guard, name, terms, workload, refusal });
        // The counts begin at zero: rates cover only processes born from now on.
        self.step_at(now, Input::Totals { guard, totals: Totals::default() });
        self.read_new(guard);
        Some(guard)
    }

    /// Takes a slot. A guard that enforces may take a reserved one; the idlest guard that only observes makes
    /// room for the next. So a slot is not used at once by another guard: its records may still be on the
    /// way.
    fn slot_for(&mut self, mode: Mode) -> Option<GuardId> {
        if !self.guards.are_full() {
            return self.guards.take_slot();
        }
        if mode == Mode::Observe {
            return None;
        }
        let slot = self.guards.take_slot();
        if let Some(idle) = self.idlest_observed() {
            self.unguard(idle);
            self.free_slots();
        }
        slot.or_else(|| self.guards.take_slot())
    }

    /// Returns the guard that only observes and in which the least has started within a minute.
    fn idlest_observed(&self) -> Option<GuardId> {
        let busy = |guard: GuardId| {
            let state = self.core.guard(guard)?;
            let is_held = Hold::ALL.iter().any(|hold| state.lease(*hold).is_some());
            // A hold whose release failed has no lease any more, but still its mark.
            let is_needed = self.guards.get(guard).is_none_or(|held| self.executor.needs(held));
            let is_busy = is_held || is_needed || self.askers.wait_for(guard);
            if state.terms.mode != Mode::Observe || is_busy {
                return None;
            }
            let started = |totals: &Totals| totals.process_forks + totals.execs;
            let started = state.rates.per_second(Duration::from_secs(60), started);
            Some((guard, started, state.registry.live_servers()))
        };
        let idlest = self.guards.watched().into_iter().filter_map(busy);
        idlest.min_by(|a, b| a.1.total_cmp(&b.1).then(a.2.cmp(&b.2))).map(|(guard, ..)| guard)
    }

    /// Counts the cgroups that the policy names and that are not guarded.
    pub(super) fn unguarded(&self, now: Time) -> usize {
        self.unguarded.count(now, |cgroup| self.guards.of_cgroup(cgroup).is_some())
    }

    /// Records why a cgroup cannot be guarded, once in a while.
    fn warn_unguardable(&mut self, now: Time, held: &Held, why: &dyn Display) {
        if self.unguarded.could_not(now, held.cgroup.id()) {
            tracing::error!(name = held.subject.name, %why, "cannot guard the cgroup");
            let (guard, reason) = (held.subject.clone(), why.to_string());
            self.executor.audit.write(Record::GuardRefused { guard, reason });
        }
    }

    /// Refuses a cgroup that is above or below one that is guarded already. Not all cgroups below it are
    /// looked for in the map.
    fn overlapped(&self, cgroup: &Cgroup) -> anyhow::Result<()> {
        let is_above = |one: &str, other: &str| {
            other.strip_prefix(one).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let watched = self.guards.watched().into_iter();
        let mut overlaps = watched.filter(|guard| {
            self.guards.get(*guard).is_some_and(|held| {
                let (one, other) = (held.cgroup.path(), cgroup.path());
                is_above(one, other) || is_above(other, one)
            })
        });
        overlaps.next().map_or(Ok(()), |other| Err(anyhow!("it overlaps guard {other}")))
    }

    /// Frees the slots of guards that have ended.
    pub(super) fn free_slots(&mut self) {
        for guard in self.counting.free_slots() {
            self.guards.give_slot_back(guard);
        }
    }

    /// Ends a guard. Its cgroup is gone, with its freeze, its limit and our marks, or it need not be guarded
    /// any more.
    pub(super) fn unguard(&mut self, guard: GuardId) {
        let Some((held, role)) = self.guards.remove(guard) else { return };
        let subject = held.subject;
        let is_watched = matches!(role, Role::Watched);
        let seen = match role {
            Role::Watched => {
                tracing::info!(name = subject.name, cgroup = subject.cgroup, "no longer guarding");
                self.executor.audit.write(Record::GuardStop { guard: subject });
                None
            }
            Role::ByHand { seen } => seen,
        };
        // A slot or map entry may be free now.
        let now = clock::now();
        self.unguarded.try_again(now);
        // A guard that only an operator has named is not counted.
        if is_watched {
            self.counting.end(guard, held.cgroup.id());
        } else {
            self.guards.give_slot_back(guard);
        }
        self.rescans.forget(guard);
        self.standings.forget(guard);
        self.counting.forget(guard);
        self.step(Input::Released { guard });
        if let Some(mut container) = seen.filter(|_| held.cgroup.events().is_ok()) {
            container.paused = held.paused;
            self.guard_container(held.cgroup, *container);
        }
    }
}
