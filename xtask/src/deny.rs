//! Checks the licences, versions and sources of all dependencies with cargo-deny, see `deny.toml`.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::packages::{self, Permission};
use crate::say::say;
use crate::{program, workspace};

/// The version that is installed. Any installed version is used.
const VERSION: &str = "0.20.2";
/// The workspaces, each with its own lock file.
const WORKSPACES: [&str; 3] = ["", "mcp-guard-ebpf", "fuzz"];
/// The checks that need the crates alone.
const FROM_CRATES: [&str; 3] = ["bans", "licenses", "sources"];

/// Checks every workspace. Advisories and withdrawn versions are checked only if the advisory database is
/// there: it is fetched from a server that a build machine may not reach.
pub fn check(permission: Permission) -> Result<()> {
    let asked = provide(permission);
    if let Some(reason) = not_run(asked, workspace::in_ci())? {
        say(&format!("cargo deny: not run: {reason}"));
        return Ok(());
    }
    for folder in WORKSPACES {
        run(folder, &[], &FROM_CRATES)?;
    }
    if !has_advisories() {
        say("cargo deny: advisories are not checked: no database (`cargo deny fetch` gets it)");
        return Ok(());
    }
    for folder in WORKSPACES {
        run(folder, &["--offline"], &["advisories"])?;
    }
    Ok(())
}

fn run(folder: &str, options: &[&str], checks: &[&str]) -> Result<()> {
    let mut deny = Command::new("cargo");
    deny.current_dir(workspace::root().join(folder))
        .args(["deny", "--log-level", "error", "--all-features"])
        .args(options)
        .arg("check")
        .args(checks);
    program::run(&mut deny).context("cargo deny rejects a dependency; see deny.toml")
}

/// Installs cargo-deny unless it is there. It is built with few optimisations, which takes a third of the
/// time; a check takes seconds anyway.
fn provide(permission: Permission) -> Result<()> {
    if program::output(Command::new("cargo").args(["deny", "--version"])).is_ok() {
        return Ok(());
    }
    let package = format!("cargo-deny@{VERSION}");
    let install = ["install", "--locked", "--debug", "--quiet", &package];
    let line = format!("cargo {}", install.join(" "));
    packages::ask(permission, "missing: cargo-deny", &line)?;
    say(&line);
    program::run(Command::new("cargo").args(install)).context("cannot install cargo-deny")
}

/// Returns why nothing is checked. In CI that is an error.
fn not_run(provided: Result<()>, in_ci: bool) -> Result<Option<String>> {
    match provided {
        Ok(()) => Ok(None),
        Err(missing) if in_ci => bail!(missing),
        Err(missing) => Ok(Some(format!("{missing:#}"))),
    }
}

/// Returns whether `cargo deny fetch` was run here: its default folder has a database.
fn has_advisories() -> bool {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let databases = home.and_then(|home| home.join("advisory-dbs").read_dir().ok());
    databases.into_iter().flatten().flatten().any(|entry| entry.path().join(".git").is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tool_is_an_error_only_in_ci() {
        let missing = || Err(anyhow::anyhow!("no cargo-deny"));
        assert_eq!(not_run(missing(), false).unwrap().as_deref(), Some("no cargo-deny"));
        assert!(not_run(missing(), true).is_err());
        assert_eq!(not_run(Ok(()), true).unwrap(), None);
    }

    #[test]
    fn every_lock_file_of_the_repository_is_checked() {
        let root = workspace::root();
        for folder in WORKSPACES {
            assert!(root.join(folder).join("Cargo.lock").is_file(), "{folder:?}");
        }
    }
}
