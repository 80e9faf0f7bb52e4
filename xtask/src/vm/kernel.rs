//! A kernel-only image: the kernel is extracted from its package and gets our own initial file system.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::built::KERNEL;
use super::image::Image;
use super::system::STALE;
use crate::program;
use crate::say::step;

/// Downloads the package with a release's newest kernel. apt checks its signature.
///
/// Dependencies are not downloaded, except that in newer releases the kernel itself is in a package that
/// this one depends on. `$1` is a scratch root with apt's lists, `$OUT` is the result.
const FETCH: &str = "\
export APT_CONFIG=\"$MMDEBSTRAP_APT_CONFIG\"; cd \"$1\"; \
package=$(apt-cache depends linux-image-cloud-amd64 \
| sed -n 's/.*Depends: \\(linux-image-[0-9].*\\)/\\1/p' | head -n 1); \
binary=$(apt-cache depends \"$package\" | sed -n 's/.*Depends: \\(linux-binary-.*\\)/\\1/p'); \
package=${binary:-$package}; \
apt-get -q -o APT::Sandbox::User=root download \"$package\"; \
cp linux-*.deb \"$OUT/kernel.deb\"";

/// Returns everything that defines the image, for the key of the cache.
pub fn recipe(image: &Image) -> Vec<String> {
    vec![image.suite.to_owned(), FETCH.to_owned()]
}

pub fn build(image: &Image, folder: &Path) -> Result<()> {
    step(&format!("vm: {}", image.name), || {
        let mut command = Command::new("mmdebstrap");
        command.args(["--quiet", "--variant=custom", "--format=null", STALE]);
        command.arg(format!("--customize-hook=set -eu; {FETCH}")).env("OUT", folder);
        program::quietly(command.args([image.suite, "-"]))?;
        let (package, root) = (folder.join("kernel.deb"), folder.join("root"));
        program::quietly(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(&root))?;
        take(&root, &folder.join(KERNEL))?;
        fs::remove_dir_all(&root).with_context(|| root.display().to_string())?;
        fs::remove_file(&package).with_context(|| package.display().to_string())
    })
}

/// Moves the kernel out of the unpacked package. It is in /boot or, in newer packages, beside the modules.
fn take(root: &Path, kernel: &Path) -> Result<()> {
    let found = program::output(Command::new("find").arg(root).args(["-name", "vmlinuz*"]))?;
    let found = found.lines().next().context("the package has no kernel")?;
    fs::rename(found, kernel).with_context(|| found.to_owned())
}

/// Packs a folder as an initial file system.
pub fn initrd(root: &Path, file: &Path) -> Result<()> {
    let names = program::output(Command::new("find").arg(".").current_dir(root))?;
    let out = fs::File::create(file).with_context(|| file.display().to_string())?;
    let mut cpio = Command::new("busybox")
        .args(["cpio", "-o", "-H", "newc"])
        .current_dir(root)
        .stdin(Stdio::piped())
        .stdout(out)
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start busybox cpio")?;
    let mut stdin = cpio.stdin.take().context("cpio has no stdin")?;
    std::io::Write::write_all(&mut stdin, names.as_bytes())
        .context("cannot write to busybox cpio")?;
    drop(stdin);
    let status = cpio.wait().context("cannot wait for busybox cpio")?;
    if !status.success() {
        bail!("busybox cpio ended with {status}");
    }
    Ok(())
}
