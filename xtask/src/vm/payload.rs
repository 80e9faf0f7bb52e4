//! The plan, the runner and the programs for a guest, as a second disk or as an initial file system.

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

/// The mount points that a kernel-only guest needs in addition to the standard folders.
const PLACES: [&str; 2] = ["dev", "run"];

/// A folder that becomes a disk or an initial file system. Removed on drop.
pub struct Payload {
    folder: TempDir,
}

impl Payload {
    /// Creates a payload with only the runner.
    pub fn new() -> Result<Self> {
        fs::create_dir_all(store()).context("cannot create target/vm")?;
        let prefix = this_run::prefix(this_run::RUN);
        let folder = tempfile::Builder::new().prefix(&prefix).tempdir_in(store());
        let folder = folder.context("cannot create a folder in target/vm")?;
        let made = Self { folder };
        fs::create_dir_all(made.inside("bin")).context("cannot create the payload")?;
        made.link(&programs::runner()?, "guest-runner")?;
        Ok(made)
    }

    /// Adds the package, the workloads, and the test programs that a plan names.
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
            // For its containers: their image has the libraries of this host.
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

    /// Adds a file, as a hard link if possible.
    pub fn link(&self, file: &Path, name: &str) -> Result<()> {
        let inside = self.inside(name);
        let done = fs::hard_link(file, &inside).or_else(|_| fs::copy(file, &inside).map(drop));
        done.with_context(|| format!("cannot add {} to the payload", file.display()))
    }

    /// Adds a script, replacing a file of that name.
    pub fn replace(&self, name: &str, text: &str) -> Result<()> {
        let inside = self.inside(name);
        // Removed first, because it may be a hard link to a file that cargo built.
        let _ = fs::remove_file(&inside);
        fs::write(&inside, text).with_context(|| inside.display().to_string())?;
        fs::set_permissions(&inside, fs::Permissions::from_mode(0o755))
            .with_context(|| inside.display().to_string())
    }

    /// Makes a disk of the payload, and returns its path in the payload's folder.
    pub fn disk(&self, plan: &Plan) -> Result<PathBuf> {
        self.write(plan)?;
        let disk = self.folder.path().join("payload.img");
        system::disk(&self.folder.path().join("payload"), &disk, "4G")?;
        Ok(disk)
    }

    /// Makes an initial file system of the payload, with busybox, and with the runner as its first
    /// process.
    pub fn initrd(&self, plan: &Plan) -> Result<PathBuf> {
        self.write(plan)?;
        let root = self.folder.path().join("root");
        docker::add_busybox(&root)?;
        for place in PLACES {
            fs::create_dir_all(root.join(place))
                .with_context(|| format!("cannot create {place}"))?;
        }
        fs::rename(self.folder.path().join("payload"), root.join("payload"))
            .context("cannot move the payload")?;
        symlink("payload/guest-runner", root.join("init"))
            .context("cannot create the link init")?;
        let file = self.folder.path().join("initrd");
        kernel::initrd(&root, &file)?;
        Ok(file)
    }

    /// Returns the path of the console's log.
    pub fn console(&self) -> PathBuf {
        self.folder.path().join("console.log")
    }

    fn write(&self, plan: &Plan) -> Result<()> {
        let text = serde_json::to_vec(plan).context("cannot serialize the plan")?;
        fs::write(self.inside(PLAN), text).context("cannot write the plan")
    }
}
