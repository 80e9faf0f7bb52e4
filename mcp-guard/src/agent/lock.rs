//! One agent per run directory, which is one per host unless a test says otherwise.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{Read as _, Seek as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

/// Where the agent keeps its lock and its socket.
pub const DEFAULT_RUN_DIR: &str = "/run/mcp-guard";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("another agent runs: process {pid} holds {path}; `mcp-guard status` asks it")]
    Held { pid: String, path: String },
    #[error("{path}: {source}")]
    Io { path: String, source: std::io::Error },
}

/// Held as long as this lives; the kernel lets go when the process ends, however it ends.
pub struct Lock {
    _file: File,
}

impl Lock {
    /// # Errors
    /// Another agent holds it.
    pub fn take(run_dir: &Path) -> Result<Self, Error> {
        let path = run_dir.join("agent.lock");
        let io = |source| Error::Io { path: path.display().to_string(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(run_dir).map_err(io)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(io)?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut pid = String::new();
            file.read_to_string(&mut pid).map_err(io)?;
            let pid = pid.trim().to_owned();
            return Err(Error::Held { pid, path: path.display().to_string() });
        }
        file.set_len(0).and_then(|()| file.rewind()).map_err(io)?;
        writeln!(file, "{}", std::process::id()).map_err(io)?;
        Ok(Self { _file: file })
    }
}

/// Whether an agent holds the lock.
#[must_use]
pub fn is_held(run_dir: &Path) -> bool {
    fs::File::open(run_dir.join("agent.lock"))
        .is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockShared).is_err())
}

#[must_use]
pub fn socket(run_dir: &Path) -> PathBuf {
    run_dir.join("control.sock")
}
