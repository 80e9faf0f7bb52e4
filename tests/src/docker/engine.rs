//! The engines in which containers under test run.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::{node_image, socket};

/// The engine of a container. Both engines take the same image and the same command lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    Docker,
    Podman,
}

impl Engine {
    /// Returns the socket on which the engine serves Docker's API.
    pub fn socket(self) -> Result<String> {
        match self {
            Self::Docker => socket(),
            Self::Podman => Ok("/run/podman/podman.sock".to_owned()),
        }
    }

    /// Returns the image with node, npm, real MCP servers and a leaking gateway.
    pub fn node_image(self) -> Result<String> {
        match self {
            Self::Docker => node_image(),
            Self::Podman => Ok(format!("localhost/{}", node_image()?)),
        }
    }

    /// Returns a command of the engine's own command line.
    pub fn command(self, words: &[&str]) -> Result<Command> {
        let mut command = match self {
            Self::Docker => Command::new("docker"),
            Self::Podman => Command::new("podman"),
        };
        match self {
            Self::Docker => command.arg("--host").arg(format!("unix://{}", socket()?)),
            // systemd sets it for its services, and the runner of a guest is one. Podman would then
            // take conmon for a part of that service and leave it in the service's cgroup.
            Self::Podman => command.env_remove("INVOCATION_ID"),
        };
        command.args(words).stdin(Stdio::null());
        Ok(command)
    }

    /// Runs such a command and returns its trimmed stdout.
    pub fn output(self, words: &[&str]) -> Result<String> {
        let done = self.command(words)?.output();
        let done = done.with_context(|| format!("cannot start {self:?}"))?;
        let stderr = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.success(), "{self:?} {words:?}: {}: {}", done.status, stderr.trim());
        Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned())
    }
}
