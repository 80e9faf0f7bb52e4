//! The kernel's counts, and the records that were lost.

use std::{collections::BTreeMap, time::Duration};

use mcp_guard_common::Totals;
use mcp_guard_core::{Time, id::GuardId};

use crate::host::bpf::{CGROUPS_FULL, Kernel};

/// Shortest interval between two rescans for processes that no record reports.
const UNREPORTED: Duration = Duration::from_secs(10);

/// Longest interval between two readings of totals that go to the core.
const TAKEN_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Counting {
    pub kernel: Kernel,
    losses: BTreeMap<String, u64>,
    /// When the totals of each guard were last taken, and what they were.
    taken: BTreeMap<GuardId, (Time, Totals)>,
    /// Records that were never sent and that name no guard, as of the last look.
    nameless: u64,
    /// Losses by too deep cgroups that have caused a rescan.
    uncounted: u64,
    /// Records may wait in the ring that no wake-up reports.
    pub has_unread: bool,
    next_unreported: Time,
}

impl Counting {
    pub fn new(kernel: Kernel, now: Time) -> Self {
        let (losses, taken) = (BTreeMap::new(), BTreeMap::new());
        Self {
            kernel,
            losses,
            taken,
            nameless: 0,
            uncounted: 0,
            has_unread: false,
            next_unreported: now,
        }
    }

    /// Reads a guard's totals. Logs an error and returns `None` if the map cannot be read.
    pub fn totals(&self, guard: GuardId) -> Option<Totals> {
        let read = self.kernel.totals(guard);
        read.inspect_err(|error| tracing::error!(%guard, %error, "cannot read the totals")).ok()
    }

    /// Reads a guard's totals if they have changed, or were last taken a second ago. Most guards are idle most
    /// of the time, and deciding about each four times a second would be most of the agent's own cost.
    pub fn new_totals(&mut self, now: Time, guard: GuardId) -> Option<Totals> {
        let totals = self.totals(guard)?;
        let is_old =
            |(at, before): &(Time, Totals)| *before == totals && now.since(*at) < TAKEN_EVERY;
        if self.taken.get(&guard).is_some_and(is_old) {
            return None;
        }
        self.taken.insert(guard, (now, totals));
        Some(totals)
    }

    pub fn forget(&mut self, guard: GuardId) {
        self.taken.remove(&guard);
    }

    pub fn losses(&self) -> BTreeMap<String, u64> {
        self.kernel.losses()
    }

    /// Returns the causes with new losses since the last call, each with its total count.
    pub fn new_losses(&mut self) -> Vec<(String, u64)> {
        let losses = self.kernel.losses();
        let before = |cause: &String| self.losses.get(cause).copied().unwrap_or(0);
        let new: Vec<_> = losses
            .iter()
            .filter(|(cause, count)| **count > before(cause))
            .map(|(cause, count)| {
                let lost = count - before(cause);
                tracing::warn!(cause, lost, "the kernel side lost records or counts");
                (cause.clone(), *count)
            })
            .collect();
        self.losses = losses;
        new
    }

    /// Returns whether records that name no guard were lost since the last call, so that every registry may
    /// be wrong. The totals show which guards lost others.
    pub fn lost_nameless(&mut self) -> bool {
        let nameless = self.kernel.nameless();
        std::mem::replace(&mut self.nameless, nameless) < nameless
    }

    /// Returns whether to rescan all guards: a command line that could not be read in time may be a server's,
    /// and so may a task that was not counted because it is nested too deep. The rate is limited, so that a
    /// container cannot force rescans.
    pub fn must_look_again(&mut self, now: Time, answered_late: impl FnOnce() -> bool) -> bool {
        if now < self.next_unreported {
            return false;
        }
        let uncounted = self.losses.get(CGROUPS_FULL).copied().unwrap_or(0);
        let is_due = uncounted > self.uncounted || answered_late();
        if is_due {
            self.uncounted = uncounted;
            self.next_unreported = now.after(UNREPORTED);
        }
        is_due
    }
}
