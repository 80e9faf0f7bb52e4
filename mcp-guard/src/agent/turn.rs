//! What each turn of the loop does: records, totals, and a look at what others may have changed.

use std::time::Duration;

use mcp_guard_common::{ARGV_UNREAD, Kind, NO_GUARD};
use mcp_guard_core::{
    Time,
    audit::Record,
    effect::{GuardId, Input},
};

use super::{Agent, TICK, notify::Shown};
use crate::host::{
    bpf::{self, CGROUPS_FULL},
    clock,
};

/// Records handled in one turn; then other sources are looked at.
const BATCH: usize = 2048;
/// How often freezes are compared with the host, removed cgroups noticed, new ones looked for.
const LOOK: Duration = Duration::from_secs(1);
/// Between looks at what no record will tell.
const UNTOLD: Duration = Duration::from_secs(10);

impl Agent {
    /// Hands records to the core. What the batch leaves is fetched at the next turn, which is due at
    /// once.
    pub(super) fn drain(&mut self) {
        let end = clock::now().after(TICK);
        for _ in 0..BATCH {
            // A read of a process may have taken its time.
            if clock::now() >= end {
                break;
            }
            let Some(record) = self.kernel.next_record() else {
                // All that waited when the loss was seen has been read: births whose deaths were
                // lost among it.
                if std::mem::take(&mut self.behind_a_loss) {
                    self.counted().into_iter().for_each(|guard| self.rescan(guard));
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
        self.kernel.flush_log();
        let must_rescan = self.ring_overflowed() || self.must_look_again(now);
        for guard in self.counted() {
            self.read_totals(guard, now);
            if must_rescan {
                self.rescan(guard);
            }
        }
        if now >= self.next_look {
            self.next_look = now.after(LOOK);
            let held: Vec<GuardId> = self.executor.held().keys().copied().collect();
            held.into_iter().for_each(|guard| self.look(guard));
            self.look_at_limits();
            self.guard_named_cgroups();
            self.note_losses();
            self.executor.audit.flush();
        }
        // Last, so that the first turn is done when we say that we are ready.
        let guards = self.executor.held().len().saturating_sub(self.by_hand.len());
        self.notify.turn(now, Shown { mode: self.core.policy().mode, guards });
    }

    /// Guards whose tasks are counted: all but those held by hand.
    pub(super) fn counted(&self) -> Vec<GuardId> {
        let held = self.executor.held().keys().copied();
        held.filter(|guard| !self.by_hand.contains_key(guard)).collect()
    }

    fn is_awaited(&self, guard: GuardId) -> bool {
        self.askers.values().any(|asker| asker.guard == guard)
    }

    pub(super) fn read_totals(&mut self, guard: GuardId, now: Time) {
        match self.kernel.totals(guard) {
            Ok(totals) => self.step_at(now, Input::Totals { guard, totals }),
            Err(error) => tracing::error!(guard, %error, "totals"),
        }
    }

    /// True where records were lost: every registry may then be wrong, because a process that left a
    /// guard is told of by a record of no guard.
    fn ring_overflowed(&mut self) -> bool {
        let dropped = self.kernel.dropped();
        let overflowed = dropped > self.dropped;
        self.dropped = dropped;
        self.behind_a_loss |= overflowed;
        overflowed
    }

    /// A command line that could not be read in time may tell of a server, and a cgroup for which the map had
    /// no room may hold some. Whoever causes either at will is not followed each time.
    fn must_look_again(&mut self, now: Time) -> bool {
        if now < self.next_untold {
            return false;
        }
        let uncounted = self.losses.get(CGROUPS_FULL).is_some_and(|count| *count > 0);
        let is_due = uncounted || self.observer.has_answered_late();
        if is_due {
            self.next_untold = now.after(UNTOLD);
        }
        is_due
    }

    fn note_losses(&mut self) {
        let losses = self.kernel.losses();
        for (cause, count) in &losses {
            let before = self.losses.get(cause).copied().unwrap_or(0);
            if *count > before {
                tracing::warn!(cause, lost = count - before, "the kernel side lost something");
                self.executor.audit.write(Record::Loss { cause: cause.clone(), count: *count });
            }
        }
        self.losses = losses;
    }

    /// The registry from `/proc`. Records that still wait in the ring are older or newer than what
    /// is read here; both are harmless, because each names its process by start time.
    pub(super) fn rescan(&mut self, guard: GuardId) {
        if let Some(baseline) = self.baseline(guard) {
            self.step(baseline);
        }
    }

    pub(super) fn baseline(&self, guard: GuardId) -> Option<Input> {
        let pids = self.executor.held().get(&guard)?.cgroup.processes().ok()?;
        Some(Input::Baseline { guard, processes: self.observer.observe(pids) })
    }

    /// Compares what is believed of a guard with the host.
    fn look(&mut self, guard: GuardId) {
        let now = clock::now();
        let Some(held) = self.executor.held().get(&guard) else { return };
        let Ok(requested) = held.cgroup.freeze_requested() else { return self.unguard(guard) };
        let Some(state) = self.core.guard(guard) else { return };
        let holds_nothing = state.freeze.is_none() && state.clamp.is_none();
        let is_refused = state.refusal.is_some();
        if holds_nothing {
            self.executor.release_overdue(guard);
            let is_over = self.by_hand.contains_key(&guard) && !self.is_awaited(guard);
            // Not while it carries what could not be given back.
            if is_over && !self.executor.is_marked(guard) {
                return self.unguard(guard);
            }
        }
        if is_refused {
            self.refresh_refusal(guard);
        }
        let Some(state) = self.core.guard(guard) else { return };
        if state.freeze.is_some() && !requested {
            return self.step(Input::ThawedByOther { guard });
        }
        if state.clamp.is_some() && self.executor.is_unclamped(guard) {
            return self.step(Input::UnclampedByOther { guard });
        }
        if state.clamp_is_young(now)
            && let Some(denials) = self.denials(guard)
        {
            self.step(denials);
        }
    }

    pub(super) fn denials(&self, guard: GuardId) -> Option<Input> {
        let count = self.executor.held().get(&guard)?.cgroup.pids_denials().ok()?;
        Some(Input::Denials { guard, count })
    }

    fn input(&self, record: bpf::Record) -> Input {
        let bpf::Record { kind, event, argv } = record;
        let (guard, born, pid) = (event.guard, Time(event.start_ns), event.tgid);
        let observe = |pid| self.observer.observe(vec![pid]).pop();
        match kind {
            Kind::Fork => Input::Fork { guard, born, child: pid, parent: event.parent },
            Kind::Exec => {
                // What the kernel side could not read is in `/proc`, if the process is still there.
                let unread = event.flags & ARGV_UNREAD != 0;
                let seen = if unread { observe(pid) } else { None };
                let argv =
                    seen.map(|seen| seen.argv).filter(|seen| !seen.is_empty()).unwrap_or(argv);
                Input::Exec { guard, born, pid, argv }
            }
            Kind::Exit => Input::Exit { guard, pid, code: event.exit_code },
            Kind::Attach => {
                let guard = (guard != NO_GUARD).then_some(guard);
                // One that is known has only moved within its guard.
                let held =
                    |guard| self.core.guard(guard).is_some_and(|one| one.registry.holds(pid));
                let seen = guard.filter(|guard| !held(*guard)).and_then(|_| observe(pid));
                Input::Attach { guard, born, pid, seen }
            }
        }
    }
}
