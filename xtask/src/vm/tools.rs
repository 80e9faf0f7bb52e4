//! QEMU and the programs that build images.

use std::process::Command;

use anyhow::{Result, bail};

use crate::packages::{self, Need, Permission};
use crate::program;

const NEEDS: [Need; 5] = [
    Need { program: "mmdebstrap", package: "mmdebstrap" },
    Need { program: "mke2fs", package: "e2fsprogs" },
    Need { program: "dpkg-deb", package: "dpkg" },
    // For the root folders of the container images.
    Need { program: "busybox", package: "busybox-static" },
    Need { program: "npm", package: "npm" },
];
const QEMU: Need = Need { program: "qemu-system-x86_64", package: "qemu-system-x86" };
/// Under emulation, guests in QEMU 7.2 end with a double fault at cmpxchg16b. This was never seen with 8.
const OLDEST_QEMU: u32 = 8;

/// Makes sure that guests can be built and run here.
pub fn provide(permission: Permission) -> Result<()> {
    if cfg!(not(target_arch = "x86_64")) {
        bail!("guests are x86-64, so this machine must be x86-64 too");
    }
    if !rustix::process::geteuid().is_root() {
        bail!("building a guest's disk needs root, to keep the owners of files; run as root");
    }
    packages::provide_all(permission, &NEEDS)?;
    if qemu_version().is_some_and(|version| version >= OLDEST_QEMU) {
        return Ok(());
    }
    packages::provide_newer(permission, &QEMU, OLDEST_QEMU)?;
    match qemu_version() {
        Some(version) if version >= OLDEST_QEMU => Ok(()),
        found => bail!("QEMU {OLDEST_QEMU} or newer is needed, found {found:?}"),
    }
}

fn qemu_version() -> Option<u32> {
    let text = program::output(Command::new(QEMU.program).arg("--version")).ok()?;
    major(&text)
}

/// Returns the major version in a line like `QEMU emulator version 10.0.2 (Debian ...)`.
fn major(text: &str) -> Option<u32> {
    text.split("version ").nth(1)?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_version_of_qemu_is_read() {
        assert_eq!(super::major("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)"), Some(10));
        assert_eq!(super::major("something else"), None);
    }
}
