//! When a growth reaches a limit, in words.

use std::time::Duration;

use crate::registry::Identity;

/// A forecast beyond this time says nothing.
const FARTHEST_S: f64 = 30.0 * 86_400.0;

/// The tasks and the limit of a guard, and how many of the tasks are processes.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    pub limit: u64,
    pub tasks: u64,
    pub processes: usize,
}

impl Room {
    /// Returns when the limit is reached at the pace of a growth: `grown` servers of the identity within `over`.
    #[must_use]
    pub fn forecast(&self, identity: &Identity, grown: usize, over: Duration) -> Option<String> {
        self.reached(identity.live(), identity.processes, grown, over)
    }

    /// `servers` have `processes`. Threads are shared out by processes.
    fn reached(
        &self,
        servers: usize,
        processes: usize,
        grown: usize,
        over: Duration,
    ) -> Option<String> {
        let left = self.limit.checked_sub(self.tasks)?;
        let per_process = self.tasks as f64 / self.processes.max(1) as f64;
        let per_server = per_process * processes as f64 / servers.max(1) as f64;
        let pace = per_server * grown as f64 / over.as_secs_f64().max(1.0);
        reached(self.limit, left, pace)
    }
}

/// Returns when the limit is reached at a pace in tasks a second, if `left` tasks fit until then.
#[must_use]
pub fn reached(limit: u64, left: u64, pace: f64) -> Option<String> {
    let seconds = left as f64 / pace;
    let is_near = pace > 0.0 && seconds < FARTHEST_S;
    is_near.then(|| {
        let time = in_words(Duration::from_secs_f64(seconds));
        format!("at this pace the limit of {limit} is reached in {time}")
    })
}

/// Returns the two largest units: `3 h 10 min`. Less than a minute is no number.
fn in_words(time: Duration) -> String {
    let minutes = time.as_secs() / 60;
    match (minutes / 1440, minutes / 60 % 24, minutes % 60) {
        (0, 0, 0) => "less than a minute".to_owned(),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_told_until_the_limit_is_reached() {
        // One server of two processes and 20 tasks a minute.
        let pace = |limit| {
            let room = Room { limit, tasks: 200, processes: 20 };
            room.reached(10, 20, 10, Duration::from_secs(600))
        };
        let told = |time: &str, limit: u64| {
            Some(format!("at this pace the limit of {limit} is reached in {time}"))
        };
        assert_eq!(pace(201), told("less than a minute", 201));
        assert_eq!(pace(400), told("10 min", 400));
        assert_eq!(pace(4000), told("3 h 10 min", 4000));
        assert_eq!(pace(60_000), told("2 d 1 h", 60_000));
        assert_eq!(pace(4_000_000), None);
        assert_eq!(pace(100), None, "it is reached");
    }

    #[test]
    fn no_numbers_break_it() {
        let room = Room { limit: u64::MAX, tasks: 0, processes: 0 };
        assert_eq!(room.reached(0, 0, 0, Duration::ZERO), None);
    }
}
