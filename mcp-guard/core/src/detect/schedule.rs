//! When the detectors of each identity must run again because time has passed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::Time;

/// One deadline per identity, at most.
#[derive(Clone, Debug, Default)]
pub struct Schedule {
    deadlines: BTreeSet<(Time, String)>,
    of: BTreeMap<String, Time>,
}

impl Schedule {
    /// Replaces the deadline of an identity.
    pub fn set(&mut self, name: &str, deadline: Option<Time>) {
        let former = self.of.get(name).copied();
        if former == deadline {
            return;
        }
        if let Some(former) = former {
            self.deadlines.remove(&(former, name.to_owned()));
            self.of.remove(name);
        }
        if let Some(deadline) = deadline {
            self.deadlines.insert((deadline, name.to_owned()));
            self.of.insert(name.to_owned(), deadline);
        }
    }

    /// Removes and returns the identities whose deadline has passed.
    pub fn due(&mut self, now: Time) -> Vec<Arc<str>> {
        let mut due = Vec::new();
        while self.deadlines.first().is_some_and(|(deadline, _)| *deadline <= now)
            && let Some((_, name)) = self.deadlines.pop_first()
        {
            self.of.remove(&name);
            due.push(name.into());
        }
        due
    }

    #[must_use]
    pub fn next(&self) -> Option<Time> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_has_one_deadline_and_is_due_once() {
        let mut schedule = Schedule::default();
        schedule.set("a", Some(Time(5)));
        schedule.set("b", Some(Time(7)));
        schedule.set("a", Some(Time(9)));
        assert_eq!(schedule.next(), Some(Time(7)));
        assert_eq!(schedule.due(Time(8)), ["b".into()]);
        schedule.set("c", Some(Time(8)));
        schedule.set("c", None);
        assert_eq!(schedule.due(Time(20)), ["a".into()]);
        assert_eq!((schedule.next(), schedule.due(Time(99)).len()), (None, 0));
    }
}
