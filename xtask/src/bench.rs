//! `cargo xtask bench`: builds for release, installs the peers, and runs `bench`.

use std::process::Command;

use anyhow::Result;

use crate::packages::{self, Need, Permission};
use crate::say::complain;
use crate::{program, workspace};

/// The programs that mcp-guard is compared with in the same run.
const PEERS: [Need; 2] = [
    Need { program: "bpftrace", package: "bpftrace" },
    Need { program: "execsnoop", package: "libbpf-tools" },
];

/// Prints the table, writes `target/bench.json`, and returns the bench's exit code.
pub fn run(setup: bool, more: &[String]) -> Result<u8> {
    if let Err(missing) = packages::provide_all(Permission::from_flag(setup), &PEERS) {
        complain(&format!("{missing:#}"));
        return Ok(2);
    }
    let packages = ["-p", "mcp-guard", "-p", "mcp-guard-tests"];
    program::run(workspace::cargo().args(["build", "--release", "--bins"]).args(packages))?;
    // The peers are in /usr/sbin, which is missing from PATH in a login without root's PATH.
    let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
    let mut bench = Command::new(workspace::target().join("release/bench"));
    bench.arg("--out").arg(workspace::target().join("bench.json")).args(more).env("PATH", path);
    program::exit_code(&mut bench)
}
