//! `cargo xtask demo`: builds the agent and runs its demo. Needs neither Docker nor Node.

mod svg;

use std::process::Command;

use anyhow::Result;

use crate::{program, say::say, workspace};

/// Runs `mcp-guard demo` and returns its exit code.
pub fn run() -> Result<u8> {
    workspace::build_agent()?;
    program::exit_code(Command::new(workspace::agent()).arg("demo"))
}

/// Draws what the demo prints.
pub fn svg() -> Result<u8> {
    let file = svg::draw()?;
    say(&format!("written to {}", file.display()));
    Ok(0)
}
