//! The engines in which containers under test run.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::{node_image, socket};

/// Which engine a container is in. The image and the words of both are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    Docker,
    Podman,
}

impl Engine {
    /// Where it serves Docker's API.
    pub fn socket(self) -> Result<String> {
        match self {
            Self::Docker => socket(),
            Self::Podman => Ok("/run/podman/podman.sock".to_owned()),
        }
    }

    /// The image with node, npm, real MCP servers and a leaking gateway.
    pub fn node_image(self) -> Result<String> {
        match self {
            Self::Docker => node_image(),
            Self::Podman => Ok(format!("localhost/{}", node_image()?)),
        }
    }

    /// A command of its own command line.
    pub fn command(self, words: &[&str]) -> Result<Command> {
        let mut command = match self {
            Self::Docker => Command::new("docker"),
            Self::Podman => Command::new("podman"),
        };
        match self {
            Self::Docker => command.arg("--host").arg(format!("unix://{}", socket()?)),
            // systemd sets it for its services, the runner of a guest among them: Podman then
            // takes conmon for a part of that service, and leaves it in there.
            Self::Podman => command.env_remove("INVOCATION_ID"),
        };
        command.args(words).stdin(Stdio::null());
        Ok(command)
    }

    /// Runs one to its end and returns its stdout, trimmed.
    pub fn output(self, words: &[&str]) -> Result<String> {
        let done = self.command(words)?.output().with_context(|| format!("start of {self:?}"))?;
        let stderr = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.success(), "{self:?} {words:?}: {}: {}", done.status, stderr.trim());
        Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned())
    }
}
