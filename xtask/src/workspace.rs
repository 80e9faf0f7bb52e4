//! Where the things of this repository are.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The top folder of the repository.
pub fn root() -> PathBuf {
    // As cargo says it now: clones that share a target folder share this program.
    let now = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let xtask = now.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    xtask.parent().map_or_else(|| xtask.clone(), Path::to_path_buf)
}

/// The folder cargo builds into.
pub fn target() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or("target".into(), PathBuf::from);
    root().join(target)
}

/// Whether nobody watches this run.
pub fn in_ci() -> bool {
    std::env::var_os("CI").is_some()
}

/// A cargo command in the top folder, with the toolchain of this run.
pub fn cargo() -> Command {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(root());
    cargo
}

/// The `mcp-guard` that `cargo build -p mcp-guard` makes.
pub fn agent() -> PathBuf {
    target().join("debug/mcp-guard")
}

/// Builds the agent and its command line (one program) in the dev profile.
pub fn build_agent() -> anyhow::Result<()> {
    crate::program::run(cargo().args(["build", "--quiet", "-p", "mcp-guard"]))
}
