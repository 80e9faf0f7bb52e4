//! A built image: its folder below `target/vm`, and the files in it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use tempfile::NamedTempFile;

use crate::{program, this_run, workspace};

/// The kernel in an image's folder.
pub const KERNEL: &str = "vmlinuz";
/// The initial file system in an image's folder.
pub const INITRD: &str = "initrd.img";
/// The disk in the folder of an image with systemd.
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

    /// Makes a writable copy of the disk. Removed on drop.
    pub fn copy_of_disk(&self) -> Result<NamedTempFile> {
        let copy =
            tempfile::Builder::new().prefix(&this_run::prefix(this_run::RUN)).tempfile_in(store());
        let copy = copy.context("cannot create a file in target/vm")?;
        let mut cp = Command::new("cp");
        cp.args(["--sparse=always", "--reflink=auto"]).arg(self.disk()).arg(copy.path());
        program::quietly(&mut cp)?;
        Ok(copy)
    }

    pub fn disk(&self) -> PathBuf {
        self.folder.join(DISK)
    }
}

/// Returns the folder with all files of the guests.
pub fn store() -> PathBuf {
    workspace::target().join("vm")
}
