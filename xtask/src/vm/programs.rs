//! The programs that a guest gets, linked so that they run on any distribution and without any.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use guest_runner::Test;
use serde_json::Value;

use crate::{program, workspace};

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// A build machine may have a newer C library than a guest, and the smallest guests have none.
const STATIC: &str =
    "target.x86_64-unknown-linux-gnu.rustflags=[\"-C\",\"target-feature=+crt-static\"]";
/// A guest unpacks or reads them all under emulation; names in a backtrace are enough.
const STRIP: &str = "profile.dev.strip=\"debuginfo\"";
/// An agent starts a hundred times there, in 1.1 s instead of 2.8 s.
const OPTIMISED: &str = "profile.dev.opt-level=1";
/// What the tests start beside the agent.
///
/// Beside the tests lies the agent they run on any host, a dev build that can be told to panic.
const WORKLOADS: [&str; 3] = ["spawn-workload", "launcher-lookalike", "mcp-guard"];

/// One test program and the tests in it.
pub struct TestProgram {
    pub name: String,
    pub path: PathBuf,
    pub tests: Vec<Test>,
}

pub struct Built {
    /// The agent as it is released: what the package installs.
    pub agent: PathBuf,
    pub workloads: Vec<(String, PathBuf)>,
    pub tests: Vec<TestProgram>,
}

/// Builds everything that guests need.
pub fn build() -> Result<Built> {
    program::run(cargo("build").args(["--quiet", "--release", "-p", "mcp-guard"]))?;
    let dev = ["--quiet", "-p", "mcp-guard-tests", "-p", "mcp-guard", "--bins"];
    program::run(cargo("build").args(dev))?;
    let workloads = WORKLOADS.map(|name| (name.to_owned(), built("debug", name)));
    Ok(Built {
        agent: built("release", "mcp-guard"),
        workloads: workloads.into(),
        tests: test_programs()?,
    })
}

/// The runner in the guest.
pub fn runner() -> Result<PathBuf> {
    program::run(cargo("build").args(["--quiet", "-p", "guest-runner"]))?;
    Ok(built("debug", "guest-runner"))
}

fn built(profile: &str, name: &str) -> PathBuf {
    workspace::target().join(TARGET).join(profile).join(name)
}

fn cargo(verb: &str) -> Command {
    let mut cargo = workspace::cargo();
    cargo.args([verb, "--target", TARGET]);
    for setting in [STATIC, STRIP, OPTIMISED] {
        cargo.args(["--config", setting]);
    }
    cargo
}

/// The end-to-end tests, and the programs that hold them.
fn test_programs() -> Result<Vec<TestProgram>> {
    let mut command = cargo("test");
    command.args([
        "--quiet",
        "--no-run",
        "--message-format=json-render-diagnostics",
        "-p",
        "mcp-guard-tests",
    ]);
    command.args(["--features", "host,docker,guest", "--test", "*"]);
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let stdout = child.stdout.take().context("cargo has no stdout")?;
    let mut found = Vec::new();
    for line in BufReader::new(stdout).lines() {
        let line = line.context("cannot read from cargo")?;
        if let Some((name, path)) = executable(&line) {
            found.push(TestProgram { tests: tests(&name, &path)?, name, path });
        }
    }
    let status = child.wait().context("cannot wait for cargo")?;
    ensure!(status.success(), "`{}` ended with {status}", program::line(&command));
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

/// Name and path, where a line of cargo tells of a test program.
fn executable(line: &str) -> Option<(String, PathBuf)> {
    let message: Value = serde_json::from_str(line).ok()?;
    let path = message.get("executable")?.as_str()?;
    let target = message.get("target")?;
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
    fn reads_what_cargo_says_of_a_test_program() {
        let line = r#"{"reason":"compiler-artifact","target":{"kind":["test"],"name":"host_agent"},
            "executable":"/x/host_agent-01"}"#;
        assert_eq!(executable(line), Some(("host_agent".into(), "/x/host_agent-01".into())));
        let line = r#"{"target":{"kind":["bin"],"name":"spawn-workload"},"executable":"/x/y"}"#;
        assert_eq!(executable(line), None);
        assert_eq!(executable(r#"{"target":{"kind":["test"]},"executable":null}"#), None);
    }
}
