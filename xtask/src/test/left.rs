//! Finds what the tests left on the machine: cgroups, BPF pins, mounts, folders, containers,
//! processes.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::docker::{cgroup_mounts, containers};
use crate::workspace;

/// Everything of mcp-guard that exists now, one line each. An agent in real use on this machine is in
/// the picture taken before the tests too.
pub struct Picture(BTreeSet<String>);

impl Picture {
    pub fn take() -> Self {
        let mut seen = BTreeSet::new();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for mount in cgroup_mounts(&mounts) {
            cgroups(&mount, &mut seen);
        }
        named("pin", Path::new("/sys/fs/bpf"), &mut seen);
        for folder in [std::env::temp_dir(), "/tmp".into(), "/var/tmp".into()] {
            named("folder", &folder, &mut seen);
        }
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        let points = points.filter(|point| point.split('/').any(is_ours));
        seen.extend(points.map(|point| format!("mount {point}")));
        let containers = containers().into_iter().filter(|name| is_ours(name));
        seen.extend(containers.map(|name| format!("container {name}")));
        processes(&workspace::target(), &mut seen);
        Self(seen)
    }

    /// Returns what an earlier run left: lines of this picture, taken before the tests, with the name
    /// of a test.
    pub fn of_an_earlier_run(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str).filter(|line| line.contains("mcp-guard-test-"))
    }

    /// Takes a new picture. Returns an error that names everything that this one does not have.
    pub fn compare_with_now(&self) -> Result<()> {
        let mut left = Vec::new();
        // The last process of a test may take a moment to end.
        for _ in 0..20 {
            left = Self::take().0.difference(&self.0).cloned().collect();
            if left.is_empty() {
                return Ok(());
            }
            sleep(Duration::from_millis(100));
        }
        bail!("left behind: {}", left.join(", "))
    }
}

fn cgroups(folder: &Path, seen: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if is_ours(&entry.file_name().to_string_lossy()) {
                seen.insert(format!("cgroup {}", entry.path().display()));
            }
            cgroups(&entry.path(), seen);
        }
    }
}

fn named(what: &str, folder: &Path, seen: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if is_ours(&entry.file_name().to_string_lossy()) {
            seen.insert(format!("{what} {}", entry.path().display()));
        }
    }
}

/// Adds processes of programs that cargo built here, except xtask, and QEMU processes of images in
/// `target`.
fn processes(target: &Path, seen: &mut BTreeSet<String>) {
    let images = target.join("vm");
    let images = images.as_os_str().as_encoded_bytes();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(program) = fs::read_link(entry.path().join("exe")) else { continue };
        let xtask =
            program.file_name().is_some_and(|name| name.to_string_lossy().contains("xtask"));
        let guest = program.file_name().is_some_and(|name| name == "qemu-system-x86_64")
            && fs::read(entry.path().join("cmdline"))
                .is_ok_and(|words| words.windows(images.len()).any(|part| part == images));
        if guest || program.starts_with(target) && !xtask {
            let pid = entry.file_name();
            seen.insert(format!("process {} {}", pid.to_string_lossy(), program.display()));
        }
    }
}

fn is_ours(name: &str) -> bool {
    name.starts_with("mcp-guard") || name.starts_with("mcp_guard")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_cgroups_with_our_name_are_found() {
        let root = tempfile::tempdir().unwrap();
        for name in ["a/mcp-guard-test-x", "other"] {
            fs::create_dir_all(root.path().join(name)).unwrap();
        }
        let mut seen = BTreeSet::new();
        cgroups(root.path(), &mut seen);
        let expected = format!("cgroup {}", root.path().join("a/mcp-guard-test-x").display());
        assert_eq!(seen, BTreeSet::from([expected]));
    }

    #[test]
    fn leftovers_of_an_earlier_test_are_reported_but_an_agent_in_use_is_not() {
        let lines = ["cgroup /a/mcp-guard-test-x-1-0", "cgroup /system.slice/mcp-guard.service"];
        let picture = Picture(lines.map(str::to_owned).into());
        assert_eq!(picture.of_an_earlier_run().collect::<Vec<_>>(), lines[..1]);
    }
}
