//! A quota of a small share of a CPU: `docker run --cpus=0.01` sets one percent.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::cgroup::FixtureCgroup;

const V1: &str = "/sys/fs/cgroup/cpu";
/// The least quota that the kernel takes.
const QUOTA_US: u64 = 1_000;
/// One percent.
pub const PERCENT: Duration = Duration::from_millis(100);
/// A tenth of a percent.
pub const PER_MILLE: Duration = Duration::from_secs(1);

/// The processes of a scratch cgroup share a quota. Lifted on drop.
pub struct CpuQuota {
    /// The file that has the quota, and its value for none.
    file: PathBuf,
    none: &'static str,
    /// A cgroup of the version 1 cpu tree, with the processes.
    v1: Option<PathBuf>,
}

impl CpuQuota {
    /// Throttles the processes that are in `cgroup` now to a millisecond per `period`.
    pub fn over(cgroup: &FixtureCgroup, period: Duration) -> Result<Self> {
        let top = Path::new(V1);
        if !top.exists() {
            return Self::v2(cgroup, period);
        }
        let dir = top.join(cgroup.path().trim_start_matches('/'));
        fs::create_dir(&dir).with_context(|| dir.display().to_string())?;
        let file = dir.join("cpu.cfs_quota_us");
        let quota = Self { file, none: "-1", v1: Some(dir.clone()) };
        write(&dir.join("cpu.cfs_period_us"), &period.as_micros().to_string())?;
        for pid in cgroup.procs()? {
            write(&dir.join("cgroup.procs"), &pid.to_string())?;
        }
        // Last: a throttled process is slow to move.
        write(&quota.file, &QUOTA_US.to_string())?;
        Ok(quota)
    }

    fn v2(cgroup: &FixtureCgroup, period: Duration) -> Result<Self> {
        let file = cgroup.unified_dir().join("cpu.max");
        if !file.exists() {
            let root = cgroup.unified_dir().parent().context("the root of the tree")?;
            write(&root.join("cgroup.subtree_control"), "+cpu")?;
        }
        ensure!(file.exists(), "the cpu controller is not enabled");
        write(&file, &format!("{QUOTA_US} {}", period.as_micros()))?;
        Ok(Self { file, none: "max", v1: None })
    }

    pub fn lift(&self) -> Result<()> {
        write(&self.file, self.none)
    }
}

impl Drop for CpuQuota {
    fn drop(&mut self) {
        let _ = self.lift();
        let Some(dir) = &self.v1 else { return };
        let procs = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        for pid in procs.lines() {
            let _ = write(&Path::new(V1).join("cgroup.procs"), pid);
        }
        // A process that ends may still be charged. The fixture that owns it waits for it.
        for _ in 0..1000 {
            match fs::remove_dir(dir) {
                Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
                Ok(()) | Err(_) => return,
            }
        }
    }
}

fn write(file: &Path, value: &str) -> Result<()> {
    fs::write(file, value).with_context(|| format!("{value} > {}", file.display()))
}
