//! One turn of the loop: handles records, reads totals, and checks what other tools may have changed.

use std::time::{Duration, Instant};

use mcp_guard_common::{Kind, NO_GUARD};
use mcp_guard_core::{
    Time,
    audit::Record,
    effect::Input,
    id::{GuardId, Pid},
    incident::Hold,
    registry::ticks,
    server::{CommandLine, Grammar},
};

use super::{Agent, TICK, notify::Shown, rescan::Reading};
use crate::{
    executor::{is_gone, marks, unclamped},
    host::{
        bpf,
        clock::{self, Sleep},
        mark::{self, Mark},
        observer::Observer,
        process,
    },
};

/// Most records handled in one turn, before the other sources are checked.
const BATCH: usize = 2048;
/// How long one turn handles records at most.
const DRAIN: Duration = Duration::from_millis(20);
/// Most processes of a new guard that are read at once. More are read on the thread for it.
const FEW: usize = 256;
/// How long a turn may have lasted when the processes of a new guard are read at once.
const STILL_SHORT: Duration = Duration::from_millis(50);
/// How long the longest turn is remembered, at least.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Interval between two comparisons of the guards with the host, and two searches for new cgroups.
const LOOK: Duration = Duration::from_secs(1);

impl Agent {
    /// Passes records to the core. If the batch leaves some in the ring, the next turn follows at once.
    pub(super) fn drain(&mut self) {
        let end = clock::now().after(DRAIN);
        self.counting.has_unread = true;
        for _ in 0..BATCH {
            let now = clock::now();
            // Reading a process may have taken long.
            if now >= end {
                return;
            }
            let Some(record) = self.counting.kernel.next_record() else {
                self.counting.has_unread = false;
                self.rescans.ring_is_empty(now);
                return;
            };
            self.rescans.note(record.kind, &record.event);
            let decided = Time(record.event.time_ns);
            let input = self.input(record);
            self.step_at(decided, input);
        }
    }

    pub(super) fn tick(&mut self) {
        let now = clock::now();
        if self.core.next_deadline().is_some_and(|deadline| deadline <= now) {
            self.step_at(now, Input::Tick);
        }
        if now < self.turns.next_tick {
            return;
        }
        self.turns.next_tick = now.after(TICK);
        self.counting.kernel.flush_log();
        self.executor.watch_suspended(now);
        let late = || self.observer.has_answered_late();
        let watched = self.guards.watched();
        let is_look = now >= self.turns.next_look;
        let must_rescan =
            self.counting.must_look_again(now, late) || is_look && self.counting.lost_nameless();
        if must_rescan {
            watched.iter().for_each(|guard| self.rescans.lost(now, *guard));
        }
        for guard in watched {
            // Processes that a guard began with would look like growth.
            if !self.rescans.is_unread(guard)
                && let Some(totals) = self.counting.new_totals(now, guard)
            {
                self.step_at(now, Input::Totals { guard, totals });
            }
        }
        self.free_slots();
        for guard in self.recordings.turn(now) {
            self.rescans.lost(now, guard);
        }
        self.rescans.queue_due(now);
        self.read_next();
        self.look_at_servers();
        self.look_at_clients();
        if is_look {
            self.turns.next_look = now.after(LOOK);
            self.counting.kernel.settle_left_out(&self.guards.watched());
            self.guards.ids().into_iter().for_each(|guard| self.look(guard));
            self.look_at_limits();
            self.guard_named_cgroups();
            match mark::keep_key() {
                Ok(false) => {}
                Ok(true) => {
                    tracing::warn!("the key for marks was removed or changed; it is written again");
                }
                Err(error) => tracing::error!(%error, "the key for marks cannot be kept"),
            }
            for (cause, count) in self.counting.new_losses() {
                self.executor.audit.write(Record::Loss { cause, count });
            }
            self.executor.audit.report_losses();
        }
        // Last, so that the first turn is complete when readiness is reported.
        let guards = self.guards.watched().len();
        self.check_reload(now);
        let (mode, is_rejected) = (self.core.policy().mode, self.reloads.is_rejected());
        self.notify.turn(now, Shown { mode, guards, is_rejected });
    }

