//! T: growth in the number of tasks, including threads, of any name.
//!
//! It measures the floor, which is the least number of tasks within 10 s. Short-lived work does not
//! raise the floor, and processes that replace each other do not lower it.

use std::{collections::VecDeque, time::Duration};

use super::Detection;
use crate::{Time, incident::Detector, policy::Tasks as Limits};

/// The floor is the minimum over this time. One floor is kept for each.
const STEP: Duration = Duration::from_secs(10);
/// The longest time over which growth is measured.
const HOUR: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);
const TEN_MINUTES: Duration = Duration::from_secs(600);

/// The tasks of one guard over time.
#[derive(Clone, Debug, Default)]
pub struct Floors {
    /// The start of the current step, and the minimum since then.
    current: Option<(Time, u64)>,
    /// The floor and the end of each step of the last hour.
    past: VecDeque<(Time, u64)>,
}

impl Floors {
    /// Takes the current number of tasks. `host`: the maximum number of tasks on the host. Returns `None`
    /// within a step, and at its end the detection, if there is one.
    pub fn look(
        &mut self,
        now: Time,
        tasks: u64,
        host: Option<u64>,
        limits: &Limits,
    ) -> Option<Option<Detection>> {
        let (since, least) = *self.current.get_or_insert((now, tasks));
        let least = least.min(tasks);
        if now.since(since) < STEP {
            self.current = Some((since, least));
            return None;
        }
        self.current = Some((now, tasks));
        self.past.push_back((now, least));
        while self.past.front().is_some_and(|(at, _)| now.since(*at) > HOUR) {
            self.past.pop_front();
        }
        Some(self.detection(now, least, host, limits))
    }

    fn detection(
        &self,
        now: Time,
        floor: u64,
        host: Option<u64>,
        limits: &Limits,
    ) -> Option<Detection> {
        let grown = |window| floor.saturating_sub(self.least_within(now, window));
        let (minute, ten_minutes, hour) = (grown(MINUTE), grown(TEN_MINUTES), grown(HOUR));
        // As a percentage of the maximum on the host.
        let share = host.map_or(0, |host| floor.saturating_mul(100) / host.max(1));
        let measured = [
            (minute, limits.grown_1m),
            (ten_minutes, limits.grown_10m),
            (hour, limits.grown_1h),
            (share, limits.host_percent),
        ];
        let is_over = |times: u64| measured.iter().any(|(found, warn)| *found >= warn * times);
        if !is_over(1) {
            return None;
        }
        let numbers = [
            ("floor", floor),
            ("grown_1m", minute),
            ("grown_10m", ten_minutes),
            ("grown_1h", hour),
            ("host_percent", share),
        ];
        // It acts at twice the numbers that warn.
        let act = is_over(2).then_some(limits.response);
        Some(Detection::new(Detector::Tasks, None, &numbers, act))
    }

    /// Returns the latest floor.
    #[must_use]
    pub fn latest(&self) -> Option<u64> {
        self.past.back().map(|(_, floor)| *floor)
    }

    /// Returns by how much the floor has grown, within an hour at most, and in which time.
    #[must_use]
    pub fn grown(&self, now: Time) -> Option<(u64, Duration)> {
        let (at, oldest) = self.past.front()?;
        let grown = self.latest()?.checked_sub(*oldest).filter(|grown| *grown > 0)?;
        Some((grown, now.since(*at)))
    }

    /// Returns the lowest floor within `window`.
    fn least_within(&self, now: Time, window: Duration) -> u64 {
        let recent = self.past.iter().rev().take_while(|(at, _)| now.since(*at) <= window);
        recent.map(|(_, floor)| *floor).min().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Response;

    /// The seconds at which it first warns and first acts. `tasks`: by second.
    fn story(seconds: u64, host: u64, tasks: impl Fn(u64) -> u64) -> (Option<u64>, Option<u64>) {
        let (mut floors, limits) = (Floors::default(), Limits::default());
        let (mut warned, mut acted) = (None, None);
        for second in 0..seconds {
            let now = Time(second * 1_000_000_000);
            let found = floors.look(now, tasks(second), Some(host), &limits).flatten();
            let Some(found) = found else { continue };
            warned.get_or_insert(second);
            if found.act == Some(Response::Clamp) {
                acted.get_or_insert(second);
            }
        }
        (warned, acted)
    }

    #[test]
    fn tasks_that_stay_are_noticed_at_every_pace() {
        // 20,000 threads in half a minute.
        assert_eq!(story(120, 4_000_000, |s| 100 + 600 * s.min(33)), (Some(20), Some(20)));
        // Two thousand at once, each replaced every eight seconds.
        let churn = |s: u64| 100 + if s < 30 { 0 } else { 2000 - 100 * (s % 8) };
        assert_eq!(story(120, 4_000_000, churn), (Some(40), Some(40)));
        // 95 a minute.
        let (warned, acted) = story(7200, 4_000_000, |s| 50 + s * 95 / 60);
        assert_eq!((warned, acted), (Some(1280), Some(2540)));
        // Nothing grows, and it is a quarter of all that the host can have.
        assert_eq!(story(60, 32_768, |_| 9_000), (Some(10), None));
    }

    #[test]
    fn work_that_comes_and_goes_is_not() {
        let build = |s: u64| 40 + if s % 12 < 9 { 3000 } else { 0 };
        assert_eq!(story(7200, 4_000_000, build), (None, None));
        assert_eq!(story(7200, 4_000_000, |s| 100 + (s / 30).min(400)), (None, None));
    }

    #[test]
    fn an_hour_is_kept_and_no_more() {
        let mut floors = Floors::default();
        for second in 0..20_000 {
            let now = Time(second * 1_000_000_000);
            floors.look(now, 1, None, &Limits::default());
        }
        assert!(floors.past.len() <= 361, "{}", floors.past.len());
    }
}
