//! Which servers count as used because no look has found them idle of late.
//!
//! A look that fails or comes late proves nothing. So a server whose use was known once counts as idle only while
//! looks find it idle.

use std::mem;

use super::{Registry, Tree, TreeId};
use crate::Time;

/// Whether looks have found a server idle.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Idleness {
    /// No look could tell so far.
    #[default]
    Unknown,
    /// The last one has. That holds until this time, if nobody looks again.
    FoundUntil(Time),
    /// The last one has not, or is too old.
    NotFound,
}

impl Tree {
    /// Returns since when it counts as idle.
    pub(super) fn idle_since(&self) -> Time {
        match self.idleness {
            Idleness::NotFound => Time(u64::MAX),
            Idleness::Unknown | Idleness::FoundUntil(_) => self.active,
        }
    }
}

impl Registry {
    /// Notes that a look has found a server idle.
    pub(super) fn found_idle(&mut self, id: TreeId, until: Time) {
        self.set_idleness(id, |_| Idleness::FoundUntil(until));
    }

    /// Notes that a server does not count as idle, whatever the last look has found.
    pub(super) fn counts_as_used(&mut self, id: TreeId) {
        self.set_idleness(id, |_| Idleness::NotFound);
    }

    /// Notes that a look has not found a server idle. It may count as idle from `since` on, if a later look does.
    pub(super) fn found_in_use(&mut self, id: TreeId, since: Time) {
        self.counts_as_used(id);
        self.server_active(since, Some(id));
    }

    /// Notes that a look could not tell.
    pub(super) fn found_nothing(&mut self, id: TreeId) {
        self.set_idleness(id, |before| match before {
            Idleness::Unknown => Idleness::Unknown,
            Idleness::FoundUntil(_) | Idleness::NotFound => Idleness::NotFound,
        });
    }

    /// Lets the servers count as used whose last look is too old.
    pub fn doubt_old_looks(&mut self, now: Time) {
        while let Some((_, id)) = self.found_until.first().copied().filter(|(end, _)| *end <= now) {
            self.found_until.pop_first();
            self.found_nothing(id);
        }
    }

    fn set_idleness(&mut self, id: TreeId, change: impl FnOnce(Idleness) -> Idleness) {
        let Some(tree) = self.trees.get_mut(&id) else { return };
        let before = tree.idle_since();
        let after = change(tree.idleness);
        if let Idleness::FoundUntil(end) = mem::replace(&mut tree.idleness, after) {
            self.found_until.remove(&(end, id));
        }
        if let Idleness::FoundUntil(end) = after {
            self.found_until.insert((end, id));
        }
        self.note_idle_since(id, before);
    }

    /// Notes since when a server counts as idle. `before`: what was noted until now.
    pub(super) fn note_idle_since(&mut self, id: TreeId, before: Time) {
        let Some(tree) = self.trees.get(&id) else { return };
        let (after, is_firm) = (tree.idle_since(), tree.naming.is_firm());
        if before != after
            && (is_firm || tree.is_proven)
            && let Some(identity) = self.identities.get_mut(&tree.identity)
        {
            identity.used(before, after, id, is_firm);
            self.changed.insert(tree.identity.clone());
        }
    }
}
