//! E: many more long-lived processes of any kind than a minute ago.

use std::collections::VecDeque;

use super::{Detection, count};
use crate::{Time, incident::Detector, policy::Emergency, registry::Registry};

/// The number of processes of at least the given age, sampled once a second.
#[derive(Clone, Debug, Default)]
pub struct Aged(VecDeque<(Time, usize)>);

impl Aged {
    /// Takes a sample and compares it with the one from `within` ago, or with the first one.
    pub fn look(
        &mut self,
        (now, woke): (Time, Option<Time>),
        registry: &Registry,
        limits: &Emergency,
    ) -> Option<Detection> {
        // Until then nothing counts as old, and a sample would only show that.
        if woke.is_some_and(|woke| now.since(woke) < limits.age) {
            return None;
        }
        let aged = registry.processes_aged(now, limits.age);
        self.0.push_back((now, aged));
        // Keep one sample that is at least `within` old as the base.
        while self.0.get(1).is_some_and(|(at, _)| now.since(*at) >= limits.within) {
            self.0.pop_front();
        }
        let base = self.0.front().map_or(aged, |(_, aged)| *aged);
        let growth = aged.saturating_sub(base);
        if growth < limits.warn {
            return None;
        }
        let numbers = [
            ("grown", count(growth)),
            ("aged", count(aged)),
            ("processes", count(registry.processes())),
            ("within_ms", u64::try_from(limits.within.as_millis()).unwrap_or(u64::MAX)),
        ];
        let act = (growth >= limits.act).then_some(limits.response);
        Some(Detection::new(Detector::Emergency, None, &numbers, act))
    }
}
