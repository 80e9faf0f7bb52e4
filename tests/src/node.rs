//! Real node processes that look like launched MCP servers, and that have not used their thread pool
//! yet.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::{cgroup::FixtureCgroup, leak::PACKAGE, lines::Lines};

/// Threads in libuv's pool. All of them are created when the pool is first used.
pub const POOL: u64 = 4;

/// Uses the pool on SIGUSR2 and reports it. The report is written synchronously, without the pool.
const SERVER: &str = "
const { pbkdf2 } = require('crypto');
const { writeSync } = require('fs');
process.on('SIGUSR2', () => {
  let left = 4;
  for (let n = 0; n < 4; n += 1) {
    pbkdf2('a', 'b', 1000, 16, 'sha256', () => { if (--left === 0) writeSync(1, 'used\\n'); });
  }
});
setInterval(() => {}, 1 << 30);
writeSync(1, 'ready\\n');
";

/// The script that the servers run. Its name makes their argv `node .../npx -y PACKAGE`.
pub struct Script {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl Script {
    pub fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("npx");
        fs::write(&path, SERVER)?;
        Ok(Self { _folder: folder, path })
    }
}

/// One server. Killed and reaped on drop.
pub struct Server {
    child: Child,
    said: Lines,
}

impl Server {
    /// Starts a server and waits until it is idle.
    pub fn start(cgroup: &FixtureCgroup, script: &Script) -> Result<Self> {
        let mut node = Command::new(node()?);
        node.arg0("node").arg(&script.path).args(["-y", PACKAGE]);
        node.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = cgroup.spawn(node)?;
        let said = Lines::of(child.stdout.take().context("node has no stdout")?);
        let mut server = Self { child, said };
        ensure!(server.says("ready")?, "node ended early: {:?}", server.child.wait());
        Ok(server)
    }

    /// Makes the server use its thread pool for the first time.
    pub fn use_pool(&self) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), Signal::USR2)?)
    }

    /// Waits until the server has used its pool. Returns false if it ended instead.
    pub fn has_used_pool(&self) -> Result<bool> {
        self.says("used")
    }

    fn says(&self, word: &str) -> Result<bool> {
        let line = self.said.next()?;
        ensure!(line.as_ref().is_none_or(|line| line == word), "node said {line:?}, not {word}");
        Ok(line.is_some())
    }

    pub fn threads(&self) -> Result<u64> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id()))?;
        Ok(tasks.count() as u64)
    }

    /// Kills the server and returns its exit status. If it had already ended, returns that status.
    pub fn end(mut self) -> Result<ExitStatus> {
        self.child.kill()?;
        Ok(self.child.wait()?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn node() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").context("PATH is not set")?;
    let found = std::env::split_paths(&path).map(|dir| dir.join("node"));
    found.into_iter().find(|file: &PathBuf| Path::is_file(file)).context("node is not installed")
}
