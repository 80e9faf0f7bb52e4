//! R: the raw rate of process forks. A harmless shell loop forks 1,000 times a second, so the
//! detector only warns.

use super::Detection;
use crate::{incident::Detector, policy::Raw, rates::Rates};

pub fn look(rates: &Rates, limits: &Raw) -> Option<Detection> {
    let seconds = rates.seconds_at(limits.warn, |totals| totals.process_forks);
    let sustained = limits.sustained.as_secs().max(1);
    let numbers = [("forks_per_second", limits.warn), ("seconds", seconds)];
    (seconds >= sustained).then(|| Detection::new(Detector::Raw, None, &numbers, None))
}
