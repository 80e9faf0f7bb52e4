//! Builds a disk with systemd, Docker and Podman, without mounting anything.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::built::{DISK, INITRD, KERNEL};
use super::image::{Image, PACKAGES};
use crate::program;
use crate::say::step;

/// The folder in a guest with the files of node's container image: one copy per engine, as hard links.
pub const NODE: &str = "/var/lib/mcp-guard-test-node";
/// The size of a disk. The file is sparse: unused space takes no room on the host.
const SIZE: &str = "6G";

/// Accepts a mirror that is some weeks behind, which is good enough for tests. Signatures are still
/// checked.
pub const STALE: &str = "--aptopt=Acquire::Check-Valid-Until \"false\"";

/// The unit that runs the plan on the second disk once the engine is up. The login prompt on the console
/// waits for it, so that a user finds everything ready.
pub const RUNNER_UNIT: &str = "\
[Unit]
Description=runs the plan on the second disk
Wants=docker.service
After=docker.service
Before=serial-getty@ttyS0.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStartPre=mount -o ro /dev/vdb /payload
ExecStart=/payload/guest-runner
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
# Tests fork in storms; the limit of a service is not what they test.
TasksMax=infinity
TimeoutStartSec=infinity
";

const AUTOLOGIN: &str = "\
[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200,38400,9600 %I linux
";

/// Triggers udev only for the devices that systemd waits for: under emulation, all devices take a fifth
/// of the boot.
const UDEV: &str = "\
[Service]
ExecStart=
ExecStart=udevadm trigger --action=add --subsystem-match=block
ExecStart=udevadm trigger --action=add --sysname-match=ttyS0
";

/// Docker's configuration. Containers have no network, so no bridge and no packet filter rules are
/// needed.
const DOCKER: &str = "{\"bridge\": \"none\", \"iptables\": false, \"ip6tables\": false}\n";

/// Limits the initial file system to the drivers for the disk: 11 MB to unpack under emulation instead
/// of 19. It must be set before the kernel's package creates that file system. `$1` is the root.
const INITRAMFS: &str = "\
mkdir -p \"$1/etc/initramfs-tools/conf.d\" \"$1/usr/share/initramfs-tools/modules.d\"; \
echo MODULES=list > \"$1/etc/initramfs-tools/conf.d/mcp-guard-test\"; \
printf '%s\\n' virtio_pci virtio_blk ext4 > \"$1/usr/share/initramfs-tools/modules.d/mcp-guard-test\"";

/// Units that would otherwise start during tests.
const MASKED: [&str; 9] = [
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "podman-auto-update.timer",
    "podman-restart.service",
    "systemd-timesyncd.service",
];

/// Returns everything that this file puts into a disk, for the key of the cache.
pub fn recipe(image: &Image, more: &[&str]) -> Vec<String> {
    let fixed = [image.suite, RUNNER_UNIT, AUTOLOGIN, UDEV, DOCKER, INITRAMFS, SIZE];
    let parts = fixed.iter().chain(&PACKAGES).chain(more).chain(&MASKED);
    parts.map(|part| (*part).to_owned()).collect()
}

/// Fills `folder` with a disk, a kernel and its initial file system. `node` is unpacked into [`NODE`].
pub fn build(image: &Image, more: &[&str], node: &Path, folder: &Path) -> Result<()> {
    let root = folder.join("root");
    let packages = [&PACKAGES[..], more].concat().join(",");
    step(&format!("vm: packages of {}", image.name), || {
        let mut command = Command::new("mmdebstrap");
        command.args(["--quiet", "--variant=minbase", STALE, &format!("--include={packages}")]);
        command.arg(format!("--essential-hook={INITRAMFS}"));
        program::quietly(command.arg(image.suite).arg(&root))
    })?;
    settings(&root)?;
    unpack(node, &root.join(NODE.trim_start_matches('/')))?;
    take_kernel(&root.join("boot"), folder)?;
    step(&format!("vm: disk of {}", image.name), || {
        disk(&root, &folder.join(DISK), SIZE)?;
        fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))
    })
}

/// Creates a file system with the content of a folder, without a mount.
pub fn disk(root: &Path, disk: &Path, size: &str) -> Result<()> {
    let mut command = Command::new(mke2fs());
    command.args(["-q", "-t", "ext4", "-d"]).arg(root).arg(disk).arg(size);
    program::quietly(&mut command)
}

fn mke2fs() -> std::path::PathBuf {
    program::find("mke2fs").unwrap_or_else(|| "mke2fs".into())
}

fn settings(root: &Path) -> Result<()> {
    let units = root.join("etc/systemd/system");
    write(&root.join("etc/docker/daemon.json"), DOCKER)?;
    write(&root.join("etc/hostname"), "mcp-guard-vm\n")?;
    write(&units.join("guest-runner.service"), RUNNER_UNIT)?;
    write(&units.join("serial-getty@ttyS0.service.d/autologin.conf"), AUTOLOGIN)?;
    write(&units.join("systemd-udev-trigger.service.d/mcp-guard-test.conf"), UDEV)?;
    let wants = units.join("multi-user.target.wants");
    make(&wants)?;
    make(&root.join("payload"))?;
    link("../guest-runner.service", &wants.join("guest-runner.service"))?;
    MASKED.iter().try_for_each(|unit| link("/dev/null", &units.join(unit)))
}

/// Unpacks a tar file into one folder per engine.
fn unpack(tar: &Path, folder: &Path) -> Result<()> {
    let (docker, podman) = (folder.join("docker"), folder.join("podman"));
    make(&docker)?;
    let mut command = Command::new("tar");
    command.arg("--directory").arg(&docker).args(["--extract", "--numeric-owner", "--file"]);
    program::quietly(command.arg(tar))?;
    program::quietly(Command::new("cp").args(["--archive", "--link"]).args([docker, podman]))
}

/// Copies the kernel and the initial file system, which the kernel's package creates.
fn take_kernel(boot: &Path, folder: &Path) -> Result<()> {
    for (prefix, name) in [("vmlinuz-", KERNEL), ("initrd.img-", INITRD)] {
        let entries = fs::read_dir(boot).with_context(|| boot.display().to_string())?;
        let mut files = entries.flatten().map(|entry| entry.path());
        let found = files.find(|file| {
            file.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        });
        let found = found.with_context(|| format!("no {prefix}* in {}", boot.display()))?;
        fs::copy(&found, folder.join(name)).with_context(|| found.display().to_string())?;
    }
    Ok(())
}

pub fn write(file: &Path, text: &str) -> Result<()> {
    make(file.parent().unwrap_or(file))?;
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

pub fn make(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))
}

fn link(target: &str, name: &Path) -> Result<()> {
    // A package may have created a file of the same name.
    let _ = fs::remove_file(name);
    symlink(target, name).with_context(|| format!("cannot create the link {}", name.display()))
}
