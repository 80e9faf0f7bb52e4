//! The one way to call cargo for the kernel side.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::toolchain;
use crate::{program, workspace};

const TARGET: &str = "bpfel-unknown-none";

/// The compiler flags that decide the bytes. `target-cpu=v3` gives atomics that return the old
/// value; `--btf` keeps the types the loader needs.
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

/// Builds the object and returns where it is.
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
    // Cargo links both flavours to one name; under their own, neither is ever taken for the other.
    let name = if bpf_log { "mcp-guard.bpf-log.o" } else { "mcp-guard.bpf.o" };
    let (linked, object) = (release.join("mcp-guard-ebpf"), release.join(name));
    if !linked.is_file() {
        bail!("the build ended well, but there is no {}", linked.display());
    }
    strip(&linked, &object)?;
    Ok(object)
}

/// Removes the DWARF sections; BTF with its line information stays.
///
/// DWARF is six times as large as the rest, and it names each crate by a hash of the folder the
/// repository lies in: no remap reaches that, so without this no two clones had the same bytes.
fn strip(linked: &Path, object: &Path) -> Result<()> {
    let mut objcopy = Command::new(toolchain::objcopy()?);
    objcopy
        .env("LD_LIBRARY_PATH", toolchain::sysroot()?.join("lib"))
        .arg("--strip-debug")
        .args([linked, object]);
    program::quietly(&mut objcopy).context("cannot strip the kernel side")
}

/// Runs clippy over the kernel side, warnings being errors.
pub fn clippy() -> Result<()> {
    let mut cargo = cargo("clippy")?;
    cargo.args(["--release", "--", "-D", "warnings"]);
    program::run(&mut cargo).context("clippy found something in the kernel side")
}

/// Checks the format of the kernel side (it is not a member of the workspace).
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
        // The caller's choice of target folder is for host programs.
        .env_remove("CARGO_TARGET_DIR");
    Ok(cargo)
}

/// The flags, and a remap of every path of this machine that would end up in the object.
fn rustflags() -> Result<Vec<String>> {
    let mut flags: Vec<String> = FLAGS.iter().map(|flag| (*flag).to_owned()).collect();
    let mut remaps = vec![
        (workspace::root(), "/mcp-guard"),
        (cargo_home()?, "/cargo"),
        (toolchain::sysroot()?, "/rust"),
    ];
    // The last match wins. These folders are named after the registry this machine uses.
    remaps.extend(crate_folders()?.into_iter().map(|folder| (folder, "/crates")));
    for (from, to) in remaps {
        flags.push(format!("--remap-path-prefix={}={to}", from.display()));
    }
    Ok(flags)
}

/// The folders cargo unpacks crates into.
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
