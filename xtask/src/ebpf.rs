//! `cargo xtask ebpf`: builds the kernel side and replaces the committed object.
//!
//! The agent embeds the committed object, so that `cargo build` needs only stable Rust.

mod build;
mod sources;
pub mod toolchain;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

pub use build::{check_format, clippy};

use crate::say::say;
use crate::workspace;

/// Builds the object. Without `bpf_log`, also replaces the committed one.
pub fn rebuild(bpf_log: bool) -> Result<()> {
    toolchain::require()?;
    let built = build::object(bpf_log)?;
    if bpf_log {
        // Debug lines cost instructions in every program, so such an object is never committed.
        say(&format!("built with bpf-log, not committed: {}", built.display()));
        return Ok(());
    }
    if let Some(note) = toolchain::difference_from_pin() {
        say(&format!("note: {note}; `ebpf --check` on another machine may find different bytes"));
    }
    fs::create_dir_all(committed_folder())
        .with_context(|| format!("cannot create {}", committed_folder().display()))?;
    fs::copy(&built, committed_object())
        .with_context(|| format!("cannot copy {}", built.display()))?;
    write(&committed_hash(), &format!("{}\n", sources::hash(&workspace::root())?))?;
    say(&format!("wrote {} and the hash of its sources", committed_object().display()));
    Ok(())
}

/// Builds the object with debug lines, for their test.
pub fn debug_object() -> Result<PathBuf> {
    build::object(true)
}

/// Compares the committed object with the sources: byte by byte if the pinned toolchain is installed,
/// otherwise by the hash of the sources.
pub fn check() -> Result<()> {
    match toolchain::difference_from_pin() {
        None => check_bytes(),
        Some(note) => check_hash(&note),
    }
}

fn check_bytes() -> Result<()> {
    let built = build::object(false)?;
    if read(&built)? != read(&committed_object())? {
        bail!(
            "{} differs from a build of its sources; run `cargo xtask ebpf` and commit the result",
            committed_object().display()
        );
    }
    // A changed comment changes the hash but not the bytes. The hash must still be right, because
    // machines without the pinned toolchain compare only the hash.
    compare_hash()?;
    say("ebpf --check: a rebuild with the pinned toolchain has the same bytes");
    Ok(())
}

fn check_hash(note: &str) -> Result<()> {
    compare_hash()?;
    if !committed_object().is_file() {
        bail!("{} is missing; run `cargo xtask ebpf`", committed_object().display());
    }
    say(&format!("ebpf --check: {note}; compared only the hash of the sources, which matches"));
    Ok(())
}

fn compare_hash() -> Result<()> {
    let committed = String::from_utf8_lossy(&read(&committed_hash())?).trim().to_owned();
    let now = sources::hash(&workspace::root())?;
    if committed != now {
        bail!(
            "the sources of {} have changed (hash {now}, committed {committed}); \
             run `cargo xtask ebpf` and commit the result",
            committed_object().display()
        );
    }
    Ok(())
}

fn committed_folder() -> PathBuf {
    workspace::root().join("mcp-guard/bpf")
}

fn committed_object() -> PathBuf {
    committed_folder().join("mcp-guard.bpf.o")
}

fn committed_hash() -> PathBuf {
    committed_folder().join("mcp-guard.bpf.sources")
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file)
        .with_context(|| format!("cannot read {}; `cargo xtask ebpf` creates it", file.display()))
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}
