//! `cargo xtask docs`: makes the parts of the documents again that are generated.

use anyhow::{Context, Result};

use crate::{program, workspace};

/// Each test that compares a document with the program writes it instead.
const TESTS: [(&str, &[&str]); 3] = [
    ("mcp-guard", &["--lib", "cli::reference"]),
    ("mcp-guard-core", &["--lib", "policy::tests::reference"]),
    ("mcp-guard-tests", &["--test", "docs"]),
];

/// Writes them.
pub fn write() -> Result<()> {
    workspace::build_agent()?;
    for (package, test) in TESTS {
        let mut cargo = workspace::cargo();
        cargo.args(["test", "--quiet", "-p", package]).args(test).env("MCP_GUARD_BLESS", "1");
        program::run(&mut cargo).with_context(|| format!("the documents that {package} makes"))?;
    }
    Ok(())
}
