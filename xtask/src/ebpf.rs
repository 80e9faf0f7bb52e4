//! `cargo xtask ebpf`: builds the kernel side and replaces the committed object.
//!
//! The agent embeds the committed object, so that `cargo build` needs only stable Rust.

mod build;
mod committed;
mod sources;
pub mod toolchain;

use std::path::PathBuf;

use anyhow::{Result, bail};

pub use build::{check_format, clippy};
use committed::Committed;

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
    let (root, committed) = (workspace::root(), committed());
    committed.replace(&built, &sources::hash(&root)?)?;
    say(&format!("wrote {} and its hashes", committed.object().display()));
    Ok(())
}

/// Builds the object with debug lines, for their test.
pub fn debug_object() -> Result<PathBuf> {
    build::object(true)
}

/// Compares the committed object with its sources: by its hashes, and byte by byte if the pinned toolchain
/// is installed. In CI it must be.
pub fn check() -> Result<()> {
    committed().has_hashes(&sources::hash(&workspace::root())?)?;
    let Some(note) = not_comparable(toolchain::difference_from_pin(), workspace::in_ci())? else {
        committed().has_bytes_of(&build::object(false)?)?;
        say(
            "ebpf --check: the hashes match, and a rebuild with the pinned toolchain has the same bytes",
        );
        return Ok(());
    };
    say(&format!("ebpf --check: {note}; compared only the hashes, which match"));
    Ok(())
}

/// Returns why bytes cannot be compared, or None if they can. In CI that is an error: hashes alone do not
/// show that the object was built from these sources.
fn not_comparable(difference: Option<String>, in_ci: bool) -> Result<Option<String>> {
    match difference {
        Some(note) if in_ci => {
            bail!("cannot compare the object with a build of its sources: {note}")
        }
        difference => Ok(difference),
    }
}

fn committed() -> Committed {
    Committed::of(&workspace::root())
}

#[cfg(test)]
mod tests {
    use super::not_comparable;

    #[test]
    fn in_ci_bytes_must_be_compared() {
        let note = || Some("no linker".to_owned());
        assert!(not_comparable(note(), true).is_err());
        assert_eq!(not_comparable(note(), false).unwrap(), note());
        assert_eq!(not_comparable(None, true).unwrap(), None);
    }
}
