//! The table of guards: one entry for each cgroup that is guarded, or held by an operator.
//!
//! The core makes the decisions about each guard; the kernel's maps mirror this table.

use std::collections::{BTreeMap, VecDeque};

use mcp_guard_core::{
    audit::Subject,
    escape::visible_within,
    id::{CgroupId, GuardId},
};

use crate::{
    engine::{Container, Paused},
    host::cgroup::Cgroup,
};

/// Most bytes of a name.
const MOST_NAME: usize = 256;

/// A cgroup held open by descriptors, with its name, container and pause.
pub struct Held {
    pub cgroup: Cgroup,
    pub subject: Subject,
    /// Id of its container in the engine, if it has one.
    pub container: Option<String>,
    /// The engine reports the container as paused: the freeze is the engine's, and we must not touch it.
    pub paused: bool,
}

impl Held {
    #[must_use]
    pub fn new(cgroup: Cgroup, name: &str, container: Option<String>, paused: bool) -> Self {
        let subject = Subject {
            name: visible_within(name, MOST_NAME),
            cgroup: cgroup.path().to_owned(),
            cgroup_id: cgroup.id(),
        };
        Self { cgroup, subject, container, paused }
    }

    /// Takes the name that its engine gives it.
    pub fn rename(&mut self, name: &str) {
        self.subject.name = visible_within(name, MOST_NAME);
    }

    /// Notes whether an engine has paused it.
    pub fn note_pause(&mut self, paused: &Paused) {
        self.paused = paused.includes(self.container.as_deref(), &self.cgroup, self.paused);
    }
}

/// Why a cgroup has a guard.
pub enum Role {
    /// The policy names it: its tasks are counted and judged.
    Watched,
    /// An operator acts on it: it is neither counted nor judged, and is dropped once nothing in it is held.
    /// `seen` is its container, if one that the policy names has been reported since.
    ByHand { seen: Option<Box<Container>> },
}

struct Entry {
    held: Held,
    role: Role,
}

/// Slots that are left to guards that enforce, and to operators.
pub const RESERVED: usize = 16;

/// All guards, by slot.
pub struct Guards {
    guards: BTreeMap<GuardId, Entry>,
    /// Free slots, the longest free first, so that a late record of an old guard does not reach a new one.
    free: VecDeque<GuardId>,
}

impl Guards {
    /// Creates an empty table with as many slots as the kernel's maps have.
    #[must_use]
    pub fn new() -> Self {
        let free = (0..mcp_guard_common::MAX_GUARDS).map(GuardId).collect();
        Self { guards: BTreeMap::new(), free }
    }

    /// Takes a slot for a new guard. Returns `None` if all are taken.
    pub fn take_slot(&mut self) -> Option<GuardId> {
        self.free.pop_front()
    }

    /// Whether no slot is left but the reserved ones.
    #[must_use]
    pub fn are_full(&self) -> bool {
        self.free.len() <= RESERVED
    }

    /// Frees a slot that no guard uses any more.
    pub fn give_slot_back(&mut self, guard: GuardId) {
        self.free.push_back(guard);
    }

    pub fn insert(&mut self, guard: GuardId, held: Held, role: Role) {
        self.guards.insert(guard, Entry { held, role });
    }

    /// Removes a guard. Its slot stays taken until [`Self::give_slot_back`].
    pub fn remove(&mut self, guard: GuardId) -> Option<(Held, Role)> {
        self.guards.remove(&guard).map(|Entry { held, role }| (held, role))
    }

    #[must_use]
    pub fn get(&self, guard: GuardId) -> Option<&Held> {
        self.guards.get(&guard).map(|guard| &guard.held)
    }

    pub fn get_mut(&mut self, guard: GuardId) -> Option<&mut Held> {
        self.guards.get_mut(&guard).map(|guard| &mut guard.held)
    }

    #[must_use]
    pub fn is_by_hand(&self, guard: GuardId) -> bool {
        self.guards.get(&guard).is_some_and(|guard| matches!(guard.role, Role::ByHand { .. }))
    }

    /// Remembers the container of a guard that is held by an operator. Returns the container if the guard is
    /// not held by one.
    pub fn remember(
        &mut self,
        guard: GuardId,
        container: Box<Container>,
    ) -> Option<Box<Container>> {
        match self.guards.get_mut(&guard).map(|guard| &mut guard.role) {
            Some(Role::ByHand { seen }) => {
                *seen = Some(container);
                None
            }
            Some(Role::Watched) | None => Some(container),
        }
    }

    /// Returns the guard of a cgroup.
    #[must_use]
    pub fn of_cgroup(&self, id: CgroupId) -> Option<GuardId> {
        self.find(|held| held.subject.cgroup_id == id)
    }

    /// Returns the first guard that satisfies the condition.
    pub fn find(&self, is_it: impl Fn(&Held) -> bool) -> Option<GuardId> {
        self.guards.iter().find(|(_, guard)| is_it(&guard.held)).map(|(id, _)| *id)
    }

    #[must_use]
    pub fn ids(&self) -> Vec<GuardId> {
        self.guards.keys().copied().collect()
    }

    /// Returns the guards whose tasks are counted.
    #[must_use]
    pub fn watched(&self) -> Vec<GuardId> {
        let watched = self.guards.iter().filter(|(_, guard)| matches!(guard.role, Role::Watched));
        watched.map(|(id, _)| *id).collect()
    }

    pub fn all_mut(&mut self) -> impl Iterator<Item = &mut Held> {
        self.guards.values_mut().map(|guard| &mut guard.held)
    }
}

impl Default for Guards {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_slots_are_reserved_and_a_free_one_is_taken_last() {
        let mut guards = Guards::new();
        let ordinary = mcp_guard_common::MAX_GUARDS as usize - RESERVED;
        let first = guards.take_slot().unwrap();
        for _ in 1..ordinary {
            assert!(!guards.are_full());
            guards.take_slot().unwrap();
        }
        assert!(guards.are_full());
        guards.give_slot_back(first);
        assert!(!guards.are_full());
        let rest: Vec<_> = std::iter::from_fn(|| guards.take_slot()).collect();
        assert_eq!((rest.len(), rest.last()), (RESERVED + 1, Some(&first)));
    }
}
