//! A bound on warnings that name a package: each new name may be one, and a container chooses its names.

use std::{mem, time::Duration};

use crate::{Time, incident::Cause};

/// Of one guard in an hour. A leak of a few packages stays far below it.
const PER_HOUR: u64 = 60;
const HOUR: Duration = Duration::from_secs(3600);

/// What one guard may still say. Actions have no part in it: each of them is recorded.
#[derive(Clone, Debug, Default)]
pub struct Budget {
    /// When the hour began.
    since: Time,
    said: u64,
    /// Of what ended before it could be told.
    withheld: u64,
}

impl Budget {
    /// The warning as it is to be told; None where that has to wait. The first one after some were
    /// withheld says how many, by the number `withheld`.
    pub fn spend(&mut self, now: Time, cause: &Cause) -> Option<Cause> {
        if cause.identity.is_none() {
            return Some(cause.clone());
        }
        if self.said == 0 || now.since(self.since) >= HOUR {
            (self.since, self.said) = (now, 0);
        }
        if self.said == PER_HOUR {
            return None;
        }
        self.said += 1;
        let mut cause = cause.clone();
        let withheld = mem::take(&mut self.withheld);
        if withheld > 0 {
            cause.numbers.insert("withheld".to_owned(), withheld);
        }
        Some(cause)
    }

    pub fn withhold(&mut self) {
        self.withheld = self.withheld.saturating_add(1);
    }
}
