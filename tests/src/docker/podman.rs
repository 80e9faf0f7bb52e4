//! Podman in a guest, as another engine that serves Docker's API.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::{Container, Engine};

/// Podman's service for Docker's API. Stopped on drop, unless it was already running.
pub struct PodmanService {
    started: bool,
}

impl PodmanService {
    pub fn start() -> Result<Self> {
        let started = systemctl(&["is-active", "--quiet", "podman.socket"]).is_err();
        systemctl(&["start", "podman.socket"])?;
        Ok(Self { started })
    }
}

impl Drop for PodmanService {
    fn drop(&mut self) {
        if self.started {
            // No other process uses it; anything left ends with the guest.
            let _ = systemctl(&["stop", "podman.socket", "podman.service"]);
        }
    }
}

/// A container in the cgroup of a systemd service, as Podman's Quadlet creates them. Both are
/// removed on drop, the container first.
pub struct Quadlet {
    pub container: Container,
    unit: Unit,
}

struct Unit(String);

impl Quadlet {
    pub fn run(what: &str, program: &[&str]) -> Result<Self> {
        let name = super::fresh_name(what);
        let unit = Unit(format!("{name}.service"));
        let mut container = Container { engine: Engine::Podman, name, id: String::new() };
        // The options that Quadlet's generator writes into a unit.
        let properties = ["--property=Delegate=yes", "--property=Type=notify"];
        let more = ["--property=NotifyAccess=all", "podman", "run", "--cgroups=split"];
        let options = ["--sdnotify=conmon", "--detach", "--network", "none", "--name"];
        let done = Command::new("systemd-run")
            .arg(format!("--unit={}", unit.0))
            .args(properties)
            .args(more)
            .args(options)
            .args([&container.name, &Engine::Podman.node_image()?])
            .args(program)
            .output()?;
        if !done.status.success() {
            bail!("systemd-run: {}", String::from_utf8_lossy(&done.stderr));
        }
        container.id = container.inspect(".Id")?;
        Ok(Self { container, unit })
    }

    /// Returns the service's name.
    pub fn unit(&self) -> &str {
        &self.unit.0
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        // The service ended with its container, and systemd may have unloaded it.
        let _ = systemctl(&["stop", &self.0]);
        let _ = systemctl(&["reset-failed", &self.0]);
    }
}

fn systemctl(words: &[&str]) -> Result<()> {
    let done = Command::new("systemctl").args(words).output().context("cannot start systemctl")?;
    if !done.status.success() {
        bail!("systemctl {words:?}: {}", String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(())
}
