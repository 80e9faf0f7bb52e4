//! Rebuilds registries from `/proc` after records were lost.
//!
//! Reading a process takes 20 microseconds or more, and some hang. So one guard at a time is read, on a
//! thread of its own, and the loop only merges the result. Totals are exact meanwhile.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use mcp_guard_common::{Event, Kind};
use mcp_guard_core::{
    Time,
    id::{CgroupId, GuardId, Pid},
    registry::{Observed, ticks},
    server::CommandLine,
};
use tokio::sync::mpsc::UnboundedSender;

use crate::host::{cgroup::Dir, observer::Observer};

/// The first interval between two readings of a guard that goes on losing records. It doubles up to
/// [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_secs(2);
const LONGEST_WAIT: Duration = Duration::from_secs(8);
/// How long after its last loss a guard begins with [`FIRST_WAIT`] again.
const FORGET: Duration = Duration::from_secs(10);
/// The thread rests this many times as long as the last reading took, so that a guard that makes us read
/// it again and again costs a quarter of a CPU at most.
const REST: u32 = 3;
const LONGEST_REST: Duration = Duration::from_secs(1);
/// Most processes handed to the observer at a time.
const BATCH: usize = 64;
/// Time limits of a batch and of a whole reading. Without them, a guard full of processes whose command
/// lines are slow to read would keep the thread from the other guards. What is late has no command line.
const LONGEST_BATCH: Duration = Duration::from_millis(500);
const LONGEST_READING: Duration = Duration::from_secs(2);

/// The processes of one guard, as they were while they were read.
pub(super) struct Reading {
    pub guard: GuardId,
    /// The slot may have another guard by now.
    cgroup: CgroupId,
    /// Why they could not be listed: the cgroup is gone.
    processes: io::Result<Vec<Observed>>,
}

struct ToRead {
    guard: GuardId,
    cgroup: CgroupId,
    dir: Dir,
    is_new: bool,
}

/// A guard whose registry may be wrong.
struct Lossy {
    /// When the last loss was noticed.
    noticed: Time,
    /// While records are being lost, the earliest next reading, and the wait after that one.
    next: Time,
    wait: Duration,
    /// Not read since the last loss ended.
    is_wrong: bool,
}

/// Records about a process while its guard was being read.
type Touched = BTreeMap<Pid, Option<Observed>>;

pub(super) struct Rescans {
    thread: mpsc::Sender<ToRead>,
    /// Guards to read, each once.
    queue: VecDeque<GuardId>,
    /// The guard that is being read.
    under_way: Option<(GuardId, Touched)>,
    lossy: BTreeMap<GuardId, Lossy>,
    /// Guards that have never been read.
    unread: BTreeSet<GuardId>,
    /// When the ring was last found empty.
    emptied: Time,
}

impl Rescans {
    /// # Errors
    /// The thread cannot be created.
    pub fn start(observer: Observer, readings: UnboundedSender<Reading>) -> io::Result<Self> {
        let (thread, wanted) = mpsc::channel::<ToRead>();
        thread::Builder::new().name("rescan".to_owned()).spawn(move || {
            for ToRead { guard, cgroup, dir, is_new } in wanted {
                let began = Instant::now();
                let processes = read(&dir, &observer);
                // The loop ends only with the program.
                let _ = readings.send(Reading { guard, cgroup, processes });
                if !is_new {
                    thread::sleep((began.elapsed() * REST).min(LONGEST_REST));
                }
            }
        })?;
        Ok(Self {
            thread,
            queue: VecDeque::new(),
            under_way: None,
            lossy: BTreeMap::new(),
            unread: BTreeSet::new(),
            emptied: Time::default(),
        })
    }

    /// Notes that records of this guard were lost.
    pub fn lost(&mut self, now: Time, guard: GuardId) {
        let first = Lossy { noticed: now, next: now, wait: FIRST_WAIT, is_wrong: true };
        let lossy = self.lossy.entry(guard).or_insert(first);
        (lossy.noticed, lossy.is_wrong) = (now, true);
    }

    /// Notes that the ring is empty: all records that waited when a loss was noticed have been read, including
    /// births whose deaths were lost.
    pub fn ring_is_empty(&mut self, now: Time) {
        self.emptied = now;
    }

