//! The pure core of mcp-guard: it takes inputs and the time, and returns effects as data.
//!
//! This crate reads no clock, file or socket, and uses no randomness. The same inputs always give
//! the same effects, so replaying a recorded trace is a true back-test.
//!
//! ```text
//! server     argv -> identity of a server          registry   live processes and their servers
//! policy     the typed, validated policy           target     parses TARGET arguments
//! detect     one file per detector                 rates      totals over time
//! guard      one guarded cgroup: state, decisions  machine    all guards: step(now, input)
//! effect     inputs and effects                    refusal    cgroups that are never acted on
//! container  cgroup path -> container              replay     runs a trace through the core
//! status     guard status for operators
//! audit      audit log lines                       limit      a number of tasks, or "max"
//! diagnose   why a limit is not in force           repair     where a limit must be written
//! limits     which limit applies, and when         incident   causes, outcomes and holds
//! id         typed ids                             warnings   bounds the warnings of a guard
//! escape     makes untrusted bytes printable    evidence   connected, quiescent: one server
//! server_order  which servers are suspended, woken or ended
//! trace      the format of recorded traces, and their recorder
//! ```
#![forbid(unsafe_code)]

pub mod audit;
pub mod container;
pub mod detect;
pub mod diagnose;
pub mod effect;
pub mod escape;
pub mod evidence;
pub mod guard;
pub mod id;
pub mod incident;
pub mod limit;
pub mod limits;
mod machine;
pub mod policy;
pub mod rates;
pub mod redact;
pub mod refusal;
pub mod registry;
pub mod repair;
pub mod replay;
pub mod server;
pub mod server_order;
pub mod status;
pub mod target;
mod time;
pub mod trace;
mod warnings;

pub use self::{machine::Core, time::Time};
