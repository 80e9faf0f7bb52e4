//! The servers of one identity in one guard: when they started, and how many stay.

use std::{collections::VecDeque, time::Duration};

use super::ages::Ages;
use crate::Time;

/// Maximum number of start times kept per identity, for rates over the last minute.
pub const MAX_STARTS: usize = 4096;
/// How long a start counts towards a rate.
pub const STARTS_KEPT: Duration = Duration::from_secs(60);
/// An identity that had this many live servers at a time is remembered: to reach that number again is no growth.
const NOTABLE: usize = 10;

/// The number of a server within its guard. Later ones have higher numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TreeId(pub u64);

/// When a server started, and how many of its identity had lived at a time before, at most.
#[derive(Clone, Copy, Debug)]
pub struct Started {
    pub at: Time,
    peak_before: usize,
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
    /// Live processes of all its servers.
    pub processes: usize,
    /// All live servers, with the peak before each.
    pub(super) live: Ages<(TreeId, usize)>,
    /// Those of packages, by when they were last used, or started. Nothing else is certain to
    /// be a server, so nothing else is counted as a duplicate.
    idle: Ages<TreeId>,
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
            processes: 0,
            live: Ages::default(),
            idle: Ages::default(),
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
        self.live.last_of_first(|(_, peak_before)| peak_before <= peak)
    }

    /// Returns how many had lived at a time, at most, before the first that started at `moment` or later and
    /// lives.
    #[must_use]
    pub fn peak_before(&self, moment: Time) -> Option<usize> {
        let first = self.live.nth(self.live.before(moment));
        first.map(|(_, (_, peak_before))| peak_before)
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

    pub(super) fn start(&mut self, at: Time, tree: TreeId, is_firm: bool) -> Started {
        let peak_before = self.live_peak;
        self.starts += 1;
        self.live.insert(at, (tree, peak_before));
        self.live_peak = peak_before.max(self.live.len());
        if is_firm {
            self.has_launched = true;
            self.idle.insert(at, tree);
            self.note_start(at);
        }
        Started { at, peak_before }
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

    pub(super) fn used(&mut self, before: Time, now: Time, tree: TreeId) {
        self.idle.remove(before, tree);
        self.idle.insert(now, tree);
    }

    /// `active`: when it was last used, or started.
    pub(super) fn end(
        &mut self,
        (started, active): (Started, Time),
        tree: TreeId,
        is_firm: bool,
    ) -> Remains {
        self.remove((started, active), tree, is_firm);
        self.remains()
    }

    /// Takes back a start that was none.
    pub(super) fn withdraw(
        &mut self,
        (started, active): (Started, Time),
        tree: TreeId,
        is_firm: bool,
    ) -> Remains {
        self.starts -= 1;
        self.remove((started, active), tree, is_firm);
        if is_firm && let Ok(place) = self.recent.binary_search(&started.at) {
            self.recent.remove(place);
        }
        self.remains()
    }

    fn remove(&mut self, (started, active): (Started, Time), tree: TreeId, is_firm: bool) {
        self.live.remove(started.at, (tree, started.peak_before));
        if is_firm {
            self.idle.remove(active, tree);
        }
    }

    fn remains(&self) -> Remains {
        match self.live.len() {
            0 if self.has_launched || self.live_peak >= NOTABLE => Remains::Memory,
            0 => Remains::Nothing,
            _ => Remains::Live,
        }
    }
}
