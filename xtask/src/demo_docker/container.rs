//! The container with the gateway, and the client that makes it leak.

use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::docker::{NODE_IMAGE, Rig};
use crate::program;

pub const NAME: &str = "mcp-guard-test-demo";
/// The identity that the agent must report for the leak: the package, not `node`.
pub const IDENTITY: &str = "@21st-dev/magic";
const LABEL: &str = "mcp-guard.test=1";
const PORT: &str = "8871";
/// Seconds until the container ends even if Ctrl-C ended the demo and the engine is not ours.
const LIFE: &str = "600";

pub struct Container<'a> {
    rig: &'a Rig,
}

/// One line of `docker top`.
pub struct Process {
    pub pid: u32,
    pub command: String,
}

impl<'a> Container<'a> {
    /// Starts the gateway and waits until it listens.
    pub fn start(rig: &'a Rig) -> Result<Self> {
        remove(rig)?;
        let mut docker = rig.docker();
        docker
            .args(["run", "--detach", "--rm", "--network", "none"])
            .args(["--name", NAME, "--label", LABEL, NODE_IMAGE, "timeout", LIFE])
            .args(["node", "/opt/gw/node_modules/supergateway/dist/index.js"])
            .args(["--stdio", "npx -y @21st-dev/magic@0.1.0"])
            .args(["--outputTransport", "streamableHttp", "--port", PORT]);
        program::quietly(&mut docker).context("cannot start the gateway's container")?;
        let container = Self { rig };
        container.wait_until_it_listens()?;
        Ok(container)
    }

    fn wait_until_it_listens(&self) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(30) {
            let log = self.rig.docker().args(["logs", NAME]).output();
            let log = log.context("cannot start docker")?;
            if String::from_utf8_lossy(&log.stdout).contains("Listening on port") {
                return Ok(());
            }
            sleep(Duration::from_millis(100));
        }
        bail!("the gateway does not listen; see `docker logs {NAME}`")
    }

    /// Returns the container's processes as Docker shows them, with the pids of this host.
    pub fn top(&self) -> Result<Vec<Process>> {
        let lines = program::output(self.rig.docker().args(["top", NAME, "-eo", "pid,args"]))?;
        lines.lines().skip(1).map(process).collect()
    }

    pub fn is_running(&self) -> Result<bool> {
        Ok(!running(self.rig, &["ps", "--quiet"])?.is_empty())
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        if let Err(error) = remove(self.rig) {
            crate::say::complain(&format!("cannot remove container {NAME}: {error:#}"));
        }
    }
}

/// Removes the container of this or an earlier demo. A container without our label is not ours and
/// stays.
fn remove(rig: &Rig) -> Result<()> {
    let ids = running(rig, &["ps", "--all", "--quiet"])?;
    if ids.is_empty() {
        return Ok(());
    }
    program::quietly(rig.docker().args(["rm", "--force"]).args(ids.lines()))
}

fn running(rig: &Rig, words: &[&str]) -> Result<String> {
    let name = format!("name=^/{NAME}$");
    let label = format!("label={LABEL}");
    program::output(rig.docker().args(words).args(["--filter", &name, "--filter", &label]))
}

fn process(line: &str) -> Result<Process> {
    let (pid, command) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
    let pid = pid.parse().with_context(|| format!("docker top printed `{line}`"))?;
    Ok(Process { pid, command: command.trim().to_owned() })
}

/// Returns whether a command line is the launcher of one of the demo's servers.
///
/// Each server has exactly one. It starts through `#!`, then runs as npx, then has the titles that
/// npm gives itself.
pub fn is_launcher(command: &str) -> bool {
    let called = command.strip_prefix("/usr/bin/env ").unwrap_or(command);
    command == "npm"
        || command.starts_with("npm exec @21st-dev/magic")
        || called.starts_with("node /usr/bin/npx -y @21st-dev/magic")
}

/// The client. Ended on drop, also while its process in the container is frozen.
pub struct Leak(Child);

impl Leak {
    pub fn start(rig: &Rig, servers: u32) -> Result<Self> {
        let url = format!("http://127.0.0.1:{PORT}/mcp");
        let mut docker: Command = rig.docker();
        docker
            .args(["exec", NAME, "node", "/opt/gw/leak.mjs", &url, &servers.to_string(), "100"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Ok(Self(docker.spawn().context("cannot start the client in the container")?))
    }
}

impl Drop for Leak {
    fn drop(&mut self) {
        // Fails if it has already ended, which is fine.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_docker_top_is_read() {
        let process = process("  812   npm exec @21st-dev/magic@0.1.0").unwrap();
        assert_eq!((process.pid, is_launcher(&process.command)), (812, true));
    }

    #[test]
    fn the_server_below_its_launcher_is_not_counted_again() {
        assert!(is_launcher("node /usr/bin/npx -y @21st-dev/magic@0.1.0"));
        assert!(is_launcher("/usr/bin/env node /usr/bin/npx -y @21st-dev/magic@0.1.0"));
        assert!(!is_launcher("sh -c npx -y @21st-dev/magic@0.1.0"));
        assert!(!is_launcher("node /opt/npm-cache/_npx/9d186efb9a09194e/node_modules/.bin/magic"));
    }
}
