//! One agent per run directory, which is one per host unless a test says otherwise.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use mcp_guard_core::id::Pid;
use rustix::{
    fs::{FlockOperation, fcntl_lock},
    io::Errno,
    process::{Flock, FlockType, fcntl_getlk},
};

/// Where the agent keeps its lock and its socket.
pub const DEFAULT_RUN_DIR: &str = "/run/mcp-guard";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("another agent is running: {holder} holds {path}; see `mcp-guard status`")]
    Held { holder: String, path: String },
    #[error("cannot take the lock {path}: {source}")]
    Io { path: String, source: io::Error },
}

/// The agent's lock, held as long as this value lives. The kernel releases it however the process ends.
///
/// It is a record lock (fcntl(2)). Unlike with flock(2), it can be tested without taking it, and the kernel
/// names its holder. In return, a process that closes any other descriptor of the file releases it, so the
/// agent opens the file only once.
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock without waiting.
    ///
    /// # Errors
    /// Another agent holds the lock, or its file cannot be created.
    pub fn take(run_dir: &Path) -> Result<Self, Error> {
        let path = file(run_dir);
        let io = |source| Error::Io { path: path.display().to_string(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(run_dir).map_err(io)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&path).map_err(io)?;
        match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { _file: file }),
            Err(Errno::AGAIN | Errno::ACCESS) => {
                let pid = asked(&file).map_err(io)?;
                let holder = pid.map_or("a process that has just ended".to_owned(), |pid| {
                    format!("process {pid}")
                });
                Err(Error::Held { holder, path: path.display().to_string() })
            }
            Err(error) => Err(io(error.into())),
        }
    }
}

/// Returns whether an agent in another process holds the lock.
#[must_use]
pub fn is_held(run_dir: &Path) -> bool {
    holder(run_dir).is_some()
}

/// Returns the pid of the lock's holder in our pid namespace; 0 if it has none there.
#[must_use]
pub fn holder(run_dir: &Path) -> Option<Pid> {
    let file = File::open(file(run_dir)).ok()?;
    asked(&file).ok()?
}

fn asked(file: &File) -> io::Result<Option<Pid>> {
    let found = fcntl_getlk(file, &Flock::from(FlockType::WriteLock))?;
    Ok(found.map(|lock| Pid(rustix::process::Pid::as_raw(lock.pid).unsigned_abs())))
}

fn file(run_dir: &Path) -> PathBuf {
    run_dir.join("agent.lock")
}

#[must_use]
pub fn socket(run_dir: &Path) -> PathBuf {
    run_dir.join("control.sock")
}
