//! Where the cgroup hierarchies are mounted, and which of them has the pids controller.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{cgroupfs, proc::mount::Mount};

/// How this host mounts cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LayoutKind {
    /// Version 2 alone, the layout that mcp-guard is made for.
    Unified,
    /// A version 2 tree beside version 1 controllers.
    Hybrid,
    /// Version 1 alone: nothing can be frozen or killed through it.
    Legacy,
    None,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Layout {
    pub kind: LayoutKind,
    /// Mount point of the version 2 tree.
    pub unified: Option<PathBuf>,
    pub pids: Option<PidsTree>,
    /// Mount point of the version 1 freezer, with which engines pause containers beside such a hierarchy.
    pub v1_freezer: Option<PathBuf>,
    /// Whether the version 2 tree is mounted with `nsdelegate`, which makes a cgroup namespace a
    /// boundary of rights.
    pub nsdelegate: Option<bool>,
}

#[cfg(test)]
impl Layout {
    /// Version 2 alone, with nothing mounted.
    pub fn bare() -> Self {
        Self {
            kind: LayoutKind::Unified,
            unified: None,
            pids: None,
            v1_freezer: None,
            nsdelegate: None,
        }
    }
}

/// The tree whose cgroups have `pids.max`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PidsTree {
    pub mount: PathBuf,
    /// Whether it is a separate version 1 hierarchy.
    pub v1: bool,
}

impl PidsTree {
    /// Whether the cgroups below the root have the controller's files. In version 1 all of them do.
    #[must_use]
    pub fn is_handed_down(&self) -> bool {
        self.v1 || lists_pids(&self.mount.join("cgroup.subtree_control"))
    }
}

fn lists_pids(file: &Path) -> bool {
    fs::read_to_string(file).is_ok_and(|list| cgroupfs::lists_pids(&list))
}

impl Layout {
    /// # Errors
    /// If `/proc/self/mountinfo` cannot be read.
    pub fn read() -> io::Result<Self> {
        let mounts = fs::read("/proc/self/mountinfo")?;
        Ok(Self::parse(&mounts, |unified| lists_pids(&unified.join("cgroup.controllers"))))
    }

    /// Parses `mountinfo`. `unified_has_pids` returns whether the version 2 root lists the pids
    /// controller.
    #[must_use]
    pub fn parse(mountinfo: &[u8], unified_has_pids: impl Fn(&Path) -> bool) -> Self {
        let mut unified = None;
        let (mut v1_pids, mut v1_freezer) = (None, None);
        let mut any_v1 = false;
        let mut nsdelegate = None;
        for line in mountinfo.split(|byte| *byte == b'\n') {
            let Some(mount) = Mount::parse(line) else { continue };
            match mount.kind {
                // If a hierarchy is mounted several times, the first mount is the host's usual one.
                b"cgroup2" if unified.is_none() => {
                    nsdelegate = Some(mount.has(b"nsdelegate"));
                    unified = Some(mount.point);
                }
                b"cgroup" => {
                    any_v1 = true;
                    if mount.has(b"freezer") {
                        v1_freezer = v1_freezer.or(Some(mount.point.clone()));
                    }
                    if mount.has(b"pids") {
                        v1_pids = v1_pids.or(Some(mount.point));
                    }
                }
                _ => {}
            }
        }
        let kind = match (&unified, any_v1) {
            (Some(_), false) => LayoutKind::Unified,
            (Some(_), true) => LayoutKind::Hybrid,
            (None, true) => LayoutKind::Legacy,
            (None, false) => LayoutKind::None,
        };
        let pids = match (v1_pids, &unified) {
            (Some(mount), _) => Some(PidsTree { mount, v1: true }),
            (None, Some(mount)) if unified_has_pids(mount) => {
                Some(PidsTree { mount: mount.clone(), v1: false })
            }
            (None, _) => None,
        };
        Self { kind, unified, pids, v1_freezer, nsdelegate }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: &str = "30 24 0:26 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw,nsdelegate";
    const HYBRID: &str = "31 24 0:27 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
        32 24 0:28 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n\
        33 24 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";

    fn parse(text: &str, pids_in_v2: bool) -> Layout {
        Layout::parse(text.as_bytes(), |_| pids_in_v2)
    }

    #[test]
    fn each_layout_is_recognised() {
        let v2 = parse(V2, true);
        assert_eq!(v2.kind, LayoutKind::Unified);
        assert_eq!(v2.pids, Some(PidsTree { mount: "/sys/fs/cgroup".into(), v1: false }));
        assert_eq!(parse(V2, false).pids, None, "pids disabled at boot");

        let hybrid = parse(HYBRID, false);
        assert_eq!(hybrid.kind, LayoutKind::Hybrid);
        assert_eq!(hybrid.unified, Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(hybrid.pids, Some(PidsTree { mount: "/sys/fs/cgroup/pids".into(), v1: true }));

        assert_eq!(
            (v2.v1_freezer, hybrid.v1_freezer),
            (None, Some("/sys/fs/cgroup/freezer".into()))
        );

        let legacy = parse(HYBRID.rsplit_once('\n').map_or("", |(rest, _)| rest), false);
        assert_eq!((legacy.kind, legacy.unified), (LayoutKind::Legacy, None));
        assert_eq!(parse("", false).kind, LayoutKind::None);
    }

    #[test]
    fn a_version_2_root_may_not_enable_the_controller_for_its_children() {
        let root = tempfile::tempdir().expect("a directory");
        let tree = |v1| PidsTree { mount: root.path().to_owned(), v1 };
        assert!(tree(true).is_handed_down());
        for (list, expected) in [("", false), ("cpu memory\n", false), ("cpu pids\n", true)] {
            fs::write(root.path().join("cgroup.subtree_control"), list).expect("a file");
            assert_eq!(tree(false).is_handed_down(), expected, "{list:?}");
        }
    }

    #[test]
    fn special_characters_in_mount_points_are_unescaped() {
        let odd = "30 24 0:26 / /mnt/a\\040b\\134c rw - cgroup2 none rw";
        assert_eq!(parse(odd, false).unified, Some("/mnt/a b\\c".into()));
        assert_eq!(parse("garbage\n\n30 24", false).kind, LayoutKind::None);
    }
}
