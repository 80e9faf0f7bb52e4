//! The servers of one identity in one guard: when they started, and how many stay.

use std::{cmp::Ordering, collections::VecDeque, time::Duration};

use super::ages::Ages;
use crate::Time;

/// Maximum number of start times kept per identity, for rates over the last minute.
pub const MAX_STARTS: usize = 4096;
/// How long a start counts towards a rate.
pub const STARTS_KEPT: Duration = Duration::from_secs(60);
/// An identity that had this many live servers at a time is remembered: to reach that number again is no growth.
const NOTABLE: usize = 10;

/// How long a number of live servers is remembered: longer than the growth of a leak takes. A service that was once
/// large must not hide a later leak for ever.
const PEAK_DAYS: u64 = 14;
const DAY_NS: u64 = 86_400_000_000_000;

/// The number of a server within its guard. Later ones have higher numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TreeId(pub u64);

/// A live server, and how many of its identity lived when it started.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counted {
    id: TreeId,
    live_before: usize,
    /// At a time before, at most.
    peak_before: usize,
}

impl Counted {
    fn alone(id: TreeId) -> Self {
        Self { id, live_before: 0, peak_before: 0 }
    }
}

impl PartialEq for Counted {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Counted {}

impl PartialOrd for Counted {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Counted {
    fn cmp(&self, other: &Self) -> Ordering {
        self.id.cmp(&other.id)
    }
}

/// When a server started, when we learned of it, and since when it counts as idle.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewServer {
    pub at: Time,
    pub learned: Time,
    pub idle: Time,
}

/// The rest of an identity after one of its servers has ended.
pub enum Remains {
    Live,
    /// No server is left, and there is nothing to remember.
    Nothing,
    /// No server is left.
    Memory,
}

/// One identity in one guard: its starts and its live servers.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Servers ever started, including those found when the guard began.
    pub starts: u64,
    /// The highest number of live servers so far.
    pub live_peak: usize,
    /// The highest number in `days`.
    peak: usize,
    /// The highest number of live servers on each day with a start or an end, for [`PEAK_DAYS`].
    days: VecDeque<(u64, usize)>,
    /// Live processes of all its servers.
    pub processes: usize,
    /// All live servers, with the peak before each.
    pub(super) live: Ages<Counted>,
    /// Those of packages, by when they were last used, or started. Nothing else is certain to
    /// be a server.
    idle: Ages<TreeId>,
    /// Those others that a look has proved to be stdio servers without work, by the same time.
    proven: Ages<TreeId>,
    /// Until when that counts if nobody looks again.
    proofs_count_until: Time,
    has_launched: bool,
    recent: VecDeque<Time>,
    /// Since when it is watched: what ended before is not known.
    watched: Time,
}

impl Identity {
    pub(super) fn new(watched: Time) -> Self {
        Self {
            starts: 0,
            live_peak: 0,
            peak: 0,
            days: VecDeque::new(),
            processes: 0,
            live: Ages::default(),
            idle: Ages::default(),
            proven: Ages::default(),
            proofs_count_until: Time(0),
            has_launched: false,
            recent: VecDeque::new(),
            watched,
        }
    }

    #[must_use]
    pub fn live(&self) -> usize {
        self.live.len()
    }

    /// Returns whether it is that of a package.
    #[must_use]
    pub fn is_package(&self) -> bool {
        self.has_launched
    }

    /// Counts the live servers of a package that are at least `age` old, and were not used for
    /// as long. Where use is not known, none was used.
    #[must_use]
    pub fn launched_idle(&self, now: Time, age: Duration) -> usize {
        now.checked_before(age).map_or(0, |moment| self.idle.until(moment))
    }

    /// Returns when the `n`th longest idle of them started, or was last used. `n` counts from 1.
    #[must_use]
    pub fn nth_idlest(&self, n: usize) -> Option<Time> {
        self.idle.nth_oldest(n)
    }

    /// Counts the live servers of no package that are proved to be stdio servers, and were not used for `age`.
    #[must_use]
    pub fn proven_idle(&self, now: Time, age: Duration) -> usize {
        let moment = now.checked_before(age).filter(|_| now < self.proofs_count_until);
        moment.map_or(0, |moment| self.proven.until(moment))
    }

    /// Returns when the `n`th longest idle of them was last used, or started. `n` counts from 1.
    #[must_use]
    pub fn nth_proven(&self, n: usize) -> Option<Time> {
        self.proven.nth_oldest(n)
    }

    /// Returns until when the proofs count if nobody looks again.
    #[must_use]
    pub fn proofs_end(&self) -> Time {
        self.proofs_count_until
    }

    /// Counts the live servers that are at least `age` old.
    #[must_use]
    pub fn live_aged(&self, now: Time, age: Duration) -> usize {
        now.checked_before(age).map_or(0, |moment| self.live.until(moment))
    }

    /// Returns whether all live servers are of a package.
    #[must_use]
    pub fn is_all_launched(&self) -> bool {
        self.idle.len() == self.live.len()
    }

    /// Returns when the `n`th oldest live server started. `n` counts from 1.
    #[must_use]
    pub fn nth_oldest(&self, n: usize) -> Option<Time> {
        self.live.nth_oldest(n)
    }

    /// Counts the starts of a package less than `age` ago.
    #[must_use]
    pub fn starts_within(&self, now: Time, age: Duration) -> usize {
        self.recent.len() - self.recent.partition_point(|start| now.since(*start) >= age)
    }

    /// Counts the same starts at least `second` seconds ago and less than one second more.
    #[must_use]
    pub fn starts_in_second(&self, now: Time, second: u64) -> usize {
        let [from, to] = [second, second + 1].map(Duration::from_secs);
        self.starts_within(now, to) - self.starts_within(now, from)
    }

