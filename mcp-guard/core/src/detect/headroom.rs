//! H: the tasks of a guard come close to its limit.
//!
//! It catches whatever fills a limit, at any pace, before a fork fails. It must not be raised by a peak that passes:
//! it judges the floor, as T does. It only warns, because the limit itself stops what grows, and a guard that has
//! always been close to its limit does its work there. It warns once, and again only after the guard was well
//! below the limit.
//!
//! The number: at 80 percent of the limits that containers have, between one and a few dozen servers still fit.

use super::{Detection, forecast, tasks::Floors};
use crate::{Time, incident::Detector, policy::Headroom};

/// It is over when the floor is this many percent of the limit below the threshold.
const WELL_BELOW: u64 = 10;

/// Whether little is left.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shortage {
    is_short: bool,
}

impl Shortage {
    /// Takes a new floor. `limit`: the one in force.
    pub fn look(
        &mut self,
        now: Time,
        floors: &Floors,
        limit: u64,
        limits: &Headroom,
    ) -> Option<Detection> {
        let floor = floors.latest()?;
        let percent = floor.saturating_mul(100) / limit.max(1);
        let threshold = if self.is_short {
            limits.warn_percent.saturating_sub(WELL_BELOW)
        } else {
            limits.warn_percent
        };
        self.is_short = percent >= threshold;
        if !self.is_short {
            return None;
        }
        let numbers = [("floor", floor), ("limit", limit), ("percent", percent)];
        let mut found = Detection::new(Detector::Headroom, None, &numbers, None);
        found.cause.forecast = floors.grown(now).and_then(|(grown, over)| {
            let pace = grown as f64 / over.as_secs_f64().max(1.0);
            forecast::reached(limit, limit.saturating_sub(floor), pace)
        });
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the seconds at which warnings begin, and the forecast of the first one.
    fn story(limit: u64, seconds: u64, tasks: impl Fn(u64) -> u64) -> (Vec<u64>, Option<String>) {
        let (mut floors, mut shortage) = (Floors::default(), Shortage::default());
        let (mut begins, mut forecast, mut lasts) = (Vec::new(), None, false);
        for second in 0..seconds {
            let now = Time(second * 1_000_000_000);
            if floors.look(now, tasks(second), None, &Default::default()).is_none() {
                continue;
            }
            let found = shortage.look(now, &floors, limit, &Headroom::default());
            if let Some(found) = found.as_ref().filter(|_| !lasts) {
                begins.push(second);
                forecast = forecast.or_else(|| found.cause.forecast.clone());
                assert_eq!(found.act, None);
            }
            lasts = found.is_some();
        }
        (begins, forecast)
    }

    #[test]
    fn a_limit_that_fills_is_told_with_the_time_that_is_left() {
        // Two tasks a minute: 320 of 400 after 110 minutes.
        let (begins, forecast) = story(400, 9_000, |s| 100 + s / 30);
        assert_eq!(begins, [6610]);
        assert_eq!(forecast.as_deref(), Some("at this pace the limit of 400 is reached in 40 min"));
        // Nothing grows: there is nothing to forecast.
        assert_eq!(story(400, 600, |_| 350), (vec![10], None));
    }

    #[test]
    fn a_peak_or_a_wave_is_told_once_or_not_at_all() {
        let peaks = |s: u64| if s % 60 < 50 { 390 } else { 100 };
        assert_eq!(story(400, 3600, |s| if s % 10 < 9 { 390 } else { 100 }).0, [0; 0]);
        assert_eq!(
            story(400, 3600, |s| 310 + 20 * (s / 30 % 2)).0.len(),
            1,
            "around the threshold"
        );
        assert!(story(400, 600, peaks).0.len() > 1, "each time that it was well below");
        assert_eq!(story(4_000_000, 3600, |s| 100 + s).0, [0; 0]);
    }
}
