//! A list sorted by start time.

use std::collections::VecDeque;

use crate::Time;

/// Start times, oldest first. Counting those of an age, and finding the `n`th oldest, takes a binary
/// search at most; a removal moves the shorter side of the queue.
#[derive(Clone, Debug)]
pub struct Ages<T>(VecDeque<(Time, T)>);

impl<T> Default for Ages<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T: Copy + Ord> Ages<T> {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn insert(&mut self, began: Time, id: T) {
        let new = (began, id);
        // Nearly always the end; a rescan may find older starts.
        if self.0.back().is_none_or(|last| *last < new) {
            return self.0.push_back(new);
        }
        if let Err(at) = self.0.binary_search(&new) {
            self.0.insert(at, new);
        }
    }

    pub fn remove(&mut self, began: Time, id: T) {
        if let Ok(at) = self.0.binary_search(&(began, id)) {
            self.0.remove(at);
            // A name that is remembered must not keep the room of its peak.
            if self.0.len() * 4 < self.0.capacity() {
                self.0.shrink_to(self.0.len() * 2);
            }
        }
    }

    /// Visits all of them. Their order must stay.
    pub fn for_each(&mut self, mut change: impl FnMut(Time, &mut T)) {
        self.0.iter_mut().for_each(|(began, one)| change(*began, one));
    }

    /// Counts those that began at `moment` or before.
    pub fn until(&self, moment: Time) -> usize {
        self.first(|(began, _)| *began <= moment)
    }

    /// Counts those that began before `moment`.
    pub fn before(&self, moment: Time) -> usize {
        self.first(|(began, _)| *began < moment)
    }

    pub fn nth(&self, at: usize) -> Option<(Time, T)> {
        self.0.get(at).copied()
    }

    /// Returns when the last of those began that come before the first for which `is` is false.
    pub fn last_of_first(&self, is: impl Fn(T) -> bool) -> Option<Time> {
        self.nth_oldest(self.first(|(_, id)| is(*id)))
    }

    /// Counts those at the beginning for which `is` is true.
    fn first(&self, is: impl Fn(&(Time, T)) -> bool) -> usize {
        self.0.partition_point(|one| {
            #[cfg(test)]
            STEPS.with(|steps| steps.set(steps.get() + 1));
            is(one)
        })
    }

    /// Returns when the `n`th oldest began. `n` counts from 1.
    pub fn nth_oldest(&self, n: usize) -> Option<Time> {
        self.0.get(n.checked_sub(1)?).map(|(began, _)| *began)
    }
}

#[cfg(test)]
thread_local! {
    /// Entries that searches of this thread have looked at.
    pub static STEPS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_counts_as_a_sorted_list_does(
            steps in proptest::collection::vec((any::<bool>(), 0_u64..50, 0_u32..9), 0..200),
            moment in 0_u64..50,
        ) {
            let (mut ages, mut list) = (Ages::default(), Vec::new());
            for (begins, at, id) in steps {
                if begins {
                    ages.insert(Time(at), id);
                    list.push((Time(at), id));
                    list.sort_unstable();
                    list.dedup();
                } else {
                    ages.remove(Time(at), id);
                    list.retain(|one| *one != (Time(at), id));
                }
            }
            prop_assert_eq!(ages.len(), list.len());
            let until = list.iter().filter(|(began, _)| *began <= Time(moment)).count();
            prop_assert_eq!(ages.until(Time(moment)), until);
            let before = list.iter().filter(|(began, _)| *began < Time(moment)).count();
            prop_assert_eq!(ages.before(Time(moment)), before);
            prop_assert_eq!(ages.nth(before), list.get(before).copied());
            for n in 0..list.len() + 2 {
                let expected = n.checked_sub(1).and_then(|at| list.get(at)).map(|(at, _)| *at);
                prop_assert_eq!(ages.nth_oldest(n), expected);
            }
        }
    }
}