    /// Queues the guards that are due. While a guard loses records, it is read at growing intervals; once it
    /// loses no more, it is read for the last time.
    pub fn queue_due(&mut self, now: Time) {
        let mut due = Vec::new();
        self.lossy.retain(|guard, lossy| {
            let is_over = lossy.noticed < now && self.emptied > lossy.noticed;
            if lossy.is_wrong && (is_over || lossy.next <= now) {
                due.push(*guard);
                lossy.next = now.after(lossy.wait);
                lossy.wait = (2 * lossy.wait).min(LONGEST_WAIT);
                lossy.is_wrong = !is_over;
            }
            lossy.is_wrong || now.since(lossy.noticed) < FORGET
        });
        due.into_iter().for_each(|guard| self.want(guard));
    }

    /// Queues one guard.
    pub fn want(&mut self, guard: GuardId) {
        if !self.queue.contains(&guard) {
            self.queue.push_back(guard);
        }
    }

    /// Queues a new guard. Nothing can be said about its growth before it has been read.
    pub fn want_new(&mut self, guard: GuardId) {
        self.unread.insert(guard);
        self.queue.retain(|queued| *queued != guard);
        self.queue.push_front(guard);
    }

    /// Whether the processes that a guard began with are still unknown.
    pub fn is_unread(&self, guard: GuardId) -> bool {
        self.unread.contains(&guard)
    }

    pub fn forget(&mut self, guard: GuardId) {
        self.lossy.remove(&guard);
        self.unread.remove(&guard);
        self.queue.retain(|queued| *queued != guard);
    }

    /// Returns the guard to read next, if none is being read.
    pub fn next(&mut self) -> Option<GuardId> {
        if self.under_way.is_some() { None } else { self.queue.pop_front() }
    }

    /// Begins to read a guard. Returns false if the thread is gone.
    pub fn begin(&mut self, guard: GuardId, cgroup: CgroupId, dir: Dir) -> bool {
        self.under_way = Some((guard, Touched::new()));
        let is_new = self.unread.contains(&guard);
        let is_sent = self.thread.send(ToRead { guard, cgroup, dir, is_new }).is_ok();
        if !is_sent {
            self.under_way = None;
            self.unread.remove(&guard);
        }
        is_sent
    }

    /// Notes a record that is newer than the reading under way may be.
    pub fn note(&mut self, kind: Kind, event: &Event) {
        let Some((guard, touched)) = &mut self.under_way else { return };
        let is_inside = event.guard == guard.0 && kind != Kind::Exit;
        let pid = Pid(event.tgid);
        let seen = Observed {
            pid,
            start_ticks: ticks(Time(event.start_ns)),
            parent: Pid(if kind == Kind::Fork { event.parent } else { 0 }),
            command: CommandLine::default(),
        };
        touched.insert(pid, is_inside.then_some(seen));
    }

    /// Takes a reading, and corrects it by the records that were handled meanwhile. `present` is the
    /// cgroup of the guard that has the slot now. Returns `None` if the reading is of an earlier guard,
    /// or if its cgroup is gone.
    pub fn finish(&mut self, reading: Reading, present: Option<CgroupId>) -> Option<Vec<Observed>> {
        let (guard, touched) = self.under_way.take()?;
        if present != Some(reading.cgroup) {
            return None;
        }
        self.unread.remove(&guard);
        Some(corrected(reading.processes.ok()?, touched))
    }
}

fn read(dir: &Dir, observer: &Observer) -> io::Result<Vec<Observed>> {
    let members = dir.members(|_| true)?;
    let (pids, too_deep) =
        members.map(|members| (members.processes, members.too_deep)).unwrap_or_default();
    if too_deep > 0 {
        tracing::warn!(
            too_deep,
            "cgroups of a guard are nested too deep; their processes are not known"
        );
    }
    let end = Instant::now() + LONGEST_READING;
    let read = |some: &[Pid]| {
        observer.observe_until(end.min(Instant::now() + LONGEST_BATCH), some.to_vec())
    };
    Ok(pids.chunks(BATCH).flat_map(read).collect())
}

fn corrected(processes: Vec<Observed>, mut touched: Touched) -> Vec<Observed> {
    let mut all = Vec::with_capacity(processes.len());
    for process in processes {
        match touched.get(&process.pid) {
            // Its record says the same, and has no command line.
            Some(Some(known)) if known.start_ticks == process.start_ticks => {
                touched.remove(&process.pid);
            }
            // It ended or moved out, or its pid was given away.
            Some(_) => continue,
            None => {}
        }
        all.push(process);
    }
    all.extend(touched.into_values().flatten());
    all
}

