//! `cargo xtask demo`: builds the agent and lets it show itself. No Docker, no Node.

use std::process::Command;

use anyhow::Result;

use crate::{program, workspace};

/// Runs `mcp-guard demo` and passes its exit code on.
pub fn run() -> Result<u8> {
    workspace::build_agent()?;
    program::exit_code(Command::new(workspace::agent()).arg("demo"))
}
