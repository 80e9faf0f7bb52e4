//! The pure core of mcp-guard: inputs and the time in, effects as data out.
//!
//! Nothing in this crate reads a clock, a file or a socket, and nothing is random: the same inputs
//! give the same effects, which is what makes `replay` of a recorded trace a true back-test.
//!
//! ```text
//! launcher   argv -> package identity          policy    the typed, validated policy
//! registry   live processes and launcher trees detect    one file per detector
//! rates      totals over time                  guard     one guarded cgroup: state and decisions
//! machine    all guards: step(now, input)      effect    what comes in and what comes out
//! refusal    what may never be acted upon      container cgroup path -> container
//! replay     a recorded trace through the core status    what the operator is shown
//! target     what an operator may name         audit     the lines of the audit log
//! limit      a number of tasks, or none        diagnose  why a limit does not hold
//! repair     where a limit must be written     limits    which limit a guard has, and who wins
//! incident   why and how something is done     id        numbers that name things
//! warnings   how many a guard may tell
//! ```
#![forbid(unsafe_code)]

pub mod audit;
pub mod container;
pub mod detect;
pub mod diagnose;
pub mod effect;
pub mod escape;
pub mod guard;
pub mod id;
pub mod incident;
pub mod launcher;
pub mod limit;
pub mod limits;
mod machine;
pub mod policy;
pub mod rates;
pub mod refusal;
pub mod registry;
pub mod repair;
pub mod replay;
pub mod status;
pub mod target;
mod time;
mod warnings;

pub use self::{machine::Core, time::Time};
