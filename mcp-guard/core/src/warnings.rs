//! A bound on warnings that name a package. A container chooses its package names, and each new
//! name may cause a warning.

use std::{mem, time::Duration};

use crate::{Time, incident::Cause};

/// Maximum number of warnings per guard and hour. A leak of a few packages stays far below this.
const PER_HOUR: u64 = 60;
const HOUR: Duration = Duration::from_secs(3600);

/// The warnings that one guard may still issue. Actions do not count, because each one is recorded.
#[derive(Clone, Debug, Default)]
pub struct Budget {
    /// When the hour began.
    since: Time,
    issued: u64,
    /// Warnings whose episode ended before they could be issued.
    withheld: u64,
}

impl Budget {
    /// Returns the warning to issue, or `None` if it must wait. The first warning after some were
    /// withheld carries their count as the number `withheld`.
    pub fn spend(&mut self, now: Time, cause: &Cause) -> Option<Cause> {
        if cause.identity.is_none() {
            return Some(cause.clone());
        }
        if self.issued == 0 || now.since(self.since) >= HOUR {
            (self.since, self.issued) = (now, 0);
        }
        if self.issued == PER_HOUR {
            return None;
        }
        self.issued += 1;
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
