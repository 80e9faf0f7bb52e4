//! The cgroups that the policy names and that are not guarded: those that could not be, and those that only
//! an engine that is not believed has named.

use std::{collections::BTreeMap, time::Duration};

use mcp_guard_core::{Time, id::CgroupId};

/// Earliest retry for a cgroup that could not be guarded. Shorter than [`super::ASK_AGAIN`].
const TRY_AGAIN: Duration = Duration::from_secs(20);
/// Interval after which the same warning about a cgroup is logged again.
const WARN_AGAIN: Duration = Duration::from_secs(3600);
/// A cgroup that was not seen for this time is gone. Engines report containers every [`super::ASK_AGAIN`].
const GONE: Duration = Duration::from_secs(90);

/// A cgroup that could not be guarded.
struct Retried {
    try_again: Time,
    warned: Time,
    /// The latest attempt, or the latest time when it was too early for one.
    seen: Time,
}

/// A cgroup that an engine named without right.
struct Disbelieved {
    /// Whether the policy would guard it.
    is_named: bool,
    warned: Time,
    /// The latest time that it was named.
    seen: Time,
}

#[derive(Default)]
pub(super) struct Unguarded {
    failed: BTreeMap<CgroupId, Retried>,
    disbelieved: BTreeMap<CgroupId, Disbelieved>,
    /// A search for cgroups did not read all names.
    is_cut: bool,
}

impl Unguarded {
    /// Whether it is too early for another attempt. Notes that the cgroup is there.
    pub fn must_wait(&mut self, now: Time, cgroup: CgroupId) -> bool {
        self.failed.get_mut(&cgroup).is_some_and(|one| {
            one.seen = now;
            now < one.try_again
        })
    }

    /// Schedules the next attempt. Returns whether to warn, which is once per [`WARN_AGAIN`].
    pub fn could_not(&mut self, now: Time, cgroup: CgroupId) -> bool {
        // Drops entries that are due for another warning, and those of removed cgroups.
        self.failed.retain(|_, one| now.since(one.warned) < WARN_AGAIN);
        let try_again = now.after(TRY_AGAIN);
        let is_new = !self.failed.contains_key(&cgroup);
        let entry = self.failed.entry(cgroup);
        entry.or_insert(Retried { try_again, warned: now, seen: now }).try_again = try_again;
        is_new
    }

    /// Forgets a cgroup that is guarded now.
    pub fn is_guarded(&mut self, cgroup: CgroupId) {
        self.failed.remove(&cgroup);
    }

    /// Lets each cgroup try again: a slot, or a place in a map, may be free.
    pub fn try_again(&mut self, now: Time) {
        self.failed.values_mut().for_each(|one| one.try_again = now);
    }

    /// Notes how a search for the cgroups that the policy names has ended.
    pub fn searched(&mut self, is_cut: bool) {
        if is_cut && !self.is_cut {
            tracing::warn!(
                "there are too many cgroups to look at: not all that the policy names by a pattern \
                 are guarded; name fewer levels by patterns"
            );
        }
        self.is_cut = is_cut;
    }

    /// Notes a cgroup that an engine named without right. Returns whether to warn, which is once per
    /// [`WARN_AGAIN`].
    pub fn disbelieve(&mut self, now: Time, cgroup: CgroupId, is_named: bool) -> bool {
        self.disbelieved.retain(|_, one| now.since(one.warned) < WARN_AGAIN);
        let is_new = !self.disbelieved.contains_key(&cgroup);
        let entry = self.disbelieved.entry(cgroup);
        let one = entry.or_insert(Disbelieved { is_named, warned: now, seen: now });
        (one.is_named, one.seen) = (is_named, now);
        is_new
    }

    /// Counts the cgroups that are there.
    pub fn count(&self, now: Time, is_guarded: impl Fn(CgroupId) -> bool) -> usize {
        let is_there = |seen: Time| now.since(seen) < GONE;
        let failed = self.failed.values().filter(|one| is_there(one.seen));
        let disbelieved = self.disbelieved.iter().filter(|(cgroup, one)| {
            let is_known = self.failed.contains_key(cgroup) || is_guarded(**cgroup);
            one.is_named && is_there(one.seen) && !is_known
        });
        failed.count() + disbelieved.count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CGROUP: CgroupId = CgroupId(7);

    fn at(seconds: u64) -> Time {
        Time(seconds * 1_000_000_000)
    }

    #[test]
    fn an_attempt_that_failed_is_repeated_after_a_while_and_warned_about_once_per_hour() {
        let mut unguarded = Unguarded::default();
        assert!(!unguarded.must_wait(at(1), CGROUP));
        assert!(unguarded.could_not(at(1), CGROUP));
        assert!(unguarded.must_wait(at(20), CGROUP) && !unguarded.must_wait(at(21), CGROUP));
        assert!(!unguarded.could_not(at(21), CGROUP) && unguarded.must_wait(at(40), CGROUP));
        unguarded.try_again(at(40));
        assert!(!unguarded.must_wait(at(40), CGROUP), "a slot is free");
        assert!(!unguarded.could_not(at(3600), CGROUP) && unguarded.could_not(at(3601), CGROUP));
    }

    #[test]
    fn a_cgroup_counts_once_and_while_it_is_there() {
        let mut unguarded = Unguarded::default();
        let count = |unguarded: &Unguarded, second| unguarded.count(at(second), |_| false);
        unguarded.disbelieve(at(1), CGROUP, false);
        assert_eq!(count(&unguarded, 1), 0, "the policy does not name it");
        assert!(!unguarded.disbelieve(at(1), CGROUP, true), "it is warned about already");
        assert_eq!(count(&unguarded, 1), 1);
        assert_eq!(
            unguarded.count(at(1), |cgroup| cgroup == CGROUP),
            0,
            "an engine that is believed"
        );
        unguarded.could_not(at(1), CGROUP);
        assert_eq!((count(&unguarded, 1), count(&unguarded, 90)), (1, 1));
        assert_eq!(count(&unguarded, 91), 0, "it is gone");
        unguarded.is_guarded(CGROUP);
        assert_eq!(count(&unguarded, 1), 1, "only the engine's word is left");
    }
}
