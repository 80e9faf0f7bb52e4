//! A separate file system for the audit log, which can be frozen, as a snapshot does.

use std::{fs::File, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};

const BYTES: u64 = 16 << 20;

/// Thawed and unmounted on drop.
pub struct LogDisk {
    folder: tempfile::TempDir,
}

impl LogDisk {
    pub fn new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("mcp-guard-test-").tempdir()?;
        let disk = Self { folder };
        let image = disk.folder.path().join("image");
        File::create(&image)?.set_len(BYTES)?;
        std::fs::create_dir(disk.path())?;
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(disk.path()))?;
        Ok(disk)
    }

    /// Returns the mount point.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("mounted")
    }

    /// Blocks every write until [`LogDisk::thaw`].
    pub fn freeze(&self) -> Result<()> {
        run(Command::new("fsfreeze").arg("-f").arg(self.path()))
    }

    pub fn thaw(&self) -> Result<()> {
        run(Command::new("fsfreeze").arg("-u").arg(self.path()))
    }
}

impl Drop for LogDisk {
    fn drop(&mut self) {
        // Both may have been done already.
        let _ = self.thaw();
        let _ = run(Command::new("umount").arg("-l").arg(self.path()));
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
