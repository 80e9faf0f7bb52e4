//! `cargo xtask check`: what must hold before a change is merged, one line per step.

use anyhow::{Context, Result};

use crate::say::{say, step};
use crate::{ebpf, program, test, workspace};

/// Runs every step in order and stops at the first that fails.
pub fn run(setup: bool, no_test: bool) -> Result<u8> {
    step("format", check_format)?;
    step("clippy", clippy)?;
    step("clippy of the kernel side", clippy_of_the_kernel_side)?;
    step("ebpf --check", ebpf::check)?;
    if no_test { Ok(0) } else { test::run(setup) }
}

fn check_format() -> Result<()> {
    program::run(workspace::cargo().args(["fmt", "--all", "--check"]))
        .context("the workspace is not formatted; run `cargo fmt --all`")?;
    ebpf::check_format()
}

fn clippy() -> Result<()> {
    let flags = ["clippy", "--workspace", "--all-targets", "--all-features", "--locked", "--quiet"];
    program::run(workspace::cargo().args(flags).args(["--", "-D", "warnings"]))
        .context("clippy found something")
}

fn clippy_of_the_kernel_side() -> Result<()> {
    match ebpf::toolchain::require() {
        Ok(()) => ebpf::clippy(),
        Err(missing) => {
            say(&format!("not run: {missing:#}"));
            Ok(())
        }
    }
}
