//! How many tests passed and failed.

use anyhow::Result;

/// The tests of one or more runs.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
pub struct Counts {
    pub passed: u64,
    pub failed: u64,
    pub ignored: u64,
    /// What went wrong beside failed tests.
    pub problem: Option<String>,
}

impl Counts {
    /// Nothing went wrong.
    pub fn passed(passed: u64) -> Self {
        Self { passed, ..Self::default() }
    }

    /// Both runs together.
    pub fn and(mut self, other: Self) -> Self {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.problem = self.problem.or(other.problem);
        self
    }

    /// With what was done after the tests, where that went wrong.
    pub fn and_then(mut self, after: Result<()>) -> Self {
        self.problem = self.problem.or(after.err().map(|error| format!("{error:#}")));
        self
    }
}
