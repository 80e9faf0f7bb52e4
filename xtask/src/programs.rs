//! The test programs and the programs that they run. They are built once, for this machine and for
//! the guests, and linked statically, so that they run on any distribution, or without one.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use guest_runner::Test;
use serde_json::Value;

use crate::{program, workspace};

/// Links statically: a build machine may have a newer C library than a guest, and the smallest guests
/// have none.
const STATIC: &str = "rustflags=[\"-C\",\"target-feature=+crt-static\"]";
/// Builds without debug info, because a guest unpacks or reads all programs under emulation. Names are
/// enough in a backtrace.
const PLAIN: &str = "profile.dev.debug=false";
/// Builds with optimisation: the agent starts a hundred times under emulation, in 1.1 s instead of
/// 2.8 s.
const OPTIMISED: &str = "profile.dev.opt-level=1";
/// Turns off the LTO within each crate that an optimised build does by default. It takes time and
/// brings nothing that a test would notice (rustc, `-C lto`).
const ONCE: &str = "profile.dev.lto=\"off\"";
/// The name pattern that also selects the root tests, which are not in `--all-targets`.
pub const EVERY_TEST: &str = "*";
/// The programs that the tests start.
///
/// The agent here is a dev build, which can be made to panic. The tests run it on any host.
const WORKLOADS: [&str; 4] = ["spawn-workload", "launcher-lookalike", "leaderless", "mcp-guard"];

/// One test program and the tests in it.
pub struct TestProgram {
    pub name: String,
    pub path: PathBuf,
    pub tests: Vec<Test>,
}

pub struct Built {
    /// The release build of the agent, which the package installs.
    pub agent: PathBuf,
    pub workloads: Vec<(String, PathBuf)>,
    pub tests: Vec<TestProgram>,
}

/// Builds all programs that guests need.
pub fn build() -> Result<Built> {
    program::run(linked_statically("build").args(["--quiet", "--release", "-p", "mcp-guard"]))?;
    let tests = build_tests()?;
    let workloads = WORKLOADS.map(|name| (name.to_owned(), built("debug", name)));
    Ok(Built { agent: built("release", "mcp-guard"), workloads: workloads.into(), tests })
}

/// Builds the runner of the guests and returns its path.
pub fn runner() -> Result<PathBuf> {
    program::run(workspace_cargo("build").args(["--quiet", "--bin", "guest-runner"]))?;
    Ok(built("debug", "guest-runner"))
}

/// Returns a cargo command for the whole workspace. clippy and all tiers use the same settings: with
/// others, or with a part of the workspace, cargo would rebuild libraries and macros.
pub fn workspace_cargo(verb: &str) -> Command {
    let mut cargo = cargo(verb);
    cargo.arg("--workspace");
    cargo
}

/// Builds the pure tests, the agent and the workloads. The tests start the agent and the workloads,
/// which cargo does not build together with the tests unless asked.
pub fn build_pure() -> Result<()> {
    program::run(workspace_cargo("build").args(["--quiet", "--all-targets"]))
}

/// Builds the tests of all tiers with the programs they start, and returns the end-to-end tests.
pub fn build_tests() -> Result<Vec<TestProgram>> {
    build_pure()?;
    let mut command = workspace_cargo("build");
    command.args(["--quiet", "--message-format=json-render-diagnostics", "--test", EVERY_TEST]);
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let stdout = child.stdout.take().context("cargo has no stdout")?;
    let mut found = Vec::new();
    for line in BufReader::new(stdout).lines() {
        let line = line.context("cannot read from cargo")?;
        if let Some((name, path)) = executable(&line) {
            let tests = tests(&name, &path)?;
            ensure!(!tests.is_empty(), "{name} has no test");
            found.push(TestProgram { tests, name, path });
        }
    }
    let status = child.wait().context("cannot wait for cargo")?;
    ensure!(status.success(), "`{}` ended with {status}", program::line(&command));
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

fn built(profile: &str, name: &str) -> PathBuf {
    workspace::target().join(target()).join(profile).join(name)
}

fn target() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

fn cargo(verb: &str) -> Command {
    let mut cargo = linked_statically(verb);
    cargo.args(["--config", PLAIN, "--config", OPTIMISED, "--config", ONCE]);
    if workspace::in_ci() {
        // In CI nothing is built a second time.
        cargo.env("CARGO_INCREMENTAL", "0");
    }
    cargo
}

/// Returns a cargo command that links statically. It names a target, because otherwise the flags would
/// also apply to build scripts and macros.
fn linked_statically(verb: &str) -> Command {
    let (mut cargo, target) = (workspace::cargo(), target());
    cargo.args([verb, "--target", &target, "--config", &format!("target.{target}.{STATIC}")]);
    cargo
}

/// Returns the name and path if a line of cargo reports a program of end-to-end tests.
fn executable(line: &str) -> Option<(String, PathBuf)> {
    let message: Value = serde_json::from_str(line).ok()?;
    let path = message.get("executable")?.as_str()?;
    let ours = message.get("manifest_path")?.as_str()?.ends_with("/tests/Cargo.toml");
    let target = message.get("target").filter(|_| ours)?;
    let is_test = target.get("kind")?.as_array()?.iter().any(|kind| kind == "test");
    let name = target.get("name")?.as_str()?;
    is_test.then(|| (name.to_owned(), path.into()))
}

fn tests(program: &str, path: &PathBuf) -> Result<Vec<Test>> {
    let list = program::output(Command::new(path).args(["--list", "--format", "terse"]))?;
    let names = list.lines().filter_map(|line| line.strip_suffix(": test"));
    let test = |name: &str| Test { program: program.to_owned(), name: name.to_owned() };
    Ok(names.map(test).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargos_report_of_a_test_program_is_read() {
        let line = |package: &str, kind: &str| {
            let target = format!(r#"{{"kind":["{kind}"],"name":"host_agent"}}"#);
            let manifest = format!("/x/{package}/Cargo.toml");
            format!(r#"{{"manifest_path":"{manifest}","target":{target},"executable":"/x/y"}}"#)
        };
        assert_eq!(executable(&line("tests", "test")), Some(("host_agent".into(), "/x/y".into())));
        assert_eq!(executable(&line("tests", "bin")), None);
        assert_eq!(executable(&line("core", "test")), None, "a pure test");
        assert_eq!(executable(r#"{"target":{"kind":["test"]},"executable":null}"#), None);
    }
}
