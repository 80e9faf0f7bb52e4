//! The kernel's counts, and what was lost of their detail.

use std::{collections::BTreeMap, time::Duration};

use mcp_guard_common::Totals;
use mcp_guard_core::{Time, id::GuardId};

use crate::host::bpf::{CGROUPS_FULL, Kernel};

/// Between looks at what no record will tell.
const UNTOLD: Duration = Duration::from_secs(10);

pub(super) struct Counting {
    pub kernel: Kernel,
    losses: BTreeMap<String, u64>,
    /// Records lost to a full ring, as of the last tick.
    dropped: u64,
    /// Records were lost, and the ring was not empty since.
    behind_a_loss: bool,
    next_untold: Time,
}

impl Counting {
    pub fn new(kernel: Kernel, now: Time) -> Self {
        let losses = BTreeMap::new();
        Self { kernel, losses, dropped: 0, behind_a_loss: false, next_untold: now }
    }

    /// None where the map cannot be read, which is said.
    pub fn totals(&self, guard: GuardId) -> Option<Totals> {
        let read = self.kernel.totals(guard);
        read.inspect_err(|error| tracing::error!(%guard, %error, "totals")).ok()
    }

    pub fn losses(&self) -> BTreeMap<String, u64> {
        self.kernel.losses()
    }

    /// Losses since the last call, with how many there were ever.
    pub fn new_losses(&mut self) -> Vec<(String, u64)> {
        let losses = self.kernel.losses();
        let before = |cause: &String| self.losses.get(cause).copied().unwrap_or(0);
        let new: Vec<_> = losses
            .iter()
            .filter(|(cause, count)| **count > before(cause))
            .map(|(cause, count)| {
                let lost = count - before(cause);
                tracing::warn!(cause, lost, "the kernel side lost something");
                (cause.clone(), *count)
            })
            .collect();
        self.losses = losses;
        new
    }

    /// True where records were lost: every registry may then be wrong, because a process that left a
    /// guard is told of by a record of no guard.
    pub fn ring_overflowed(&mut self) -> bool {
        let dropped = self.kernel.dropped();
        let overflowed = dropped > self.dropped;
        self.dropped = dropped;
        self.behind_a_loss |= overflowed;
        overflowed
    }

    /// True once after a loss, when the ring is empty. All that waited when the loss was seen has been
    /// read then: births whose deaths were lost among it.
    pub fn is_past_a_loss(&mut self) -> bool {
        std::mem::take(&mut self.behind_a_loss)
    }

    /// A command line that could not be read in time may tell of a server, and a cgroup for which the map
    /// had no room may hold some. Rate-limited, so that a container cannot force rescans.
    pub fn must_look_again(&mut self, now: Time, answered_late: impl FnOnce() -> bool) -> bool {
        if now < self.next_untold {
            return false;
        }
        let uncounted = self.losses.get(CGROUPS_FULL).is_some_and(|count| *count > 0);
        let is_due = uncounted || answered_late();
        if is_due {
            self.next_untold = now.after(UNTOLD);
        }
        is_due
    }
}
