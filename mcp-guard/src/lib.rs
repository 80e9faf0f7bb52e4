//! mcp-guard: counts spawns of guarded cgroups in the kernel, decides in a pure core, acts through
//! one executor. The map:
//!
//! ```text
//! cli       one file per verb                      agent     the one loop
//! executor  the one place that changes the host    audit     one line before, one after
//! host      kernel, cgroups, processes, clock      engine    Docker
//! control   the local socket (Varlink), the lock   render    every human view
//! snapshot  everything a diagnosis reads          owner     who is asked to keep a limit
//! requests  limits that no owner keeps yet        guards    the table of guards
//! ```
//!
//! `host`, `engine`, `control` and `requests` use no other module of this crate; `audit` uses the clock of
//! `host` alone.

pub mod agent;
pub mod audit;
pub mod cli;
pub mod control;
pub mod engine;
pub mod executor;
pub mod guards;
pub mod host;
pub mod owner;
pub mod render;
pub mod requests;
pub mod snapshot;
