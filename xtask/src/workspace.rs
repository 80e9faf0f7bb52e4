//! The paths of this repository.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Returns the top folder of the repository.
pub fn root() -> PathBuf {
    // Cargo's value at run time comes first: clones that share a target folder share this program.
    let now = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let xtask = now.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    xtask.parent().map_or_else(|| xtask.clone(), Path::to_path_buf)
}

/// Returns the folder into which cargo builds.
pub fn target() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or("target".into(), PathBuf::from);
    root().join(target)
}

/// Returns whether this is an unattended run.
pub fn in_ci() -> bool {
    std::env::var_os("CI").is_some()
}

/// Returns a cargo command in the top folder, with the toolchain of this run.
pub fn cargo() -> Command {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(root());
    cargo
}

/// Returns the path of the `mcp-guard` that `cargo build -p mcp-guard` builds.
pub fn agent() -> PathBuf {
    target().join("debug/mcp-guard")
}

/// Builds the agent and its command line (one program) in the dev profile.
pub fn build_agent() -> anyhow::Result<()> {
    crate::program::run(cargo().args(["build", "--quiet", "-p", "mcp-guard"]))
}
