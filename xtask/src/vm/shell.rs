//! `cargo xtask vm shell`: a guest for interactive use.

use anyhow::{Result, ensure};
use guest_runner::Plan;

use super::image::{Image, Kind};
use super::payload::Payload;
use super::{cache, machine, plan};
use crate::docker::NODE_IMAGE;
use crate::programs;
use crate::say::{say, step};

/// A policy that acts early: under emulation npm takes seconds to start, and the user waits.
const POLICY: &str = include_str!("shell/policy.toml");
/// Starts the agent and a gateway that leaks one server every 20 seconds.
const SCENE: &str = include_str!("shell/scene.sh");

pub fn run(image: &'static Image) -> Result<()> {
    ensure!(
        matches!(image.kind, Kind::System { .. }),
        "{} has no login shell; use trixie or bookworm",
        image.name
    );
    let payload = Payload::new()?;
    let built = step("vm: test programs", programs::build)?;
    payload.replace("policy.toml", POLICY)?;
    payload.replace("scene.sh", SCENE)?;
    let image_files = cache::provide(image)?;
    let accel = machine::accel(&image_files)?;
    let mut before = plan::install();
    before.push(["sh", "/payload/scene.sh", NODE_IMAGE].map(str::to_owned).to_vec());
    let plan = Plan { before, limit: 300, stay: true, ..Plan::default() };
    payload.with_programs(&built, &plan)?;
    let machine = machine::system(image, &image_files, accel, payload.disk(&plan)?);
    say("the prompt appears when everything is ready, in about a minute; leave with `poweroff`,");
    say("or at once with Ctrl-A X");
    machine.attend()
}
