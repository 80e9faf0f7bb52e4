//! Facts that tests detect about this kernel, for the table of kernels in docs/kernels.md, and figures that
//! are only printed.

use std::{fmt::Display, fs::File, io::Write as _};

use anyhow::{Context as _, Result};

/// Adds `name=value` to the file that a guest's runner names. Does nothing outside a guest.
pub fn record(name: &str, value: impl Display) -> Result<()> {
    let Some(path) = std::env::var_os("MCP_GUARD_TEST_FACTS") else { return Ok(()) };
    let file = File::options().create(true).append(true).open(&path);
    let mut file = file.context("cannot open the file of facts")?;
    Ok(writeln!(file, "{name}={value}")?)
}

/// Like [`record`], for a figure that is another one in each run.
pub fn measure(name: &str, value: impl Display) -> Result<()> {
    record(&format!("measured {name}"), value)
}
