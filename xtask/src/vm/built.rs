//! An image that is made: its folder below `target/vm`, and the files in it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use tempfile::NamedTempFile;

use crate::{program, this_run, workspace};

/// The kernel inside of an image's folder.
pub const KERNEL: &str = "vmlinuz";
/// Its initial file system.
pub const INITRD: &str = "initrd.img";
/// The disk of an image with systemd.
pub const DISK: &str = "disk.img";

/// A finished image.
pub struct Built {
    folder: PathBuf,
}

impl Built {
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn kernel(&self) -> PathBuf {
        self.folder.join(KERNEL)
    }

    pub fn initrd(&self) -> PathBuf {
        self.folder.join(INITRD)
    }

    /// A disk to write to; gone when dropped.
    pub fn copy_of_disk(&self) -> Result<NamedTempFile> {
        let copy =
            tempfile::Builder::new().prefix(&this_run::prefix(this_run::RUN)).tempfile_in(store());
        let copy = copy.context("cannot make a file in target/vm")?;
        let mut cp = Command::new("cp");
        cp.args(["--sparse=always", "--reflink=auto"]).arg(self.disk()).arg(copy.path());
        program::quietly(&mut cp)?;
        Ok(copy)
    }

    pub fn disk(&self) -> PathBuf {
        self.folder.join(DISK)
    }
}

/// Where everything of the guests is kept.
pub fn store() -> PathBuf {
    workspace::target().join("vm")
}
