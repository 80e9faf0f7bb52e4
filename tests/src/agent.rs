//! The agent under test, in its own process.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use mcp_guard::control::wire::{Servers, Status, WatchedStatus};
use mcp_guard_core::audit::{Line, Record};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::{wait, workload};

/// The longest that a test waits for anything. An emulated guest is ten times slower than a host.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// How long an engine may take to answer. The default is too short for a slow host.
pub const ENGINE_TIMEOUT: [&str; 2] = ["--engine-timeout", "60s"];

/// A running agent with its own lock, socket, policy and audit log.
///
/// Stopped and removed on drop, by SIGTERM if possible.
pub struct Agent {
    child: Child,
    folder: tempfile::TempDir,
    docker: String,
}

impl Agent {
    /// Starts an agent and waits until it answers.
    pub fn start(policy: &str) -> anyhow::Result<Self> {
        Self::start_with(policy, "/nonexistent", &[])
    }

    /// Starts an agent with an engine's socket and more arguments for `run`.
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
            // 1: the agent may already have left a limit alone.
            Ok(matches!(agent.cli(&["status", "--json"])?.status.code(), Some(0 | 1)))
        })?;
        Ok(agent)
    }

    /// Starts another agent in the same folder, as after a crash. This one must have ended.
    pub fn restart(mut self, policy: &str) -> anyhow::Result<Self> {
        ensure!(self.child.try_wait()?.is_some(), "the first agent is still running");
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
            .with_context(|| format!("no status: {}", String::from_utf8_lossy(&output.stderr)))
    }

    /// Returns the servers of a target, given by the path of its cgroup; of all guards without it.
    pub fn servers(&self, target: &[&str]) -> anyhow::Result<Servers> {
        let targets: Vec<String> = target.iter().map(|path| format!("cgroup:{path}")).collect();
        let mut arguments = vec!["status", "--servers", "--json"];
        arguments.extend(targets.iter().map(String::as_str));
        let output = self.cli(&arguments)?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("no servers: {}", String::from_utf8_lossy(&output.stderr)))
    }

    /// Returns the guard of a cgroup.
    pub fn guard(&self, cgroup_id: u64) -> anyhow::Result<WatchedStatus> {
        let mut guards = self.status()?.guards.into_iter();
        guards.find(|guard| guard.cgroup_id.0 == cgroup_id).context("the cgroup is not guarded")
    }

    /// Returns the audit records written so far.
    pub fn audit(&self) -> anyhow::Result<Vec<Record>> {
        let text = fs::read_to_string(self.audit_path())?;
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let lines = whole.lines().map(serde_json::from_str::<Line>);
        Ok(lines.collect::<Result<Vec<_>, _>>()?.into_iter().map(|line| line.record).collect())
    }

    /// Waits for the first record for which `find` returns a value.
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
        found.context("the record is gone")
    }

    pub fn wait_until(
        &mut self,
        what: &str,
        mut reached: impl FnMut(&mut Self) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        if !wait::until(DEADLINE, || reached(self))? {
            bail!("did not happen within {DEADLINE:?}: {what}\n{}", self.log());
        }
        Ok(())
    }

    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// Waits until the agent has ended.
    pub fn ended(&mut self) -> anyhow::Result<ExitStatus> {
        let mut status = None;
        self.wait_until("the agent ends", |agent| {
            status = agent.child.try_wait()?;
            Ok(status.is_some())
        })?;
        status.context("the agent has no exit status")
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

    /// Sends raw bytes, then reads up to `count` replies, or fewer if the agent closes the connection.
    pub fn converse(&self, bytes: &[u8], count: usize) -> anyhow::Result<Vec<Value>> {
        let mut stream = UnixStream::connect(self.socket())?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.write_all(bytes)?;
        let replies = BufReader::new(stream).split(0).take(count);
        replies.map(|reply| Ok(serde_json::from_slice(&reply?)?)).collect()
    }

    /// Makes one call and returns its reply.
    pub fn call(&self, method: &str, parameters: &Value) -> anyhow::Result<Value> {
        let mut message =
            serde_json::to_vec(&json!({ "method": method, "parameters": parameters }))?;
        message.push(0);
        self.converse(&message, 1)?.pop().context("the agent closed the connection")
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
        // If SIGTERM did not end it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns a command that runs the CLI with its files in `folder`.
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
