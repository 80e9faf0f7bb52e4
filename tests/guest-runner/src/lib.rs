//! The protocol between the host and the runner in the guest: the host passes a plan as a file on a
//! disk, and the runner writes one JSON object per line to the second serial port.
//!
//! The second port carries nothing else. The first is the kernel's console, whose messages would
//! break these lines apart.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Where the guest finds the plan, the test programs and the package.
pub const PAYLOAD: &str = "/payload";
/// The file with the plan, in [`PAYLOAD`].
pub const PLAN: &str = "plan.json";
/// The second serial port.
pub const PORT: &str = "/dev/ttyS1";
/// The environment variable with the path of the file to which tests add `name=value` lines.
pub const FACTS: &str = "MCP_GUARD_TEST_FACTS";

/// The work of a guest.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Plan {
    /// Commands that prepare the guest, run in this order. If one fails, no test runs.
    pub before: Vec<Vec<String>>,
    pub tests: Vec<Test>,
    /// Seconds that one test, or one command, may take.
    pub limit: u64,
    /// Added to the environment of commands and tests.
    pub environment: BTreeMap<String, String>,
    /// Whether the guest keeps running after the plan, for interactive use.
    pub stay: bool,
}

/// One test function of one test program.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Test {
    pub program: String,
    pub name: String,
}

impl std::fmt::Display for Test {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}::{}", self.program, self.name)
    }
}

/// One line that the guest writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Line {
    /// The guest is up and has read its plan.
    Up,
    /// A test or a command begins.
    Begin {
        what: String,
    },
    /// The runner is alive. Sent every [`BEAT_SECONDS`], so that silence means that the guest hangs.
    Beat,
    /// A command that prepares the guest has succeeded.
    Ready {
        what: String,
        millis: u64,
    },
    Passed {
        what: String,
        millis: u64,
    },
    Failed {
        what: String,
        millis: u64,
        why: String,
        output: String,
    },
    /// A fact that a test detected about this kernel.
    Fact {
        name: String,
        value: String,
    },
    /// The last line: how many tests passed, and how many tests and commands failed.
    Over {
        passed: u64,
        failed: u64,
    },
}

/// Seconds between two beats.
pub const BEAT_SECONDS: u64 = 5;
