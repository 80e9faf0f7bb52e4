//! Podman in a guest, as another engine with Docker's API.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::{Container, Engine};

/// Podman's service of Docker's API. Stopped when dropped, where it was not there before.
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
            // Nobody else uses it; what is left ends with the guest.
            let _ = systemctl(&["stop", "podman.socket", "podman.service"]);
        }
    }
}

/// A container in the cgroup of a service of systemd, as Podman's Quadlet makes them. Both are
/// removed when dropped, the container first.
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
        // As the generator of Quadlet writes the unit.
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

    /// The service's name.
    pub fn unit(&self) -> &str {
        &self.unit.0
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        // It has ended with its container, and may be gone.
        let _ = systemctl(&["stop", &self.0]);
        let _ = systemctl(&["reset-failed", &self.0]);
    }
}

fn systemctl(words: &[&str]) -> Result<()> {
    let done = Command::new("systemctl").args(words).output().context("systemctl")?;
    if !done.status.success() {
        bail!("systemctl {words:?}: {}", String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(())
}
