//! Where this host mounts the cgroup2 tree and the pids controller.

use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mounts {
    pub unified: PathBuf,
    /// Equal to `unified` if pids is a v2 controller.
    pub pids: PathBuf,
}

impl Mounts {
    pub fn of_this_host() -> Result<Self> {
        let table = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
        let mounts = Self::parse(&table)?;
        if mounts.pids == mounts.unified {
            enable_pids(&mounts.unified)?;
        }
        Ok(mounts)
    }

    fn parse(table: &str) -> Result<Self> {
        let mut unified = None;
        let mut pids = None;
        for line in table.lines() {
            let Some((mount, system)) = line.split_once(" - ") else { continue };
            let mount: Vec<&str> = mount.split(' ').collect();
            let system: Vec<&str> = system.split(' ').collect();
            // Below a bind mount of a subtree, paths differ from those in /proc/PID/cgroup.
            let (Some(&"/"), Some(&point)) = (mount.get(3), mount.get(4)) else { continue };
            match (system.first(), system.get(2)) {
                (Some(&"cgroup2"), _) => unified = unified.or(Some(point)),
                (Some(&"cgroup"), Some(options)) if options.split(',').any(|o| o == "pids") => {
                    pids = pids.or(Some(point));
                }
                _ => {}
            }
        }
        let Some(unified) = unified else { bail!("no cgroup2 tree is mounted") };
        Ok(Self { unified: unified.into(), pids: pids.unwrap_or(unified).into() })
    }
}

/// Enables the pids controller for the children of the root, which have no pids.max otherwise.
///
/// This is the only change outside a fixture's own cgroup.
fn enable_pids(root: &Path) -> Result<()> {
    let control = root.join("cgroup.subtree_control");
    let enabled = fs::read_to_string(&control)?;
    if enabled.split_whitespace().any(|name| name == "pids") {
        return Ok(());
    }
    fs::write(&control, "+pids").with_context(|| format!("+pids > {}", control.display()))
}

#[cfg(test)]
mod tests {
    use super::Mounts;

    const V1_PIDS: &str = "39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids";
    const V2: &str = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 none rw";
    const V2_PART: &str = "50 31 0:38 /docker/1 /mnt/part rw - cgroup2 none rw";

    fn parse(lines: &[&str]) -> anyhow::Result<Mounts> {
        Mounts::parse(&lines.join("\n"))
    }

    #[test]
    fn a_hybrid_host_has_two_trees() {
        let mounts = parse(&[V1_PIDS, V2_PART, V2]).unwrap();
        assert_eq!(mounts.unified.to_str(), Some("/sys/fs/cgroup/unified"));
        assert_eq!(mounts.pids.to_str(), Some("/sys/fs/cgroup/pids"));
    }

    #[test]
    fn a_pure_v2_host_has_one_tree() {
        let mounts = parse(&[V2]).unwrap();
        assert_eq!(mounts.pids, mounts.unified);
    }

    #[test]
    fn a_host_without_v2_is_an_error() {
        assert!(parse(&[V1_PIDS]).is_err());
        assert!(parse(&[V2_PART]).is_err());
    }
}
