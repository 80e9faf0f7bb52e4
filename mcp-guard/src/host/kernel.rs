//! The features that this kernel must have. They are detected, not deduced from the version,
//! because distributions backport.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{bpf::VMLINUX, layout::Layout};

/// `cgroup.kill` came with 5.14. The next long-term release, 5.15, has everything that is used.
pub const SUPPORTED: &str = "Linux 5.15 and newer (tested from 6.1 on)";
/// The version is used only if there is no cgroup to look at.
const KILL_SINCE: (u32, u32) = (5, 14);

/// Since then, a task can be preempted while a BPF program runs for it.
const PREEMPTS_SINCE: (u32, u32) = (7, 0);

/// Every reason why mcp-guard cannot work on this kernel.
#[derive(Debug, thiserror::Error)]
#[error("mcp-guard cannot run on kernel {release}: {}; it supports {SUPPORTED}", .lacks.join(", "))]
pub struct Unsupported {
    pub release: String,
    pub lacks: Vec<String>,
}

/// Checks the kernel before anything on the host is changed. Whether it accepts our programs is
/// only known once they are loaded.
///
/// # Errors
/// If a feature is missing that counting, freezing or killing needs.
pub fn check(layout: &Layout) -> Result<(), Unsupported> {
    let mut lacks = Vec::new();
    if !Files::of(layout).kill {
        lacks.push("cgroup.kill missing (it came with Linux 5.14)".to_owned());
    }
    if layout.unified.is_none() {
        lacks.push("no cgroup version 2 tree is mounted".to_owned());
    }
    if !Path::new(VMLINUX).exists() {
        lacks.push(format!("{VMLINUX} missing (the kernel needs CONFIG_DEBUG_INFO_BTF)"));
    }
    if lacks.is_empty() { Ok(()) } else { Err(Unsupported { release: release(), lacks }) }
}

/// The files of a cgroup that older kernels lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Files {
    /// `cgroup.kill`, Linux 5.14: kills all processes of a cgroup at once.
    pub kill: bool,
    /// `pids.events.local`, Linux 6.11: counts the refusals by the cgroup's own limit apart from
    /// those by other limits. `None` if no cgroup has the pids controller.
    pub own_refusals: Option<bool>,
    /// `pids.peak`, Linux 6.1: the most tasks that the cgroup ever had.
    pub peak: Option<bool>,
}

impl Files {
    /// Looks for the files in any cgroup below the root, because the root has none of them.
    #[must_use]
    pub fn of(layout: &Layout) -> Self {
        let kill = layout.unified.as_deref().and_then(a_cgroup_below);
        let pids = layout.pids.as_ref().and_then(|tree| a_cgroup_below(&tree.mount));
        let pids = pids.filter(|dir| dir.join("pids.max").exists());
        let has = |file| pids.as_ref().map(|dir| dir.join(file).exists());
        Self {
            kill: kill.map_or_else(old_enough, |dir| dir.join("cgroup.kill").exists()),
            own_refusals: has("pids.events.local"),
            peak: has("pids.peak"),
        }
    }
}

fn a_cgroup_below(root: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(root).ok()?.flatten();
    entries
        .into_iter()
        .find(|one| one.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|one| one.path())
}

fn old_enough() -> bool {
    // An unknown version is accepted: the programs still have to load.
    version(&release()).is_none_or(|version| version >= KILL_SINCE)
}

/// Returns the kernel's release, as `uname -r` shows it.
#[must_use]
pub fn release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// Returns the two numbers that a release begins with.
#[must_use]
pub fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Some((major, minor)),
        _ => None,
    }
}

/// Whether a task can be preempted while a BPF program runs for it. Others on that CPU then miss the program.
#[must_use]
pub fn may_preempt_programs() -> bool {
    version(&release()).is_some_and(|version| version >= PREEMPTS_SINCE)
}

/// Returns the maximum number of tasks on this host, if the kernel shows it.
#[must_use]
pub fn most_tasks() -> Option<u64> {
    [pid_max(), threads_max()].into_iter().flatten().min()
}

/// Returns the number of pids that this host can have, if the kernel shows it.
#[must_use]
pub fn pid_max() -> Option<u64> {
    number("/proc/sys/kernel/pid_max")
}

/// Returns the number of threads that this host may have, if the kernel shows it.
#[must_use]
pub fn threads_max() -> Option<u64> {
    number("/proc/sys/kernel/threads-max")
}

fn number(file: &str) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::layout::{LayoutKind, PidsTree};

    fn layout(root: &Path) -> Layout {
        let pids = Some(PidsTree { mount: root.to_owned(), v1: false });
        Layout { unified: Some(root.to_owned()), pids, ..Layout::bare() }
    }

    #[test]
    fn a_release_begins_with_two_numbers() {
        for (release, expected) in [
            ("6.12.117+deb13-cloud-amd64", Some((6, 12))),
            ("5.10.0-46-cloud-amd64", Some((5, 10))),
            ("7.2-rc1", Some((7, 2))),
            ("6", None),
            ("next-20261101", None),
            ("", None),
        ] {
            assert_eq!(version(release), expected, "{release}");
        }
    }

    #[test]
    fn files_are_looked_for_in_a_cgroup_and_not_in_the_root() {
        let root = tempfile::tempdir().expect("a directory");
        fs::write(root.path().join("cgroup.kill"), "")
            .expect("a file in the root, which does not count");
        let below = root.path().join("system.slice");
        fs::create_dir(&below).expect("a cgroup");
        let expected = Files { kill: false, own_refusals: None, peak: None };
        assert_eq!(Files::of(&layout(root.path())), expected);
        let error = check(&layout(root.path())).expect_err("no cgroup.kill");
        assert!(error.to_string().contains("cgroup.kill missing"), "{error}");
        for file in ["cgroup.kill", "pids.max", "pids.peak"] {
            fs::write(below.join(file), "").expect("a file");
        }
        let expected = Files { kill: true, own_refusals: Some(false), peak: Some(true) };
        assert_eq!(Files::of(&layout(root.path())), expected);
    }

    #[test]
    fn version_1_alone_is_not_enough() {
        let legacy = Layout {
            kind: LayoutKind::Legacy,
            unified: None,
            pids: None,
            v1_freezer: None,
            nsdelegate: None,
        };
        let error = check(&legacy).expect_err("there is no version 2 tree");
        assert!(error.to_string().contains("no cgroup version 2 tree"), "{error}");
    }
}
