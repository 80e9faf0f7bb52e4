//! The servers of one identity in one guard: when they started, and how many stay.

use std::{collections::VecDeque, time::Duration};

use super::ages::Ages;
use crate::Time;

/// Maximum number of start times kept per identity, for rates over the last minute.
pub const MAX_STARTS: usize = 4096;
/// How long a start counts towards a rate.
pub const STARTS_KEPT: Duration = Duration::from_secs(60);
/// A fall by this many servers shows that a height was reached by work, and not by a leak.
const FALL: usize = 10;

/// The number of a server within its guard. Later ones have higher numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TreeId(pub u64);

/// When a server started, and how many servers of its identity had ended before.
#[derive(Clone, Copy, Debug)]
pub struct Started {
    pub at: Time,
    ended_before: u64,
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
    pub live_peak: usize,
    /// Live processes of all its servers.
    pub processes: usize,
    /// All live servers.
    pub(super) live: Ages<(TreeId, u64)>,
    /// Those of packages, by when they were last used, or started. Nothing else is certain to
    /// be a server, so nothing else is counted as a duplicate.
    idle: Ages<TreeId>,
    has_launched: bool,
    recent: VecDeque<Time>,
    /// Servers that have ended since `watched`.
    ended: u64,
    /// Since when ends are counted.
    watched: Time,
    /// The highest number of live servers since the last fall.
    crest: usize,
    /// The highest number of live servers from which it fell.
    usual: usize,
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
            ended: 0,
            watched,
            crest: 0,
            usual: 0,
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

    /// Returns when the `n`th youngest live server started. `n` counts from 1.
    #[must_use]
    pub fn nth_youngest(&self, n: usize) -> Option<Time> {
        self.live.nth_oldest((self.live.len() + 1).checked_sub(n)?)
    }

    /// Counts the live servers that started at `moment` or later.
    #[must_use]
    pub fn stayed_since(&self, moment: Time) -> usize {
        self.live.len() - self.live.before(moment)
    }

    /// Counts the servers that have ended since the first of those that are live now and started at `moment` or
    /// later.
    #[must_use]
    pub fn ended_since(&self, moment: Time) -> u64 {
        let first = self.live.nth(self.live.before(moment));
        first.map_or(0, |(_, (_, ended_before))| self.ended - ended_before)
    }

    /// Returns since when ends are known.
    #[must_use]
    pub fn watched(&self) -> Time {
        self.watched
    }

    /// Returns the highest number of live servers from which it fell again, without our doing.
    #[must_use]
    pub fn usual(&self) -> usize {
        self.usual
    }

    /// Returns whether detectors look at it: not at the short-lived helpers of a shell script.
    pub(super) fn matters(&self) -> bool {
        self.has_launched || self.live.len() > 1
    }

    pub(super) fn of_kind(&self, is_firm: bool) -> usize {
        if is_firm { self.idle.len() } else { self.live.len() - self.idle.len() }
    }

    pub(super) fn start(&mut self, at: Time, tree: TreeId, is_firm: bool) -> Started {
        let started = Started { at, ended_before: self.ended };
        self.starts += 1;
        self.live.insert(at, (tree, self.ended));
        self.live_peak = self.live_peak.max(self.live.len());
        self.crest = self.crest.max(self.live.len());
        if is_firm {
            self.has_launched = true;
            self.idle.insert(at, tree);
            self.note_start(at);
        }
        started
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
        self.ended += 1;
        self.remove((started, active), tree, is_firm);
        let live = self.live.len();
        if self.crest >= live + FALL {
            self.usual = self.usual.max(self.crest);
            self.crest = live;
        }
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
        self.live.remove(started.at, (tree, started.ended_before));
        if is_firm {
            self.idle.remove(active, tree);
        }
    }

    fn remains(&self) -> Remains {
        match self.live.len() {
            0 if self.has_launched || self.usual > 0 => Remains::Memory,
            0 => Remains::Nothing,
            _ => Remains::Live,
        }
    }
}
