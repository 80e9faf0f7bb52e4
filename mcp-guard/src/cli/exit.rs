use std::process::ExitCode;

/// How a command ended, the same for all verbs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done, and nothing is wrong.
    Done,
    /// Answered, and something is wrong: refused, not ours, not contained.
    Wrong,
    /// Could not: target, rights, BPF, engine.
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

/// Why a command did not do its work: what failed, on what, why, and what to do next.
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
