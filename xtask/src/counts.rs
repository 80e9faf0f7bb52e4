//! Counts of tests that passed and failed.

use anyhow::Result;

/// The tests of one or more runs.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
pub struct Counts {
    pub passed: u64,
    pub failed: u64,
    pub ignored: u64,
    /// A problem other than failed tests.
    pub problem: Option<String>,
}

impl Counts {
    /// Returns the counts of a run without a failure.
    pub fn passed(passed: u64) -> Self {
        Self { passed, ..Self::default() }
    }

    /// Adds the counts of another run.
    pub fn and(mut self, other: Self) -> Self {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.problem = self.problem.or(other.problem);
        self
    }

    /// Adds the error, if any, of the work that was done after the tests.
    pub fn and_then(mut self, after: Result<()>) -> Self {
        self.problem = self.problem.or(after.err().map(|error| format!("{error:#}")));
        self
    }
}
