//! One tier of tests, and its result in one line.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::counts::Counts;
use crate::say::seconds;

/// The result of a tier.
pub enum Outcome {
    Ran(Counts),
    CouldNotRun(String),
    /// An error occurred before its tests could be counted.
    Broke(String),
}

/// A tier that has ended.
pub struct Tier {
    name: String,
    outcome: Outcome,
    time: Duration,
}

impl Tier {
    /// Runs a tier to its end. An error becomes its outcome, so that the next tier still runs.
    pub fn run(name: impl Into<String>, work: impl FnOnce() -> Result<Outcome>) -> Self {
        let start = Instant::now();
        let outcome = work().unwrap_or_else(|error| Outcome::Broke(format!("{error:#}")));
        Self { name: name.into(), outcome, time: start.elapsed() }
    }

    /// Returns the tier's line of the report.
    pub fn line(&self) -> String {
        let what = match &self.outcome {
            Outcome::CouldNotRun(reason) => format!("could not run: {reason}"),
            Outcome::Broke(reason) => format!("FAILED: {reason}"),
            Outcome::Ran(counts) => ran(counts),
        };
        format!("tier {}: {what} ({})", self.name, seconds(self.time))
    }

    fn failures(&self) -> u64 {
        match &self.outcome {
            Outcome::CouldNotRun(_) => 0,
            Outcome::Broke(_) => 1,
            // A tier with a problem counts as a failure even if no single test failed: "0 failed"
            // must never be printed for a tier that failed.
            Outcome::Ran(counts) if counts.failed == 0 && problem(counts).is_some() => 1,
            Outcome::Ran(counts) => counts.failed,
        }
    }

    fn passed(&self) -> u64 {
        match &self.outcome {
            Outcome::Ran(counts) => counts.passed,
            Outcome::CouldNotRun(_) | Outcome::Broke(_) => 0,
        }
    }
}

/// Returns how many tests of all tiers passed and failed.
pub fn sum(tiers: &[Tier]) -> (u64, u64) {
    (tiers.iter().map(Tier::passed).sum(), tiers.iter().map(Tier::failures).sum())
}

/// Returns the exit code. In CI a tier that could not run is a failure: it would go unnoticed in a
/// green run.
pub fn exit_code(tiers: &[Tier], in_ci: bool) -> u8 {
    let could_not = tiers.iter().any(|tier| matches!(tier.outcome, Outcome::CouldNotRun(_)));
    match (sum(tiers).1, could_not) {
        (0, false) => 0,
        (0, true) if !in_ci => 2,
        _ => 1,
    }
}

fn ran(counts: &Counts) -> String {
    let verdict = problem(counts).map_or("ran".to_owned(), |why| format!("FAILED: {why}"));
    let mut line = format!("{verdict}, {} passed, {} failed", counts.passed, counts.failed);
    if counts.ignored > 0 {
        line.push_str(&format!(", {} ignored", counts.ignored));
    }
    line
}

fn problem(counts: &Counts) -> Option<String> {
    if counts.failed > 0 {
        return Some("tests failed".into());
    }
    if let Some(problem) = &counts.problem {
        return Some(problem.clone());
    }
    (counts.passed == 0).then(|| "ran no test".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tier(outcome: Outcome) -> Tier {
        Tier { name: "pure".into(), outcome, time: Duration::from_secs(2) }
    }

    fn counts(passed: u64, failed: u64) -> Outcome {
        Outcome::Ran(Counts { passed, failed, ..Counts::default() })
    }

    #[test]
    fn if_all_tiers_passed_the_exit_code_is_0() {
        let tiers = [tier(counts(3, 0)), tier(counts(2, 0))];
        assert_eq!((sum(&tiers), exit_code(&tiers, true)), ((5, 0), 0));
    }

    #[test]
    fn if_a_tier_could_not_run_the_exit_code_is_2_or_1_in_ci() {
        let tiers = [tier(counts(3, 0)), tier(Outcome::CouldNotRun("no engine".into()))];
        assert_eq!((exit_code(&tiers, false), exit_code(&tiers, true)), (2, 1));
        assert_eq!(tiers[1].line(), "tier pure: could not run: no engine (2.0 s)");
    }

    #[test]
    fn a_failed_test_takes_precedence_over_a_tier_that_could_not_run() {
        let tiers = [tier(counts(3, 1)), tier(Outcome::CouldNotRun(String::new()))];
        assert_eq!(exit_code(&tiers, false), 1);
    }

    #[test]
    fn a_tier_without_tests_fails() {
        let tiers = [tier(counts(0, 0))];
        assert_eq!((sum(&tiers), exit_code(&tiers, false)), ((0, 1), 1));
        assert_eq!(tiers[0].line(), "tier pure: FAILED: ran no test, 0 passed, 0 failed (2.0 s)");
    }
}