#[cfg(test)]
mod tests {
    use mcp_guard_core::id::Ticks;

    use super::*;

    const GUARD: GuardId = GuardId(3);
    const SECOND: Duration = Duration::from_secs(1);

    fn rescans() -> Rescans {
        let (readings, _) = tokio::sync::mpsc::unbounded_channel();
        Rescans::start(Observer::start(), readings).unwrap()
    }

    fn at(quarters: u32) -> Time {
        Time(1).after(SECOND / 4 * quarters)
    }

    /// Returns at which quarters of a second a guard is read that loses records in some of them.
    fn readings(losses: impl Fn(u32) -> bool, empty: impl Fn(u32) -> bool) -> Vec<u32> {
        let mut rescans = rescans();
        let mut read = Vec::new();
        for quarter in 0..200 {
            if empty(quarter) {
                rescans.ring_is_empty(at(quarter));
            }
            if losses(quarter) {
                rescans.lost(at(quarter), GUARD);
            }
            rescans.queue_due(at(quarter));
            if rescans.next().is_some() {
                read.push(quarter);
            }
        }
        read
    }

    #[test]
    fn a_single_loss_is_read_at_once_and_again_when_the_ring_has_been_read() {
        assert_eq!(readings(|now| now == 5, |_| true), [5, 6]);
        assert_eq!(readings(|now| now == 5, |now| now == 7), [5, 7]);
    }

    #[test]
    fn a_guard_that_goes_on_losing_is_read_less_and_less_often() {
        let long = readings(|now| now < 100, |_| true);
        assert_eq!(long, [0, 8, 24, 56, 88, 100], "after 2, 4, 8 and 8 s, and when the losses end");
        let twice = readings(|now| now == 0 || now == 60, |_| true);
        assert_eq!(twice, [0, 1, 60, 61], "the intervals are forgotten");
    }

    fn seen(pid: u32, start: u64) -> Observed {
        let command = b"x".to_vec().into();
        Observed { pid: Pid(pid), start_ticks: Ticks(start), parent: Pid(1), command }
    }

    fn event(kind: Kind, guard: u32, pid: u32, start: u64) -> Event {
        Event {
            time_ns: 0,
            cgroup: 1,
            start_ns: start * 10_000_000,
            kind: kind as u32,
            guard,
            tgid: pid,
            parent: 1,
            exit_code: 0,
            argv_len: 0,
            exe_len: 0,
            flags: 0,
        }
    }

    #[test]
    fn records_that_were_handled_meanwhile_correct_the_reading() {
        let mut rescans = rescans();
        rescans.under_way = Some((GUARD, Touched::new()));
        for (kind, guard, pid, start) in [
            (Kind::Exit, GUARD.0, 10, 1),    // ended
            (Kind::Attach, u32::MAX, 11, 1), // left
            (Kind::Fork, GUARD.0, 12, 5),    // born after the list was read
            (Kind::Fork, GUARD.0, 13, 5),    // its pid belonged to another process
            (Kind::Exec, GUARD.0, 14, 1),    // there all the time
            (Kind::Exec, 4, 15, 1),          // of another guard
        ] {
            rescans.note(kind, &event(kind, guard, pid, start));
        }
        let list = [10, 11, 13, 14, 16].map(|pid| seen(pid, 1)).to_vec();
        let reading = Reading { guard: GUARD, cgroup: CgroupId(7), processes: Ok(list) };
        let found = rescans.finish(reading, Some(CgroupId(7))).unwrap();
        let found: Vec<_> = found
            .iter()
            .map(|one| (one.pid.0, one.start_ticks.0, one.command.argv.len()))
            .collect();
        assert_eq!(found, [(14, 1, 1), (16, 1, 1), (12, 5, 0), (13, 5, 0)]);
    }

    #[test]
    fn a_reading_of_an_earlier_guard_in_the_slot_is_dropped() {
        let mut rescans = rescans();
        let reading = || Reading { guard: GUARD, cgroup: CgroupId(7), processes: Ok(Vec::new()) };
        for present in [Some(CgroupId(8)), None] {
            rescans.want_new(GUARD);
            rescans.under_way = Some((GUARD, Touched::new()));
            assert!(rescans.finish(reading(), present).is_none());
            assert!(rescans.is_unread(GUARD), "the present guard was not read");
        }
        rescans.under_way = Some((GUARD, Touched::new()));
        assert!(rescans.finish(reading(), Some(CgroupId(7))).is_some());
    }
}
