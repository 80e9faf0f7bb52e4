//! The tools beyond stable Rust that a build of the kernel side needs, and their pinned versions.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{program, workspace};

/// The compiler with which the committed object was built. Another one may produce different bytes.
pub const PINNED_RUSTC: &str = "rustc 1.97.0-nightly (e50aa6fba 2026-05-19)";
/// The start of the version line of the linker with which the committed object was built.
pub const PINNED_LINKER: &str = "bpf-linker 0.13.";

/// Returns an error that names every missing part with the command that installs it.
pub fn require() -> Result<()> {
    let missing = missing();
    if !missing.is_empty() {
        bail!("cannot build the kernel side: {}", missing.join("; "));
    }
    Ok(())
}

/// Returns an error that names the command which installs nightly, unless it is there.
pub fn require_nightly() -> Result<()> {
    sysroot()
        .map(drop)
        .context("no nightly toolchain (`rustup toolchain install nightly --component rust-src`)")
}

/// Returns why steps that need the toolchain are left out here, or None if they can run.
///
/// In CI a missing toolchain is an error: a skipped step would go unnoticed in a green run.
pub fn reason_to_skip() -> Result<Option<String>> {
    judge(require(), workspace::in_ci())
}

fn judge(required: Result<()>, in_ci: bool) -> Result<Option<String>> {
    match required {
        Ok(()) => Ok(None),
        Err(missing) if in_ci => Err(missing),
        Err(missing) => Ok(Some(format!("{missing:#}"))),
    }
}

/// Returns why a build here cannot be compared byte by byte with the committed object, or None if it
/// can.
pub fn difference_from_pin() -> Option<String> {
    let missing = missing();
    if !missing.is_empty() {
        return Some(missing.join("; "));
    }
    let rustc = rustc_version()?;
    if rustc != PINNED_RUSTC {
        return Some(format!("nightly is `{rustc}`, but `{PINNED_RUSTC}` is pinned"));
    }
    let linker = linker_version()?;
    if !linker.starts_with(PINNED_LINKER) {
        return Some(format!("the linker is `{linker}`, but `{PINNED_LINKER}x` is pinned"));
    }
    None
}

/// Returns the sysroot of the nightly toolchain.
pub fn sysroot() -> Result<PathBuf> {
    let sysroot = program::output(nightly_rustc().args(["--print", "sysroot"]))
        .context("cannot find the sysroot of nightly")?;
    Ok(PathBuf::from(sysroot))
}

/// Returns the path of nightly's objcopy, which removes sections from an object.
pub fn objcopy() -> Result<PathBuf> {
    let host = program::output(nightly_rustc().args(["--print", "host-tuple"]))?;
    Ok(sysroot()?.join("lib/rustlib").join(host).join("bin/rust-objcopy"))
}

fn missing() -> Vec<String> {
    let mut missing = Vec::new();
    match sysroot() {
        Err(_) => missing.push(
            "no nightly toolchain (`rustup toolchain install nightly --component rust-src`)".into(),
        ),
        Ok(sysroot) if !sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").is_file() => {
            missing.push(
                "nightly has no rust-src (`rustup toolchain install nightly --component rust-src`)"
                    .into(),
            );
        }
        Ok(_) => {}
    }
    if objcopy().is_ok_and(|objcopy| !objcopy.is_file()) {
        missing.push("nightly has no rust-objcopy (`rustup update nightly`)".into());
    }
    if linker_version().is_none() {
        missing.push("no bpf-linker (`cargo install bpf-linker`)".into());
    }
    missing
}

fn rustc_version() -> Option<String> {
    program::output(nightly_rustc().arg("--version")).ok()
}

fn linker_version() -> Option<String> {
    program::output(Command::new("bpf-linker").arg("--version")).ok()
}

fn nightly_rustc() -> Command {
    let mut rustc = Command::new("rustc");
    rustc.arg("+nightly");
    rustc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tool_is_an_error_only_in_ci() {
        let missing = || Err(anyhow::anyhow!("no linker"));
        assert_eq!(judge(missing(), false).unwrap().as_deref(), Some("no linker"));
        assert!(judge(missing(), true).is_err());
        assert_eq!(judge(Ok(()), true).unwrap(), None);
    }
}