    /// Reads the processes that a new guard begins with: a few at once, many on the thread for it.
    pub(super) fn read_new(&mut self, guard: GuardId) {
        let Some(held) = self.guards.get(guard) else { return };
        let is_short = |found| found <= FEW && self.turns.so_far() < STILL_SHORT;
        let pids = match held.cgroup.members(is_short) {
            Ok(Some(members)) if is_short(members.processes.len()) => members.processes,
            Ok(_) => {
                self.rescans.want_new(guard);
                return self.read_next();
            }
            Err(_) => return,
        };
        // Records that still wait in the ring may be older or newer than this reading; both are harmless,
        // because each record identifies its process by start time.
        let processes = self.observer.observe(pids);
        self.step(Input::Baseline { guard, processes });
    }

    /// Has the next guard read that waits for it.
    fn read_next(&mut self) {
        while let Some(guard) = self.rescans.next() {
            let Some(held) = self.guards.get(guard) else { continue };
            match held.cgroup.try_clone_dir() {
                Ok(dir) => {
                    if self.rescans.begin(guard, held.cgroup.id(), dir) {
                        return;
                    }
                    tracing::error!("the thread that reads processes after a loss is gone");
                }
                Err(error) => {
                    tracing::warn!(%guard, %error, "cannot read the processes again");
                    return self.rescans.lost(clock::now(), guard);
                }
            }
        }
    }

    /// Rebuilds the registry of a guard from what was read.
    pub(super) fn take_reading(&mut self, reading: Reading) {
        let guard = reading.guard;
        let present = self.guards.get(guard).map(|held| held.cgroup.id());
        if let Some(processes) = self.rescans.finish(reading, present) {
            self.step(Input::Baseline { guard, processes });
        }
        self.read_next();
    }

    /// Reads `cgroup.freeze`. Ends a guard whose cgroup is gone. Any other error is logged, and the next
    /// look tries again.
    fn freeze_requested(&mut self, guard: GuardId) -> Option<bool> {
        let held = self.guards.get(guard)?;
        match held.cgroup.freeze_requested() {
            Ok(requested) => return Some(requested),
            Err(error) if is_gone(&error) => self.unguard(guard),
            Err(error) => {
                let name = &held.subject.name;
                tracing::warn!(name, %error, "cannot read cgroup.freeze; trying again");
            }
        }
        None
    }

