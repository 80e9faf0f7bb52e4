//! `cargo xtask check`: the checks that a change must pass before it is merged, one line per step.

use anyhow::{Context, Result};

use crate::packages::Permission;
use crate::say::{say, step};
use crate::{deny, ebpf, english, fuzz, program, programs, test, workspace};

/// Runs every step in order and stops at the first that fails.
pub fn run(setup: bool, no_test: bool) -> Result<u8> {
    step("format", check_format)?;
    step("clippy", clippy)?;
    match ebpf::toolchain::reason_to_skip()? {
        None => step("clippy of the kernel side", ebpf::clippy)?,
        Some(reason) => say(&format!("clippy of the kernel side: not run: {reason}")),
    }
    step("clippy of the fuzz targets", fuzz::clippy)?;
    step("doc", doc)?;
    step("plain English", english::check)?;
    step("ebpf --check", ebpf::check)?;
    step("cargo deny", || deny::check(Permission::from_flag(setup)))?;
    if no_test { Ok(0) } else { test::run(setup) }
}

fn check_format() -> Result<()> {
    program::run(workspace::cargo().args(["fmt", "--all", "--check"]))
        .context("the workspace is not formatted; run `cargo fmt --all`")?;
    ebpf::check_format()?;
    fuzz::check_format()
}

fn clippy() -> Result<()> {
    for targets in [&["--all-targets"][..], &["--test", programs::EVERY_TEST]] {
        let mut cargo = programs::workspace_cargo("clippy");
        cargo.args(targets).args(["--locked", "--quiet", "--", "-D", "warnings"]);
        program::run(&mut cargo).context("clippy reported problems")?;
    }
    Ok(())
}

/// Builds the documentation with warnings as errors, so that broken links are found. Private items
/// are included: their docs are for the people who change the code.
fn doc() -> Result<()> {
    let mut cargo = programs::workspace_cargo("doc");
    cargo.args(["--no-deps", "--document-private-items", "--locked", "--quiet"]);
    cargo.env("RUSTDOCFLAGS", "-D warnings");
    program::run(&mut cargo).context("rustdoc reported problems")
}
