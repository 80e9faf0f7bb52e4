//! Code that the end-to-end tests share: scratch cgroups, the programs that fill them, and the
//! agent under test.

pub mod agent;
pub mod cgroup;
pub mod cpu_quota;
pub mod dead_mount;
pub mod diagnose;
pub mod docker;
pub mod echo;
pub mod fact;
pub mod fake_engine;
pub mod flags;
pub mod herd;
pub mod holds;
pub mod leak;
pub mod lines;
pub mod log_disk;
pub mod log_server;
pub mod lookalike;
pub mod node;
pub mod recording;
pub mod sleeper;
pub mod systemd;
pub mod unit;
pub mod wait;

use anyhow::{Context, Result, bail};
use std::path::PathBuf;

/// Finds one of this crate's programs (`spawn-workload`, `launcher-lookalike`).
///
/// They are in the directory of the running executable (`cargo xtask`, or a guest with everything in
/// one directory), or one directory above it (a test runs from `target/PROFILE/deps`). A path fixed
/// at compile time would not exist in a guest, and `CARGO_BIN_EXE_*` exists in integration tests
/// only.
pub fn workload(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find this program's path")?;
    let places: Vec<PathBuf> = own.ancestors().skip(1).take(2).map(|d| d.join(name)).collect();
    match places.iter().find(|place| place.is_file()) {
        Some(found) => Ok(found.clone()),
        None => {
            bail!("{name} is in none of {places:?}; run `cargo build -p mcp-guard-tests --bins`")
        }
    }
}
