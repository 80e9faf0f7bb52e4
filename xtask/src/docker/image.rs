//! The test images, imported from tar files, so that no image registry is needed.

use std::process::Command;

use anyhow::{Context, Result};

use super::Engine;
use super::rootfs::{self, Rootfs};
use crate::say::step;
use crate::{program, recipe};

/// The image with node, npm, real MCP servers and a leaking gateway.
pub const NODE_IMAGE: &str = "mcp-guard-test-node:latest";
/// The image with only busybox.
pub const BUSYBOX_IMAGE: &str = "mcp-guard-test-busybox:latest";

/// Changes to an image at its import. Each sets only one variable, because Podman accepts no more.
/// The containers have no network, so npm must work from its cache and make no request.
pub const SETTINGS: [&str; 7] = [
    "ENV PATH=/usr/bin:/bin",
    "ENV HOME=/home/u",
    "ENV npm_config_cache=/opt/npm-cache",
    "ENV npm_config_offline=true",
    "ENV npm_config_update_notifier=false",
    "ENV npm_config_yes=true",
    "WORKDIR /srv",
];

/// Makes sure that the engine has the current version of both images.
pub fn provide(engine: &Engine) -> Result<()> {
    let node = step("docker: files of the node image", rootfs::node)?;
    let busybox = step("docker: files of the busybox image", rootfs::busybox)?;
    step("docker: images", || {
        import(engine, &busybox, BUSYBOX_IMAGE)?;
        import(engine, &node, NODE_IMAGE)
    })
}

/// Imports a tar unless it is already there. The image's tag has a key of everything that defines the
/// image.
fn import(engine: &Engine, rootfs: &Rootfs, image: &str) -> Result<()> {
    let parts: Vec<String> = SETTINGS.map(str::to_owned).into();
    let keyed = image.replace("latest", &recipe::key(&rootfs.key, &parts));
    let known = engine.docker().args(["image", "inspect", &keyed]).output();
    if !known.context("cannot start docker")?.status.success() {
        let mut docker = engine.docker();
        docker.arg("import");
        for setting in SETTINGS {
            docker.args(["--change", setting]);
        }
        run(docker.arg(&rootfs.tar).arg(&keyed))?;
    }
    run(engine.docker().args(["tag", &keyed, image]))
}

fn run(command: &mut Command) -> Result<()> {
    program::quietly(command).context("cannot import a test image into the engine")
}
