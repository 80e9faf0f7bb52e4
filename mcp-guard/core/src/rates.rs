//! Totals over time: a guard's activity in the last second, ten seconds and minute.

use std::{collections::VecDeque, time::Duration};

use mcp_guard_common::Totals;
use serde::{Deserialize, Serialize};

use crate::Time;

const SAMPLE_EVERY: Duration = Duration::from_secs(1);
const KEPT: usize = 62;

/// Events per second over three windows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PerSecond {
    #[serde(rename = "1s")]
    pub one: f64,
    #[serde(rename = "10s")]
    pub ten: f64,
    #[serde(rename = "60s")]
    pub sixty: f64,
}

impl PerSecond {
    /// Computes the three windows. `rate` gets the length of a window.
    pub fn of(rate: impl Fn(Duration) -> f64) -> Self {
        let over = |seconds| (rate(Duration::from_secs(seconds)) * 100.0).round() / 100.0;
        Self { one: over(1), ten: over(10), sixty: over(60) }
    }
}

/// Samples of a guard's totals, one per second. Totals only grow, so a lost record or a late sample
/// delays a rate but loses no fork.
#[derive(Clone, Debug, Default)]
pub struct Rates {
    samples: VecDeque<(Time, Totals)>,
    latest: Option<(Time, Totals)>,
}

impl Rates {
    /// Takes new totals. Returns true if a second has passed and a sample was kept.
    pub fn add(&mut self, now: Time, totals: Totals) -> bool {
        self.latest = Some((now, totals));
        if self.samples.back().is_some_and(|(at, _)| now.since(*at) < SAMPLE_EVERY) {
            return false;
        }
        self.samples.push_back((now, totals));
        if self.samples.len() > KEPT {
            self.samples.pop_front();
        }
        true
    }

    #[must_use]
    pub fn totals(&self) -> Totals {
        self.latest.map_or_else(Totals::default, |(_, totals)| totals)
    }

    /// Returns the growth within the last `window`, divided by its length. Samples are a second
    /// apart, so growth is counted from the first sample inside the window.
    #[must_use]
    pub fn per_second(&self, window: Duration, field: impl Fn(&Totals) -> u64) -> f64 {
        let Some((now, latest)) = self.latest else { return 0.0 };
        let from = now.before(window);
        let at = self.samples.partition_point(|(at, _)| *at < from);
        let Some((_, then)) = self.samples.get(at) else { return 0.0 };
        field(&latest).saturating_sub(field(then)) as f64 / window.as_secs_f64()
    }

    /// Returns for how many seconds in a row, up to the newest, `field` grew by at least `rate`
    /// each.
    #[must_use]
    pub fn seconds_at(&self, rate: u64, field: impl Fn(&Totals) -> u64) -> u64 {
        let mut run = Duration::ZERO;
        let newest_first = self.samples.iter().rev();
        for ((later, after), (earlier, before)) in newest_first.clone().zip(newest_first.skip(1)) {
            let step = later.since(*earlier);
            let grown = field(after).saturating_sub(field(before)) as f64;
            if grown < rate as f64 * step.as_secs_f64() {
                break;
            }
            run += step;
        }
        run.as_secs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(rates: &mut Rates, seconds: u64, forks: u64) -> bool {
        let totals = Totals { process_forks: forks, ..Totals::default() };
        rates.add(Time(seconds * 1_000_000_000), totals)
    }

    #[test]
    fn a_rate_is_growth_over_its_window() {
        let mut rates = Rates::default();
        for second in 0..=30 {
            at(&mut rates, second, second * 5);
        }
        at(&mut rates, 31, 250);
        let rate = |seconds| rates.per_second(Duration::from_secs(seconds), |t| t.process_forks);
        assert_eq!(rate(1), 100.0);
        assert_eq!(rate(10), 14.5);
        assert!((rate(60) - 250.0 / 60.0).abs() < 1e-9);
    }

    #[test]
    fn a_run_of_busy_seconds_ends_with_a_quiet_one() {
        let mut rates = Rates::default();
        let mut forks = 0;
        for second in 0..20 {
            forks += if second == 8 { 10 } else { 3000 };
            at(&mut rates, second, forks);
        }
        assert_eq!(rates.seconds_at(2000, |t| t.process_forks), 11);
        at(&mut rates, 20, forks);
        assert_eq!(rates.seconds_at(2000, |t| t.process_forks), 0);
    }

    #[test]
    fn samples_are_bounded_and_a_second_apart() {
        let mut rates = Rates::default();
        assert!(at(&mut rates, 0, 0));
        assert!(!rates.add(Time(1), Totals::default()));
        for second in 1..1000 {
            at(&mut rates, second, 0);
        }
        assert_eq!(rates.samples.len(), KEPT);
    }
}
