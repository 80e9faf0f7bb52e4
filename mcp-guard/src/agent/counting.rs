//! The kernel's counts, and the records that were lost.

use std::{collections::BTreeMap, time::Duration};

use mcp_guard_common::Totals;
use mcp_guard_core::{Time, id::GuardId};

use crate::host::bpf::{CGROUPS_FULL, Kernel};

/// Shortest interval between two rescans for processes that no record reports.
const UNREPORTED: Duration = Duration::from_secs(10);

pub(super) struct Counting {
    pub kernel: Kernel,
    losses: BTreeMap<String, u64>,
    /// Records that were never sent, as of the last tick.
    dropped: u64,
    /// Records may wait in the ring that no wake-up reports.
    pub has_unread: bool,
    next_unreported: Time,
}

impl Counting {
    pub fn new(kernel: Kernel, now: Time) -> Self {
        let losses = BTreeMap::new();
        Self { kernel, losses, dropped: 0, has_unread: false, next_unreported: now }
    }

    /// Reads a guard's totals. Logs an error and returns `None` if the map cannot be read.
    pub fn totals(&self, guard: GuardId) -> Option<Totals> {
        let read = self.kernel.totals(guard);
        read.inspect_err(|error| tracing::error!(%guard, %error, "cannot read the totals")).ok()
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

    /// Returns whether records were lost since the last call. Every registry may then be wrong, because the
    /// record of a process that left a guard names no guard.
    pub fn ring_overflowed(&mut self) -> bool {
        let dropped = self.kernel.dropped();
        let overflowed = dropped > self.dropped;
        self.dropped = dropped;
        overflowed
    }

    /// Returns whether to rescan all guards: a command line that could not be read in time may be a server's,
    /// and a cgroup that did not fit into the map may hold servers. The rate is limited, so that a container
    /// cannot force rescans.
    pub fn must_look_again(&mut self, now: Time, answered_late: impl FnOnce() -> bool) -> bool {
        if now < self.next_unreported {
            return false;
        }
        let uncounted = self.losses.get(CGROUPS_FULL).is_some_and(|count| *count > 0);
        let is_due = uncounted || answered_late();
        if is_due {
            self.next_unreported = now.after(UNREPORTED);
        }
        is_due
    }
}
