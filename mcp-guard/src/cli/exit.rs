use std::process::ExitCode;

/// Result of a command, with the same meaning for all verbs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Success, and nothing is wrong.
    Done,
    /// Answered, but something is wrong: refused, not made by mcp-guard, not contained.
    Wrong,
    /// Not carried out, because of the target, permissions, BPF or the engine.
    CouldNot,
    /// Bad command line (`EX_USAGE` of sysexits.h).
    Usage,
    /// Bad policy or input file (`EX_DATAERR`).
    Data,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Wrong => 1,
            Exit::CouldNot => 2,
            Exit::Usage => 64,
            Exit::Data => 65,
        })
    }
}

/// Why a command failed. The message says what failed, on what, why, and what to do next.
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    pub message: String,
}

impl Failure {
    pub fn could_not(message: impl ToString) -> Self {
        Self { exit: Exit::CouldNot, message: message.to_string() }
    }

    pub fn usage(message: impl ToString) -> Self {
        Self { exit: Exit::Usage, message: message.to_string() }
    }

    pub fn data(message: impl ToString) -> Self {
        Self { exit: Exit::Data, message: message.to_string() }
    }
}
