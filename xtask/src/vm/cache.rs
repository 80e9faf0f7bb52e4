//! The cache of images under `target/vm`. Each is named by a hash of everything that defines it.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use guest_runner::Plan;

use super::built::{Built, store};
use super::image::{Image, Kind};
use super::payload::Payload;
use super::qemu::Machine;
use super::{kernel, machine, run, system};
use crate::docker::{self, Rootfs};
use crate::say::{say, step};
use crate::{recipe, this_run};

/// The version of the images. Must change whenever this file changes how they are made.
const LAYOUT: &str = "4";
/// Seconds that one command of the preparation may take under emulation.
const PATIENCE: u64 = 900;

/// Imports the container images into both engines.
///
/// Under emulation an engine takes minutes to unpack the many thousand files of node's image. So each
/// engine imports an empty image, whose layer is then replaced by its folder in `$1`, on the same disk.
const IMPORT: &str = r#"
set -eu
files=$1; shift
mkdir /run/empty
tar --create --file /run/empty.tar --directory /run/empty .
for engine in docker podman; do
  "$engine" import "$@" /payload/busybox.tar mcp-guard-test-busybox:latest
  "$engine" import "$@" /run/empty.tar mcp-guard-test-node:latest
  layer=$("$engine" image inspect --format '{{.GraphDriver.Data.UpperDir}}' mcp-guard-test-node:latest)
  rmdir "$layer"
  mv "$files/$engine" "$layer"
done
systemctl stop docker.socket docker.service containerd.service
"#;

/// Removes what interrupted runs left.
pub fn remove_left() -> Result<()> {
    this_run::remove_left(&store())
}

/// Builds an image unless it exists.
pub fn provide(image: &Image) -> Result<Built> {
    match image.kind {
        Kind::Kernel => keep(image, &kernel::recipe(image), |folder| kernel::build(image, folder)),
        Kind::System { more, .. } => {
            let node = step("vm: files of the node image", docker::node_files)?;
            let busybox = docker::busybox_files()?;
            let mut recipe = system::recipe(image, more);
            recipe.extend([node.key.clone(), busybox.key.clone()]);
            recipe.push(IMPORT.to_owned());
            recipe.extend(import());
            keep(image, &recipe, |folder| {
                system::build(image, more, &node.tar, folder)?;
                fill(image, folder, &busybox)
            })
        }
    }
}

/// Builds an image in a scratch folder, which is renamed only when complete, so that an interrupted run
/// leaves no partial image.
fn keep(
    image: &Image,
    recipe: &[String],
    build: impl FnOnce(&Path) -> Result<()>,
) -> Result<Built> {
    let folder = store().join(format!("{}-{}", image.name, recipe::key(LAYOUT, recipe)));
    let _alone = alone(image)?;
    if !folder.is_dir() {
        remove_older(image)?;
        let work = tempfile::Builder::new()
            .prefix(&this_run::prefix(this_run::MAKING))
            .tempdir_in(store());
        let work = work.context("cannot create a folder in target/vm")?;
        build(work.path())?;
        // From here on it must not be removed on drop.
        fs::rename(work.keep(), &folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
    }
    Ok(Built::new(folder))
}

/// Takes the lock for building this image, held until the file is dropped. Two tiers may need the same
/// image, and two runs may share the folder.
fn alone(image: &Image) -> Result<File> {
    fs::create_dir_all(store()).context("cannot create target/vm")?;
    let path = store().join(format!("{}.lock", image.name));
    let file = File::create(&path).with_context(|| path.display().to_string())?;
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

/// Removes older versions of an image.
fn remove_older(image: &Image) -> Result<()> {
    for entry in fs::read_dir(store()).context("cannot list target/vm")?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let key = name.strip_prefix(image.name).and_then(|rest| rest.strip_prefix('-'));
        let is_key = |key: &str| key.len() == 16 && key.bytes().all(|b| b.is_ascii_hexdigit());
        if key.is_some_and(is_key) {
            fs::remove_dir_all(entry.path())
                .with_context(|| format!("cannot remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// Returns the command that imports the container images in a guest. Its script is [`IMPORT`].
fn import() -> Vec<String> {
    let script = ["sh", "/payload/import.sh", system::NODE];
    let changes = docker::SETTINGS.iter().flat_map(|setting| ["--change", *setting]);
    script.into_iter().chain(changes).map(str::to_owned).collect()
}

/// Boots the new disk once and imports the container images into its engines.
fn fill(image: &Image, folder: &Path, busybox: &Rootfs) -> Result<()> {
    let mut plan = Plan { limit: PATIENCE, ..Plan::default() };
    plan.before.push(import());
    let payload = Payload::new()?;
    payload.replace("import.sh", IMPORT)?;
    payload.link(&busybox.tar, "busybox.tar")?;
    let built = Built::new(folder.to_path_buf());
    let accel = machine::accel(&built)?;
    let system = machine::system(image, &built, accel, payload.disk(&plan)?);
    let machine = Machine { keep: true, ..system };
    step(&format!("vm: container images of {}", image.name), || {
        let limit = Duration::from_secs(PATIENCE);
        let report = run::run(&machine, &payload.console(), limit, |line| say(&line))?;
        ensure!(report.failures.is_empty(), "{}", report.explain().join("\n"));
        Ok(())
    })
}
