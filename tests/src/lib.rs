//! What the end-to-end tests share: scratch cgroups, the programs that fill them, the agent under
//! test.

pub mod agent;
pub mod cgroup;
pub mod dead_mount;
pub mod diagnose;
pub mod docker;
pub mod fact;
pub mod flags;
pub mod holds;
pub mod leak;
pub mod lines;
pub mod node;
pub mod sleeper;
pub mod systemd;
pub mod unit;
pub mod wait;

use anyhow::{Context, Result, bail};
use std::path::PathBuf;

/// Finds one of this crate's programs (`spawn-workload`, `launcher-lookalike`).
///
/// They lie beside the running executable (`cargo xtask`, or everything copied into one directory
/// of a VM) or one directory above it (a test runs from `target/PROFILE/deps`). A path fixed at
/// compile time would break in the second case, and `CARGO_BIN_EXE_*` exists in integration tests
/// only.
pub fn workload(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("the path of the running program")?;
    let places: Vec<PathBuf> = own.ancestors().skip(1).take(2).map(|d| d.join(name)).collect();
    match places.iter().find(|place| place.is_file()) {
        Some(found) => Ok(found.clone()),
        None => {
            bail!("{name} is built neither at {places:?}: cargo build -p mcp-guard-tests --bins")
        }
    }
}
