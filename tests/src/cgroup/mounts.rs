//! Where this host keeps the cgroup2 tree and the pids controller.

use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mounts {
    pub unified: PathBuf,
    /// The same as `unified` where pids is a v2 controller.
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
            // A bind mount of a subtree would give other paths than /proc/PID/cgroup does.
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

/// The one change outside a fixture's own cgroup: without it no child of the root has a pids.max.
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
    fn hybrid_has_two_trees() {
        let mounts = parse(&[V1_PIDS, V2_PART, V2]).unwrap();
        assert_eq!(mounts.unified.to_str(), Some("/sys/fs/cgroup/unified"));
        assert_eq!(mounts.pids.to_str(), Some("/sys/fs/cgroup/pids"));
    }

    #[test]
    fn pure_v2_has_one() {
        let mounts = parse(&[V2]).unwrap();
        assert_eq!(mounts.pids, mounts.unified);
    }

    #[test]
    fn without_v2_there_is_no_fixture() {
        assert!(parse(&[V1_PIDS]).is_err());
        assert!(parse(&[V2_PART]).is_err());
    }
}