    /// Compares the core's state of a guard with the host.
    fn look(&mut self, guard: GuardId) {
        let now = clock::now();
        if self.freeze_requested(guard).is_none() {
            return;
        }
        let Some(held) = self.guards.get(guard) else { return };
        let Some(state) = self.core.guard(guard) else { return };
        if Hold::ALL.iter().all(|hold| state.lease(*hold).is_none()) {
            // A mark of ours without a lease is of a release that failed, and does not wait for its deadline.
            let is_due = |mark: &Mark| mark.deadline <= now || mark.holder == process::this();
            let overdue = marks(held).into_iter().filter(|(_, mark)| is_due(mark));
            let overdue: Vec<_> = overdue.map(|(hold, _)| hold).collect();
            for hold in overdue {
                self.step_at(now, Input::Overdue { guard, hold });
            }
            let has_ended = self.guards.is_by_hand(guard) && !self.askers.wait_for(guard);
            let is_needed = |held| self.executor.needs(held);
            if has_ended && !self.guards.get(guard).is_some_and(is_needed) {
                return self.unguard(guard);
            }
        }
        self.judge_if_due(guard, now);
        let is_checking =
            self.guards.get(guard).is_some_and(|held| self.executor.is_checking(held));
        let is_frozen =
            |guard| self.core.guard(guard).is_some_and(|state| state.lease(Hold::Freeze).is_some());
        // A freeze that was ordered is written once its cgroup was looked at.
        if !is_checking && is_frozen(guard) {
            // Read again, because a step above may have frozen the cgroup.
            match self.freeze_requested(guard) {
                Some(true) => {}
                Some(false) => return self.step(Input::ThawedByOther { guard }),
                None => return,
            }
        }
        let (Some(held), Some(state)) = (self.guards.get(guard), self.core.guard(guard)) else {
            return;
        };
        if state.lease(Hold::Clamp).is_some()
            && let Some(found) = unclamped(held)
        {
            return self.step(Input::Unclamped { guard, found });
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
        let bpf::RingRecord { kind, event, exe, argv } = record;
        let (guard, born, pid) = (GuardId(event.guard), Time(event.start_ns), Pid(event.tgid));
        let observe = |pid| self.observer.observe(vec![pid]).pop();
        match kind {
            Kind::Fork => Input::Fork { guard, born, child: pid, parent: Pid(event.parent) },
            Kind::Exec => {
                let exe = Some(exe).filter(|exe| !exe.is_empty());
                let command = CommandLine { argv, exe, cwd: None };
                let command = complete(command, (born, pid), self.core.grammar(), &self.observer);
                Input::Exec { guard, born, pid, command }
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

/// Adds what the record of an exec lacks: `/proc` has it while the process lives.
fn complete(
    command: CommandLine,
    (born, pid): (Time, Pid),
    grammar: &Grammar,
    observer: &Observer,
) -> CommandLine {
    let has_argv = !command.argv.is_empty();
    if has_argv && !grammar.lacks(&command) {
        return command;
    }
    // A relative script is common, and the reading of a command line hangs more often than that of a folder.
    let seen = if has_argv && command.has_executable() {
        observer.place(pid)
    } else {
        observer.observe(vec![pid]).pop()
    };
    match seen.filter(|seen| seen.start_ticks == ticks(born)) {
        Some(seen) => command.completed_by(seen.command),
        None => command,
    }
}

/// When turns of the loop are due, and how long they last. While one lasts, nothing else is handled.
pub(super) struct Turns {
    /// When the agent started.
    pub started: Time,
    pub next_tick: Time,
    next_look: Time,
    pub sleep: Sleep,
    began: Option<Instant>,
    /// Since this time; `before` is of the period before.
    since: Option<Instant>,
    longest: Duration,
    before: Duration,
}

impl Turns {
    pub fn since(now: Time) -> Self {
        Self {
            started: now,
            next_tick: now,
            next_look: now,
            sleep: Sleep::since_now(),
            began: None,
            since: None,
            longest: Duration::ZERO,
            before: Duration::ZERO,
        }
    }

    pub fn begin(&mut self) {
        self.began = Some(Instant::now());
    }

    pub fn so_far(&self) -> Duration {
        self.began.map_or(Duration::ZERO, |began| began.elapsed())
    }

    pub fn end(&mut self) {
        let now = Instant::now();
        // The first turn finds all guards there are. It is no sign of trouble.
        let Some(since) = self.since else { return self.since = Some(now) };
        if now.duration_since(since) > REMEMBERED {
            (self.before, self.longest) = (self.longest, Duration::ZERO);
            self.since = Some(now);
        }
        if let Some(began) = self.began.take() {
            self.longest = self.longest.max(now.duration_since(began));
        }
    }

    /// Returns the longest turn of the last one to two minutes.
    pub fn longest(&self) -> Duration {
        self.longest.max(self.before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_of_a_relative_script_is_read_although_the_readers_hang() {
        let observer = Observer::that_hangs();
        let me = observer.place(process::this()).unwrap();
        let born = Time(me.start_ticks.0 * 10_000_000);
        let exe = Some(b"/usr/bin/node".to_vec());
        let command = CommandLine { argv: b"node\0dist/a.js\0".to_vec(), exe, cwd: None };
        let grammar = Grammar::default();
        let seen = complete(command.clone(), (born, me.pid), &grammar, &observer);
        let here = std::env::current_dir().unwrap().into_os_string().into_encoded_bytes();
        assert_eq!(seen, CommandLine { cwd: Some(here), ..command.clone() });
        let other = complete(command.clone(), (Time(0), me.pid), &grammar, &observer);
        assert_eq!(other, command, "another process has its pid");
    }
}
