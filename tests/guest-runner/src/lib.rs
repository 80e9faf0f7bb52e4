//! What the host and the runner in the guest tell each other: a plan as a file on a disk, and one
//! JSON object a line on the second serial port.
//!
//! The second port carries nothing else. The first is the kernel's console, whose messages would tear
//! these lines apart.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Where the guest finds the plan, the test programs and the package.
pub const PAYLOAD: &str = "/payload";
/// The plan inside of [`PAYLOAD`].
pub const PLAN: &str = "plan.json";
/// The second serial port.
pub const PORT: &str = "/dev/ttyS1";
/// Where tests write `name=value` lines; the path is in their environment under this name.
pub const FACTS: &str = "MCP_GUARD_TEST_FACTS";

/// What a guest shall do.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Plan {
    /// Commands that make the guest ready, one after the other; a failure ends the run.
    pub before: Vec<Vec<String>>,
    pub tests: Vec<Test>,
    /// Seconds that one test, or one command, may take.
    pub limit: u64,
    /// Added to the environment of commands and tests.
    pub environment: BTreeMap<String, String>,
    /// Leave the guest running, for a person.
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

/// One line of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Line {
    /// The guest is up and has read its plan.
    Up,
    /// Now this begins: a test, or a command.
    Begin {
        what: String,
    },
    /// It is still at it. Comes every [`BEAT_SECONDS`], so that silence means that the guest hangs.
    Beat,
    /// A command that makes the guest ready has done so.
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
    /// Something a test found out about this kernel.
    Fact {
        name: String,
        value: String,
    },
    /// The last line: tests that passed, and everything that failed.
    Over {
        passed: u64,
        failed: u64,
    },
}

/// Seconds between two beats.
pub const BEAT_SECONDS: u64 = 5;
