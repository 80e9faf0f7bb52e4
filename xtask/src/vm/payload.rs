//! What a guest gets: the plan, the runner, the programs, as a second disk or as an initial file
//! system.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use guest_runner::{PLAN, Plan};
use tempfile::TempDir;

use super::built::store;
use super::{kernel, system};
use crate::programs::{self, TestProgram};
use crate::{docker, program, this_run, workspace};

/// What the first process of a kernel-only guest mounts over, beside the folders of every root.
const PLACES: [&str; 2] = ["dev", "run"];

/// A folder that becomes a disk, removed when dropped.
pub struct Payload {
    folder: TempDir,
}

impl Payload {
    /// With the runner alone.
    pub fn new() -> Result<Self> {
        fs::create_dir_all(store()).context("cannot make target/vm")?;
        let prefix = this_run::prefix(this_run::RUN);
        let folder = tempfile::Builder::new().prefix(&prefix).tempdir_in(store());
        let folder = folder.context("cannot make a folder in target/vm")?;
        let made = Self { folder };
        fs::create_dir_all(made.inside("bin")).context("cannot make the payload")?;
        made.link(&programs::runner()?, "guest-runner")?;
        Ok(made)
    }

    /// With the package as it is installed, and the programs that a plan names.
    pub fn with_programs(&self, built: &programs::Built, plan: &Plan) -> Result<()> {
        let named =
            |program: &&TestProgram| plan.tests.iter().any(|test| test.program == program.name);
        for program in built.tests.iter().filter(named) {
            self.link(&program.path, &format!("bin/{}", program.name))?;
        }
        for (name, path) in &built.workloads {
            self.link(path, &format!("bin/{name}"))?;
        }
        self.link(&built.agent, "mcp-guard")?;
        if plan.tests.iter().any(|test| test.program == "docker_launcher") {
            // For its containers, whose image has the libraries of this host.
            self.link(Path::new("/bin/dash"), "bin/dash")?;
        }
        let package = workspace::root().join("package");
        program::quietly(
            Command::new("cp").arg("--archive").arg(&package).arg(self.inside("package")),
        )
    }

    fn inside(&self, name: &str) -> PathBuf {
        self.folder.path().join("payload").join(name)
    }

    /// Puts a file in; a hard link where that is possible.
    pub fn link(&self, file: &Path, name: &str) -> Result<()> {
        let inside = self.inside(name);
        let done = fs::hard_link(file, &inside).or_else(|_| fs::copy(file, &inside).map(drop));
        done.with_context(|| format!("cannot put {} into the payload", file.display()))
    }

    /// Puts a program of a few lines in, in the place of another of that name.
    pub fn replace(&self, name: &str, text: &str) -> Result<()> {
        let inside = self.inside(name);
        // Never written through: it may be a hard link to what cargo built.
        let _ = fs::remove_file(&inside);
        fs::write(&inside, text).with_context(|| inside.display().to_string())?;
        fs::set_permissions(&inside, fs::Permissions::from_mode(0o755))
            .with_context(|| inside.display().to_string())
    }

    /// As a disk; it lies in the folder of the payload.
    pub fn disk(&self, plan: &Plan) -> Result<PathBuf> {
        self.write(plan)?;
        let disk = self.folder.path().join("payload.img");
        system::disk(&self.folder.path().join("payload"), &disk, "4G")?;
        Ok(disk)
    }

    /// As an initial file system with busybox and the runner as its first process.
    pub fn initrd(&self, plan: &Plan) -> Result<PathBuf> {
        self.write(plan)?;
        let root = self.folder.path().join("root");
        docker::add_busybox(&root)?;
        for place in PLACES {
            fs::create_dir_all(root.join(place)).with_context(|| format!("cannot make {place}"))?;
        }
        fs::rename(self.folder.path().join("payload"), root.join("payload")).context("payload")?;
        symlink("payload/guest-runner", root.join("init")).context("init")?;
        let file = self.folder.path().join("initrd");
        kernel::initrd(&root, &file)?;
        Ok(file)
    }

    /// Where the console of the run is kept while it runs.
    pub fn console(&self) -> PathBuf {
        self.folder.path().join("console.log")
    }

    fn write(&self, plan: &Plan) -> Result<()> {
        let text = serde_json::to_vec(plan).context("the plan")?;
        fs::write(self.inside(PLAN), text).context("cannot write the plan")
    }
}
