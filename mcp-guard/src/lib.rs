//! mcp-guard counts spawns of guarded cgroups in the kernel, decides in a pure core, and acts through one
//! executor. Its modules:
//!
//! ```text
//! cli       one file per verb                      agent     the agent's loop
//! executor  the only module that changes the host  audit     the log: a line before and after each act
//! host      kernel, cgroups, processes, clock      engine    container engines
//! control   the local socket (Varlink), the lock   render    all output for people
//! snapshot  the facts that a diagnosis reads       owner     writes through the owner of a limit
//! requests  limits that no owner keeps yet         guards    the table of guards
//! warden    the process that wakes suspended servers
//! policy_files  reads the policy from its files
//! ```
//!
//! `host`, `control`, `requests`, `policy_files` and `warden` use no other module of this crate; `audit` uses only the
//! clock of `host`, and `engine` only its cgroups.

pub mod agent;
pub mod audit;
pub mod cli;
pub mod control;
pub mod engine;
pub mod executor;
pub mod guards;
pub mod host;
pub mod owner;
pub mod policy_files;
pub mod render;
pub mod requests;
pub mod snapshot;
pub mod warden;
