//! The agent under test, in a process of its own.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use mcp_guard::control::wire::{Status, WatchedStatus};
use mcp_guard_core::audit::{Line, Record};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::{wait, workload};

/// Every wait of a test ends by then; an emulated guest takes ten times as long as a host.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// How long an engine may take: on a slow host that is more than the default.
pub const ENGINE_TIMEOUT: [&str; 2] = ["--engine-timeout", "60s"];

/// A running agent with its own lock, socket, policy and audit log. Ended and removed on drop, in
/// order where it still can.
pub struct Agent {
    child: Child,
    folder: tempfile::TempDir,
    docker: String,
}

impl Agent {
    /// Starts one and waits until it answers.
    pub fn start(policy: &str) -> anyhow::Result<Self> {
        Self::start_with(policy, "/nonexistent", &[])
    }

    /// The same with an engine's socket and more arguments of `run`.
    pub fn start_with(policy: &str, docker: &str, more: &[&str]) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("mcp-guard-test-").tempdir()?;
        Self::start_in(folder, policy, docker, more)
    }

    fn start_in(
        folder: tempfile::TempDir,
        policy: &str,
        docker: &str,
        more: &[&str],
    ) -> anyhow::Result<Self> {
        fs::write(folder.path().join("policy.toml"), policy)?;
        let log = fs::File::create(folder.path().join("agent.log"))?;
        let child = command(folder.path(), docker)?
            .args(["run", "--policy"])
            .arg(folder.path().join("policy.toml"))
            .args(more)
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()?;
        let mut agent = Self { child, folder, docker: docker.to_owned() };
        agent.wait_until("the agent answers", |agent| {
            if let Some(status) = agent.child.try_wait()? {
                bail!("the agent ended early with {status}: {}", agent.log());
            }
            // 1: a limit may be left alone by then.
            Ok(matches!(agent.cli(&["status", "--json"])?.status.code(), Some(0 | 1)))
        })?;
        Ok(agent)
    }

    /// Starts another agent in the same place, as after a crash; this one must have ended.
    pub fn restart(mut self, policy: &str) -> anyhow::Result<Self> {
        ensure!(self.child.try_wait()?.is_some(), "the first agent still runs");
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir()?);
        let docker = self.docker.clone();
        drop(self);
        Self::start_in(folder, policy, &docker, &[])
    }

    /// Runs the CLI against this agent.
    pub fn cli(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let output = command(self.folder.path(), &self.docker)?.args(arguments).output()?;
        Ok(output)
    }

    pub fn status(&self) -> anyhow::Result<Status> {
        let output = self.cli(&["status", "--json"])?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("status: {}", String::from_utf8_lossy(&output.stderr)))
    }

    /// The guard of a cgroup id.
    pub fn guard(&self, cgroup_id: u64) -> anyhow::Result<WatchedStatus> {
        let mut guards = self.status()?.guards.into_iter();
        guards.find(|guard| guard.cgroup_id.0 == cgroup_id).context("not guarded")
    }

    /// The audit log so far.
    pub fn audit(&self) -> anyhow::Result<Vec<Record>> {
        let text = fs::read_to_string(self.audit_path())?;
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let lines = whole.lines().map(serde_json::from_str::<Line>);
        Ok(lines.collect::<Result<Vec<_>, _>>()?.into_iter().map(|line| line.record).collect())
    }

    /// Waits for the first record for which `find` gives something.
    pub fn await_record<T>(
        &mut self,
        what: &str,
        find: impl Fn(&Record) -> Option<T>,
    ) -> anyhow::Result<T> {
        let mut found = None;
        self.wait_until(what, |agent| {
            found = agent.audit().unwrap_or_default().iter().find_map(&find);
            Ok(found.is_some())
        })?;
        found.context("waited for it")
    }

    pub fn wait_until(
        &mut self,
        what: &str,
        mut reached: impl FnMut(&mut Self) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        if !wait::until(DEADLINE, || reached(self))? {
            bail!("not within {DEADLINE:?}: {what}\n{}", self.log());
        }
        Ok(())
    }

    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// Waits for the agent's own end.
    pub fn ended(&mut self) -> anyhow::Result<ExitStatus> {
        let mut status = None;
        self.wait_until("the agent ends", |agent| {
            status = agent.child.try_wait()?;
            Ok(status.is_some())
        })?;
        status.context("waited for it")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn audit_path(&self) -> PathBuf {
        self.folder.path().join("audit.jsonl")
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("control.sock")
    }

    /// Sends bytes as they are, and reads replies until `count` came or the agent hangs up.
    pub fn converse(&self, bytes: &[u8], count: usize) -> anyhow::Result<Vec<Value>> {
        let mut stream = UnixStream::connect(self.socket())?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.write_all(bytes)?;
        let replies = BufReader::new(stream).split(0).take(count);
        replies.map(|reply| Ok(serde_json::from_slice(&reply?)?)).collect()
    }

    /// One call and its reply.
    pub fn call(&self, method: &str, parameters: &Value) -> anyhow::Result<Value> {
        let mut message =
            serde_json::to_vec(&json!({ "method": method, "parameters": parameters }))?;
        message.push(0);
        self.converse(&message, 1)?.pop().context("the agent hung up")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("agent.log")).unwrap_or_default()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.signal(Signal::TERM);
            let _ = self.ended();
        }
        // By its handle, where it did not end in order.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The CLI with its files in `folder`.
pub fn command(folder: &Path, docker: &str) -> anyhow::Result<Command> {
    let mut command = Command::new(workload("mcp-guard")?);
    command
        .arg("--run-dir")
        .arg(folder)
        .arg("--audit")
        .arg(folder.join("audit.jsonl"))
        .arg("--state-dir")
        .arg(folder.join("state"))
        .args(["--docker", docker])
        .args(ENGINE_TIMEOUT);
    Ok(command)
}
