//! `cargo xtask demo`: builds the agent and runs its demo. Needs neither Docker nor Node.

use std::process::Command;

use anyhow::Result;

use crate::{program, workspace};

/// Runs `mcp-guard demo` and returns its exit code.
pub fn run() -> Result<u8> {
    workspace::build_agent()?;
    program::exit_code(Command::new(workspace::agent()).arg("demo"))
}
