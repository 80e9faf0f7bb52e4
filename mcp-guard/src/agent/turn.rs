//! One turn of the loop: handles records, reads totals, and checks what other tools may have changed.

use std::time::Duration;

use mcp_guard_common::{ARGV_UNREAD, Kind, NO_GUARD};
use mcp_guard_core::{
    Time,
    audit::Record,
    effect::Input,
    id::{GuardId, Pid},
};

use super::{Agent, TICK, notify::Shown};
use crate::{
    executor::{is_marked, is_unclamped, marks},
    host::{bpf, clock},
};

/// Most records handled in one turn, before the other sources are checked.
const BATCH: usize = 2048;
/// Interval between two comparisons of the guards with the host, and two searches for new cgroups.
const LOOK: Duration = Duration::from_secs(1);

impl Agent {
    /// Passes records to the core. If the batch leaves some in the ring, the next turn follows at once.
    pub(super) fn drain(&mut self) {
        let end = clock::now().after(TICK);
        for _ in 0..BATCH {
            // Reading a process may have taken long.
            if clock::now() >= end {
                break;
            }
            let Some(record) = self.counting.kernel.next_record() else {
                if self.counting.is_past_a_loss() {
                    self.guards.watched().into_iter().for_each(|guard| self.rescan(guard));
                }
                return;
            };
            let decided = Time(record.event.time_ns);
            let input = self.input(record);
            self.step_at(decided, input);
        }
        self.next_tick = clock::now();
    }

    pub(super) fn tick(&mut self) {
        let now = clock::now();
        if self.core.next_deadline().is_some_and(|deadline| deadline <= now) {
            self.step_at(now, Input::Tick);
        }
        if now < self.next_tick {
            return;
        }
        self.next_tick = now.after(TICK);
        self.counting.kernel.flush_log();
        let late = || self.observer.has_answered_late();
        let must_rescan =
            self.counting.ring_overflowed() || self.counting.must_look_again(now, late);
        for guard in self.guards.watched() {
            if let Some(totals) = self.counting.totals(guard) {
                self.step_at(now, Input::Totals { guard, totals });
            }
            if must_rescan {
                self.rescan(guard);
            }
        }
        if now >= self.next_look {
            self.next_look = now.after(LOOK);
            self.guards.ids().into_iter().for_each(|guard| self.look(guard));
            self.look_at_limits();
            self.guard_named_cgroups();
            for (cause, count) in self.counting.new_losses() {
                self.executor.audit.write(Record::Loss { cause, count });
            }
            self.executor.audit.report_losses();
        }
        // Last, so that the first turn is complete when readiness is reported.
        let guards = self.guards.watched().len();
        self.notify.turn(now, Shown { mode: self.core.policy().mode, guards });
    }

    /// Rebuilds the registry from `/proc`. Records that still wait in the ring may be older or newer than
    /// this reading; both are harmless, because each record identifies its process by start time.
    pub(super) fn rescan(&mut self, guard: GuardId) {
        if let Some(baseline) = self.baseline(guard) {
            self.step(baseline);
        }
    }

    pub(super) fn baseline(&self, guard: GuardId) -> Option<Input> {
        let pids = self.guards.get(guard)?.cgroup.processes().ok()?;
        Some(Input::Baseline { guard, processes: self.observer.observe(pids) })
    }

    /// Compares the core's state of a guard with the host.
    fn look(&mut self, guard: GuardId) {
        let now = clock::now();
        let Some(held) = self.guards.get(guard) else { return };
        let Ok(requested) = held.cgroup.freeze_requested() else { return self.unguard(guard) };
        let Some(state) = self.core.guard(guard) else { return };
        let is_refused = state.refusal.is_some();
        if state.freeze.is_none() && state.clamp.is_none() {
            let overdue = marks(held).into_iter().filter(|(_, mark)| mark.deadline <= now);
            let overdue: Vec<_> = overdue.map(|(hold, _)| hold).collect();
            for hold in overdue {
                self.step_at(now, Input::Overdue { guard, hold });
            }
            let has_ended = self.guards.is_by_hand(guard) && !self.askers.wait_for(guard);
            // Not while it carries a mark, whose hold is not released yet.
            if has_ended && !self.guards.get(guard).is_some_and(is_marked) {
                return self.unguard(guard);
            }
        }
        if is_refused {
            self.refresh_refusal(guard);
        }
        let (Some(held), Some(state)) = (self.guards.get(guard), self.core.guard(guard)) else {
            return;
        };
        if state.freeze.is_some() && !requested {
            return self.step(Input::ThawedByOther { guard });
        }
        if state.clamp.is_some() && is_unclamped(held) {
            return self.step(Input::UnclampedByOther { guard });
        }
        if state.clamp_is_young(now)
            && let Some(denials) = self.denials(guard)
        {
            self.step(denials);
        }
    }

    pub(super) fn denials(&self, guard: GuardId) -> Option<Input> {
        let count = self.guards.get(guard)?.cgroup.pids_denials().ok()?;
        Some(Input::Denials { guard, count })
    }

    fn input(&self, record: bpf::RingRecord) -> Input {
        let bpf::RingRecord { kind, event, argv } = record;
        let (guard, born, pid) = (GuardId(event.guard), Time(event.start_ns), Pid(event.tgid));
        let observe = |pid| self.observer.observe(vec![pid]).pop();
        match kind {
            Kind::Fork => Input::Fork { guard, born, child: pid, parent: Pid(event.parent) },
            Kind::Exec => {
                // A command line that the kernel side could not read is in `/proc` while the process lives.
                let unread = event.flags & ARGV_UNREAD != 0;
                let seen = if unread { observe(pid) } else { None };
                let argv =
                    seen.map(|seen| seen.argv).filter(|seen| !seen.is_empty()).unwrap_or(argv);
                Input::Exec { guard, born, pid, argv }
            }
            Kind::Exit => Input::Exit { guard, pid, code: event.exit_code },
            Kind::Attach => {
                let guard = (event.guard != NO_GUARD).then_some(guard);
                // A known process has only moved within its guard.
                let held =
                    |guard| self.core.guard(guard).is_some_and(|one| one.registry.holds(pid));
                let seen = guard.filter(|guard| !held(*guard)).and_then(|_| observe(pid));
                Input::Attach { guard, born, pid, seen }
            }
        }
    }
}
