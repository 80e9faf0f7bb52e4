//! Runs cargo for the kernel side.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::toolchain;
use crate::{program, workspace};

const TARGET: &str = "bpfel-unknown-none";

/// The compiler flags that affect the object. `target-cpu=v3` enables atomics that return the old
/// value; `--btf` keeps the types that the loader needs.
pub const FLAGS: [&str; 10] = [
    "-C",
    "linker=bpf-linker",
    "-C",
    "debuginfo=2",
    "-C",
    "link-arg=--btf",
    "-C",
    "target-cpu=v3",
    "--cfg",
    "bpf_target_arch=\"x86_64\"",
];

/// Builds the object and returns its path.
pub fn object(bpf_log: bool) -> Result<PathBuf> {
    let mut cargo = cargo("build")?;
    cargo.arg("--release");
    let target = folder().join("target");
    cargo.arg("--target-dir").arg(&target);
    if bpf_log {
        cargo.args(["--features", "bpf-log"]);
    }
    program::run(&mut cargo).context("cannot build the kernel side")?;
    let release = target.join(TARGET).join("release");
    // Cargo gives both variants the same name. With separate names they cannot be confused.
    let name = if bpf_log { "mcp-guard.bpf-log.o" } else { "mcp-guard.bpf.o" };
    let (linked, object) = (release.join("mcp-guard-ebpf"), release.join(name));
    if !linked.is_file() {
        bail!("the build succeeded, but {} does not exist", linked.display());
    }
    strip(&linked, &object)?;
    Ok(object)
}

/// Removes the DWARF sections. BTF with its line information stays.
///
/// DWARF is six times as large as the rest, and it names each crate by a hash of the repository's
/// folder. A path remap does not change that hash, so with DWARF no two clones would have the same
/// bytes.
fn strip(linked: &Path, object: &Path) -> Result<()> {
    let mut objcopy = Command::new(toolchain::objcopy()?);
    objcopy
        .env("LD_LIBRARY_PATH", toolchain::sysroot()?.join("lib"))
        .arg("--strip-debug")
        .args([linked, object]);
    program::quietly(&mut objcopy).context("cannot strip the kernel side")
}

/// Runs clippy on the kernel side, with warnings as errors.
pub fn clippy() -> Result<()> {
    let mut cargo = cargo("clippy")?;
    cargo.args(["--release", "--", "-D", "warnings"]);
    program::run(&mut cargo).context("clippy reported problems in the kernel side")
}

/// Checks the format of the kernel side, which is not a member of the workspace.
pub fn check_format() -> Result<()> {
    program::run(Command::new("cargo").current_dir(folder()).args(["fmt", "--check"]))
        .context("mcp-guard-ebpf is not formatted; run `cargo fmt` in it")
}

fn cargo(verb: &str) -> Result<Command> {
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(folder())
        .args(["+nightly", verb, "--locked", "--target", TARGET, "-Z", "build-std=core"])
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags()?.join("\u{1f}"))
        // A target folder set by the caller is for host programs.
        .env_remove("CARGO_TARGET_DIR");
    Ok(cargo)
}

/// Returns the flags, with a remap of every local path that would end up in the object.
fn rustflags() -> Result<Vec<String>> {
    let mut flags: Vec<String> = FLAGS.iter().map(|flag| (*flag).to_owned()).collect();
    let mut remaps = vec![
        (workspace::root(), "/mcp-guard"),
        (cargo_home()?, "/cargo"),
        (toolchain::sysroot()?, "/rust"),
    ];
    // The last match wins. These folders are named after the registry that this machine uses.
    remaps.extend(crate_folders()?.into_iter().map(|folder| (folder, "/crates")));
    for (from, to) in remaps {
        flags.push(format!("--remap-path-prefix={}={to}", from.display()));
    }
    Ok(flags)
}

/// Returns the folders into which cargo unpacks crates.
fn crate_folders() -> Result<Vec<PathBuf>> {
    program::run(
        Command::new("cargo").current_dir(folder()).args(["fetch", "--quiet", "--locked"]),
    )
    .context("cannot fetch the crates of the kernel side")?;
    let unpacked = cargo_home()?.join("registry/src");
    let entries = std::fs::read_dir(&unpacked)
        .with_context(|| format!("cannot list {}", unpacked.display()))?;
    Ok(entries.flatten().map(|entry| entry.path()).collect())
}

fn cargo_home() -> Result<PathBuf> {
    if let Some(home) = std::env::var_os("CARGO_HOME") {
        return Ok(PathBuf::from(home));
    }
    let home = std::env::var_os("HOME").context("neither CARGO_HOME nor HOME is set")?;
    Ok(Path::new(&home).join(".cargo"))
}

fn folder() -> PathBuf {
    workspace::root().join("mcp-guard-ebpf")
}
