//! The kernel's counts, and the records that were lost.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    time::Duration,
};

use anyhow::anyhow;
use mcp_guard_common::Totals;
use mcp_guard_core::{
    Time,
    id::{CgroupId, GuardId},
};

use crate::host::{
    bpf::{CGROUPS_FULL, Kernel},
    cgroup::{Cgroup, is_too_deep},
};

/// Most passes over the map of cgroups for guards that end.
const PASSES: usize = 8;

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
    /// Guards that have ended, and whose cgroups may still be counted.
    ended: BTreeSet<GuardId>,
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
            ended: BTreeSet::new(),
        }
    }

    /// Counts the tasks of a cgroup and of those below it for a guard.
    pub fn begin(&mut self, guard: GuardId, cgroup: &Cgroup) -> anyhow::Result<()> {
        let kernel = &mut self.kernel;
        // A cgroup has one guard: counted for two, it would be wrong for both.
        let overlaps = |other: GuardId| anyhow!("it overlaps guard {other}");
        // One inside a guard may not be in the map of cgroups, which has a part of each guard.
        let mut around = None;
        cgroup.is_below(|dir| {
            around = kernel.guard_at(dir.id()?);
            Ok(around.is_some())
        })?;
        if let Some(other) = around {
            return Err(overlaps(other));
        }
        kernel.clear_totals(guard)?;
        kernel.add_root(cgroup.id(), guard)?;
        let (mut trouble, mut is_full) = (None, false);
        let walked = cgroup.walk(&mut |dir, _| {
            let id = dir.id()?;
            match kernel.guard_of(id).or_else(|| kernel.guard_at(id)) {
                Some(other) if other != guard => trouble = Some(overlaps(other)),
                _ => match kernel.add_cgroup(id, guard) {
                    Ok(has_room) => is_full |= !has_room,
                    Err(error) => trouble = Some(error.into()),
                },
            }
            // A container may have any number of them, and none of the rest would have room.
            if is_full { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        });
        match walked {
            _ if is_full => kernel.leave_out_uncounted(guard),
            Err(error) if is_too_deep(&error) => kernel.leave_out_uncounted(guard),
            walked => walked?,
        }
        kernel.begin_epoch();
        trouble.map_or(Ok(()), Err)
    }

    /// Counts the tasks of a guard no more. Its other cgroups follow in [`Self::free_slots`].
    pub fn end(&mut self, guard: GuardId, cgroup: CgroupId) {
        self.kernel.remove_root(cgroup, guard);
        self.ended.insert(guard);
    }

    /// Removes the cgroups of ended guards from the kernel's maps, all guards at once. Returns the slots that
    /// are free now.
    pub fn free_slots(&mut self) -> BTreeSet<GuardId> {
        if self.ended.is_empty() {
            return BTreeSet::new();
        }
        let mut ended = std::mem::take(&mut self.ended);
        // A cgroup that is created meanwhile may still find its parent in the map.
        for _ in 0..PASSES {
            self.ended = self.kernel.remove_cgroups_of(&ended);
            if self.ended.is_empty() {
                break;
            }
        }
        self.kernel.begin_epoch();
        ended.retain(|guard| !self.ended.contains(guard));
        ended
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