    /// Returns when the youngest live server started before which at most `peak` had lived at a time.
    #[must_use]
    pub fn began_within(&self, peak: usize) -> Option<Time> {
        self.live.last_of_first(|one| one.peak_before <= peak)
    }

    /// Returns how many had lived at a time, at most, before the first that started at `moment` or later and
    /// lives.
    #[must_use]
    pub fn peak_before(&self, moment: Time) -> Option<usize> {
        let first = self.live.nth(self.live.before(moment));
        first.map(|(_, one)| one.peak_before)
    }

    /// Returns the highest number of live servers of the last weeks.
    #[must_use]
    pub fn peak(&self) -> usize {
        self.peak
    }

    /// Returns since when ends are known.
    #[must_use]
    pub fn watched(&self) -> Time {
        self.watched
    }

    /// Returns whether detectors look at it: not at the short-lived helpers of a shell script.
    pub(super) fn matters(&self) -> bool {
        self.has_launched || self.live.len() > 1
    }

    pub(super) fn of_kind(&self, is_firm: bool) -> usize {
        if is_firm { self.idle.len() } else { self.live.len() - self.idle.len() }
    }

    pub(super) fn start(&mut self, start: NewServer, id: TreeId, is_firm: bool) {
        let NewServer { at, learned, idle } = start;
        self.turn_to(learned);
        let (live_before, peak_before) = (self.live.len(), self.peak);
        self.starts += 1;
        self.live.insert(at, Counted { id, live_before, peak_before });
        let live = self.live.len();
        self.peak = self.peak.max(live);
        self.live_peak = self.live_peak.max(live);
        if let Some((_, most)) = self.days.back_mut() {
            *most = live.max(*most);
        }
        if is_firm {
            self.has_launched = true;
            self.idle.insert(idle, id);
            self.note_start(at);
        }
    }

    /// Begins a new day if it is one, and forgets an old one.
    pub(super) fn turn_to(&mut self, now: Time) {
        let today = now.0 / DAY_NS;
        if self.days.back().is_some_and(|(last, _)| *last >= today) {
            return;
        }
        // Nothing has started or ended since the last day.
        self.days.push_back((today, self.live.len()));
        while self.days.front().is_some_and(|(day, _)| day + PEAK_DAYS < today) {
            self.days.pop_front();
        }
        let peak = self.days.iter().map(|(_, most)| *most).max().unwrap_or_default();
        if peak < self.peak {
            self.peak = peak;
            self.count_again();
        }
    }

    /// Counts how many had lived before each server, from what is still remembered.
    fn count_again(&mut self) {
        let oldest = self.days.front().map_or(0, |(day, _)| *day);
        let (mut days, most, mut before) = (self.days.iter().peekable(), self.peak, 0);
        let mut older = 0;
        self.live.for_each(|began, one| {
            let began = began.0 / DAY_NS;
            while let Some((_, peak)) = days.next_if(|(day, _)| *day < began) {
                before = before.max(*peak);
            }
            // Only what lives is known of the days that are forgotten.
            let live_before = if began < oldest { older } else { one.live_before };
            before = before.max(live_before).min(most);
            one.peak_before = before;
            older += 1;
        });
    }

    fn note_start(&mut self, at: Time) {
        // Nearly always the end; a rescan may find older starts.
        let place = self.recent.partition_point(|start| *start <= at);
        self.recent.insert(place, at);
        let newest = self.recent.back().copied().unwrap_or(at);
        while self.recent.len() > MAX_STARTS
            || self.recent.front().is_some_and(|start| newest.since(*start) > STARTS_KEPT)
        {
            self.recent.pop_front();
        }
    }

    pub(super) fn used(&mut self, before: Time, now: Time, tree: TreeId, is_firm: bool) {
        let ages = if is_firm { &mut self.idle } else { &mut self.proven };
        ages.remove(before, tree);
        ages.insert(now, tree);
    }

    /// Returns whether they counted no more at `now`.
    pub(super) fn proofs_count_until(&mut self, now: Time, fresh: Time) -> bool {
        now >= std::mem::replace(&mut self.proofs_count_until, fresh)
    }

    /// `active`: when it was last used, or started.
    pub(super) fn prove(&mut self, active: Time, tree: TreeId) {
        self.proven.insert(active, tree);
    }

    pub(super) fn disprove(&mut self, active: Time, tree: TreeId) {
        self.proven.remove(active, tree);
    }

    /// `active`: when it was last used, or started.
    pub(super) fn end(
        &mut self,
        (started, active): (Time, Time),
        tree: TreeId,
        is_firm: bool,
    ) -> Remains {
        self.remove((started, active), tree, is_firm);
        self.remains()
    }

    /// Takes back a start that was none.
    pub(super) fn withdraw(
        &mut self,
        (started, active): (Time, Time),
        tree: TreeId,
        is_firm: bool,
    ) -> Remains {
        self.starts -= 1;
        self.remove((started, active), tree, is_firm);
        if is_firm && let Ok(place) = self.recent.binary_search(&started) {
            self.recent.remove(place);
        }
        self.remains()
    }

    fn remove(&mut self, (started, active): (Time, Time), tree: TreeId, is_firm: bool) {
        self.live.remove(started, Counted::alone(tree));
        if is_firm {
            self.idle.remove(active, tree);
        }
    }

    fn remains(&self) -> Remains {
        match self.live.len() {
            0 if self.has_launched || self.peak >= NOTABLE => Remains::Memory,
            0 => Remains::Nothing,
            _ => Remains::Live,
        }
    }
}
