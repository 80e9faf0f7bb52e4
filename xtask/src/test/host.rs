//! The requirements of the root tests on this machine.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

const KERNEL_TYPES: &str = "/sys/kernel/btf/vmlinux";

/// Checks the requirements. The error says what is missing.
pub fn ready() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("needs root: run it with sudo or in a root shell");
    }
    if !Path::new(KERNEL_TYPES).is_file() {
        bail!("needs a kernel with BTF: {KERNEL_TYPES} does not exist");
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
    let cgroup2 = cgroup2_mount(&mounts).context("needs cgroup2: it is not mounted")?;
    probe(&cgroup2)
}

/// Returns the major and minor version of the running kernel.
pub fn kernel() -> Result<(u32, u32)> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")
        .context("cannot read the kernel release")?;
    numbers(&release).with_context(|| format!("not a kernel release: {release:?}"))
}

fn numbers(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|one: char| !one.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn cgroup2_mount(mountinfo: &str) -> Option<PathBuf> {
    let line = mountinfo.lines().find(|line| line.contains(" - cgroup2 "))?;
    line.split(' ').nth(4).map(PathBuf::from)
}

/// Creates and removes a cgroup: this is how a read-only mount shows.
fn probe(cgroup2: &Path) -> Result<()> {
    let probe = cgroup2.join(format!("mcp-guard-test-probe-{}", std::process::id()));
    fs::create_dir(&probe)
        .with_context(|| format!("needs a writable cgroup2 tree at {}", cgroup2.display()))?;
    fs::remove_dir(&probe).with_context(|| format!("cannot remove {}", probe.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_release_is_read() {
        assert_eq!(numbers("6.14.0-rc1+deb13-amd64\n"), Some((6, 14)));
        assert_eq!(numbers("7.2\n"), Some((7, 2)));
        assert_eq!(numbers("linux"), None);
    }

    #[test]
    fn cgroup2_is_found_on_a_hybrid_host() {
        let mounts = "30 25 0:26 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
                      31 25 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert_eq!(cgroup2_mount(mounts), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(cgroup2_mount(""), None);
    }
}
