//! The demo's agent: starts it, asks for its status, and reads its audit. All uses of its status
//! fields are here.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::audit::Audit;
use super::container;
use crate::say::complain;
use crate::{program, workspace};

pub struct Agent {
    child: Child,
    folder: tempfile::TempDir,
    /// How many lines of the audit were already returned.
    audit_seen: usize,
}

/// The agent's status of the guarded container.
pub struct View {
    pub state: String,
    pub live: u64,
    /// Sorted.
    pub pids: Vec<u32>,
}

impl Agent {
    pub fn start(socket: &Path, response: &str) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("mcp-guard-test-demo-")
            .tempdir()
            .context("cannot create a folder for the agent")?;
        let file = |name: &str| folder.path().join(name);
        fs::write(file("policy.toml"), policy(response)).context("cannot write the policy")?;
        let log = File::create(file("agent.log")).context("cannot create the agent's log")?;
        let child = command(folder.path())
            .args(["run", "--policy"])
            .arg(file("policy.toml"))
            .arg("--audit")
            .arg(file("audit.jsonl"))
            .arg("--docker")
            .arg(socket)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("cannot share the agent's log")?)
            .stderr(log)
            .spawn()
            .context("cannot start the agent")?;
        Ok(Self { child, folder, audit_seen: 0 })
    }

    /// Waits until the agent's status shows the container as guarded.
    pub fn wait_until_it_guards(&mut self, name: &str) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(20) {
            self.check_alive()?;
            if self.view(name, container::IDENTITY).is_some() {
                return Ok(());
            }
            sleep(Duration::from_millis(100));
        }
        self.show_log();
        bail!("the agent does not guard {name}")
    }

    /// Returns the status of a container, or None if the agent does not answer or does not know the
    /// container.
    pub fn view(&self, name: &str, identity: &str) -> Option<View> {
        let mut status = command(self.folder.path());
        let text = program::output(status.args(["status", "--json"])).ok()?;
        view(&serde_json::from_str(&text).ok()?, name, identity)
    }

    pub fn new_audit_lines(&mut self) -> Result<Vec<String>> {
        let lines = self.audit_lines()?;
        let new = lines.get(self.audit_seen..).unwrap_or_default().to_vec();
        self.audit_seen = lines.len();
        Ok(new)
    }

    pub fn check_alive(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait().context("cannot check the agent")? {
            self.show_log();
            bail!("the agent ended with {status}");
        }
        Ok(())
    }

    /// Stops the agent and reads its whole audit. Returns an error if the agent does not end or does
    /// not exit with 0.
    pub fn stop(mut self) -> Result<Audit> {
        self.check_alive()?;
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).context("cannot send SIGTERM to the agent")?;
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(20) {
            if let Some(status) = self.child.try_wait().context("cannot check the agent")? {
                if !status.success() {
                    self.show_log();
                    bail!("the agent ended with {status}");
                }
                return Ok(Audit { lines: self.audit_lines()? });
            }
            sleep(Duration::from_millis(50));
        }
        self.show_log();
        bail!("the agent did not end within 20 s after SIGTERM")
    }

    /// Returns the complete lines: the last one may be partly written.
    fn audit_lines(&self) -> Result<Vec<String>> {
        let file = self.folder.path().join("audit.jsonl");
        let text = if file.is_file() {
            fs::read_to_string(&file).context("cannot read the audit")?
        } else {
            String::new()
        };
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        Ok(whole.lines().map(str::to_owned).collect())
    }

    fn show_log(&self) {
        let log = fs::read_to_string(self.folder.path().join("agent.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        for line in &lines[lines.len().saturating_sub(20)..] {
            complain(&format!("agent: {line}"));
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // SIGTERM first, so that it releases its holds. The container is removed afterwards.
            let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
            sleep(Duration::from_secs(2));
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn command(folder: &Path) -> Command {
    let mut command = Command::new(workspace::agent());
    command.arg("--run-dir").arg(run_dir(folder));
    command
}

fn run_dir(folder: &Path) -> PathBuf {
    folder.join("run")
}

/// Returns the demo's policy. The ages are short, so that the demo takes seconds, and the burst
/// thresholds are too high for the client to reach.
fn policy(response: &str) -> String {
    format!(
        r#"mode = "enforce"

[detect.duplicates]
warn = 3
warn_age = "1s"
act = 6
act_age = "3s"
response = "{response}"

[detect.burst]
warn_10s = 100
warn_60s = 100

[[guard]]
name = "{name}"
highest = "kill"
"#,
        name = container::NAME
    )
}

fn view(status: &Value, name: &str, identity: &str) -> Option<View> {
    let guards = status.get("guards")?.as_array()?;
    let guard = guards.iter().find(|guard| guard["name"] == name)?;
    let pids = guard["pids"].as_array()?.iter().filter_map(Value::as_u64);
    let mut pids: Vec<u32> = pids.filter_map(|pid| u32::try_from(pid).ok()).collect();
    pids.sort_unstable();
    let live = guard["identities"][identity]["live"].as_u64().unwrap_or(0);
    Some(View { state: guard["state"].as_str()?.to_owned(), live, pids })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_read() {
        let status = serde_json::json!({"guards": [{"name": "demo", "state": "frozen",
            "pids": [9, 7], "identities": {"magic": {"live": 2}}}]});
        let view = view(&status, "demo", "magic").unwrap();
        assert_eq!((view.state.as_str(), view.live, view.pids), ("frozen", 2, vec![7, 9]));
    }
}
