//! The agent as the package's systemd unit, in a guest where the package is installed.

pub mod scenes;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{ErrorKind, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail, ensure};
use mcp_guard::control::wire::{Status, WatchedStatus};
use mcp_guard_core::audit::{Line, Record};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait;

pub const UNIT: &str = "mcp-guard.service";
/// The unit that releases the holds if the main unit could not.
pub const THAW: &str = "mcp-guard-thaw.service";
/// The timer that starts the main unit again after systemd has given up restarting it.
pub const AGAIN: &str = "mcp-guard-again.timer";
/// Where the package puts the program.
pub const PROGRAM: &str = "/usr/bin/mcp-guard";
/// The unit's audit log, with all runs since the guest was created.
pub const AUDIT: &str = "/var/log/mcp-guard/audit.jsonl";
/// The longest that a test waits for anything. A guest without hardware virtualisation is ten times
/// slower than the host.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Below /run, so that it never outlives the boot.
const DROP_IN: &str = "/run/systemd/system/mcp-guard.service.d/test.conf";
const AGAIN_DROP_IN: &str = "/run/systemd/system/mcp-guard-again.timer.d/test.conf";

/// The unit, with a drop-in of the test. Dropping it stops and resets the unit and removes the
/// drop-in.
pub struct Unit {
    /// The folder with the policy. It is below /run, which the unit can read.
    folder: tempfile::TempDir,
    /// Length of the audit log before this test, in bytes.
    audited: u64,
    began: SystemTime,
}

/// The unit's state, as systemd reports it.
#[derive(Debug, PartialEq, Eq)]
pub struct State {
    /// "inactive", "activating", "active", "deactivating" or "failed".
    pub active: String,
    /// "running", "auto-restart", "stop-post" and the like.
    pub sub: String,
    /// "success", "exit-code", "signal", "watchdog", "timeout", "start-limit-hit" and the like.
    pub result: String,
    /// 0 if none is running.
    pub main_pid: u32,
    /// The exit code of the last main process, or the signal that ended it.
    pub main_status: i32,
    /// How often systemd has restarted the unit since the last explicit start.
    pub restarts: u32,
    /// The status line that the agent sends to systemd.
    pub status: String,
}

impl Unit {
    /// Takes the package's unit with its own command line and policy, and does not start it.
    pub fn installed() -> Result<Self> {
        Self::with("")
    }

    /// Starts the unit with this policy and more arguments for `run`, and waits until systemd
    /// reports it as active.
    pub fn start(policy: &str, more: &[&str]) -> Result<Self> {
        let unit = Self::prepare(policy, more, "")?;
        unit.started()?;
        Ok(unit)
    }

    /// Prepares the unit with this policy, more arguments for `run` and more lines in the drop-in.
    /// Does not start it.
    pub fn prepare(policy: &str, more: &[&str], lines: &str) -> Result<Self> {
        let mut unit = Self::with("")?;
        fs::write(unit.policy(), policy)?;
        unit.drop_in(&format!("{}{lines}", unit.exec_start(&unit.policy(), more)))?;
        Ok(unit)
    }

    /// Takes the package's unit with these lines in a drop-in, and does not start it.
    pub fn with(lines: &str) -> Result<Self> {
        let audited = fs::metadata(AUDIT).map_or(0, |file| file.len());
        let folder = tempfile::Builder::new().prefix("mcp-guard-test-").tempdir_in("/run")?;
        ensure!(!Path::new(DROP_IN).exists(), "{DROP_IN} exists: another test uses the unit");
        let mut unit = Self { folder, audited, began: SystemTime::now() };
        let state = unit.state()?;
        let is_stopped = ["inactive", "failed"].contains(&state.active.as_str());
        ensure!(is_stopped, "the unit is in use: {state:?}");
        if !lines.is_empty() {
            unit.drop_in(lines)?;
        }
        Ok(unit)
    }

    /// Returns where [`Unit::prepare`] writes the policy.
    pub fn policy(&self) -> PathBuf {
        self.folder.path().join("policy.toml")
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Returns the lines of a drop-in that make the unit run the agent with another policy.
    pub fn exec_start(&self, policy: &Path, more: &[&str]) -> String {
        let (policy, more) = (policy.display(), more.join(" "));
        format!("[Service]\nExecStart=\nExecStart={PROGRAM} run --policy {policy} {more}\n")
    }

    /// Replaces the test's drop-in. A running unit keeps the settings it was started with.
    pub fn drop_in(&mut self, lines: &str) -> Result<()> {
        self.write_drop_in(DROP_IN, lines)
    }

    /// Adds lines to the timer that starts the unit again.
    pub fn again(&mut self, lines: &str) -> Result<()> {
        self.write_drop_in(AGAIN_DROP_IN, lines)
    }

    fn write_drop_in(&self, path: &str, lines: &str) -> Result<()> {
        let folder = Path::new(path).parent().context("the drop-in has no folder")?;
        fs::create_dir_all(folder)?;
        fs::write(path, lines).with_context(|| path.to_owned())?;
        self.systemctl(&["daemon-reload"])
    }

    /// Starts the unit. Returns an error if systemd reports that it did not become active.
    pub fn started(&self) -> Result<()> {
        self.systemctl(&["start", UNIT])
    }

    /// Asks systemd to start the unit, and does not wait.
    pub fn begin(&self) -> Result<()> {
        self.systemctl(&["start", "--no-block", UNIT])
    }

    /// Stops the unit and waits until it has stopped.
    pub fn stop(&self) -> Result<()> {
        self.systemctl(&["stop", UNIT])
    }

    /// Runs a `systemctl` command that must succeed.
    pub fn systemctl(&self, arguments: &[&str]) -> Result<()> {
        let output =
            Command::new("systemctl").args(arguments).output().context("cannot start systemctl")?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("systemctl {arguments:?}: {}: {said}\n{}", output.status, self.journal())
    }

    pub fn state(&self) -> Result<State> {
        const ASKED: &str =
            "ActiveState,SubState,Result,MainPID,ExecMainStatus,NRestarts,StatusText";
        let output =
            Command::new("systemctl").args(["show", UNIT, "--property", ASKED]).output()?;
        let text = String::from_utf8(output.stdout)?;
        let said: BTreeMap<&str, &str> =
            text.lines().filter_map(|line| line.split_once('=')).collect();
        let word = |name: &str| said.get(name).map_or(String::new(), |value| (*value).to_owned());
        Ok(State {
            active: word("ActiveState"),
            sub: word("SubState"),
            result: word("Result"),
            main_pid: word("MainPID").parse().with_context(|| text.clone())?,
            main_status: word("ExecMainStatus").parse().with_context(|| text.clone())?,
            restarts: word("NRestarts").parse().with_context(|| text.clone())?,
            status: word("StatusText"),
        })
    }

    /// Returns the pid of the agent, which must be running.
    pub fn main_pid(&self) -> Result<u32> {
        let state = self.state()?;
        ensure!(state.main_pid != 0, "the unit has no main process: {state:?}\n{}", self.journal());
        Ok(state.main_pid)
    }

    /// Sends a signal to the agent's process.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.main_pid()?.cast_signed()).context("pid 0")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Runs the program as an operator does, with the default paths, which the unit uses too.
    pub fn cli(&self, arguments: &[&str]) -> Result<Output> {
        Command::new(PROGRAM).args(arguments).output().context(PROGRAM)
    }

    /// Returns the agent's answer to `status`.
    pub fn status(&self) -> Result<Status> {
        let output = self.cli(&["status", "--json"])?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("no status: {}", String::from_utf8_lossy(&output.stderr)))
    }

    /// Returns the guard of a cgroup.
    pub fn guard(&self, cgroup_id: u64) -> Result<WatchedStatus> {
        let mut guards = self.status()?.guards.into_iter();
        guards.find(|guard| guard.cgroup_id.0 == cgroup_id).context("the cgroup is not guarded")
    }

    /// Returns the audit records since this test began, from all runs of the agent and from the
    /// command line.
    pub fn audit(&self) -> Result<Vec<Record>> {
        let mut file = File::open(AUDIT).context(AUDIT)?;
        file.seek(SeekFrom::Start(self.audited))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let lines = whole.lines().map(serde_json::from_str::<Line>);
        Ok(lines.collect::<Result<Vec<_>, _>>()?.into_iter().map(|line| line.record).collect())
    }

    /// Waits for the first record for which `find` returns a value.
    pub fn await_record<T>(&self, what: &str, find: impl Fn(&Record) -> Option<T>) -> Result<T> {
        let mut found = None;
        self.wait_until(what, |unit| {
            found = unit.audit().unwrap_or_default().iter().find_map(&find);
            Ok(found.is_some())
        })?;
        found.context("the record is gone")
    }

    /// Waits for a state of the unit and returns it.
    pub fn await_state(&self, what: &str, reached: impl Fn(&State) -> bool) -> Result<State> {
        let mut state = self.state()?;
        self.wait_until(what, |unit| {
            state = unit.state()?;
            Ok(reached(&state))
        })?;
        Ok(state)
    }

    pub fn wait_until(
        &self,
        what: &str,
        mut reached: impl FnMut(&Self) -> Result<bool>,
    ) -> Result<()> {
        if !wait::until(PATIENCE, || reached(self))? {
            let (state, journal) = (self.state()?, self.journal());
            bail!("did not happen within {PATIENCE:?}: {what}; {state:?}\n{journal}");
        }
        Ok(())
    }

    /// Returns the journal of the unit since this test began, with systemd's own messages about it.
    pub fn journal(&self) -> String {
        let began = self.began.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut command = Command::new("journalctl");
        command.args(["--unit", UNIT, "--output", "cat", "--no-pager", "--since"]);
        command.arg(format!("@{began}")).output().map_or_else(
            |error| format!("cannot read the journal: {error}"),
            |output| String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    }

    fn put_back(&self) -> Result<()> {
        // The timer first, so that it does not start the unit again.
        self.systemctl(&["stop", AGAIN, UNIT, THAW])?;
        for path in [DROP_IN, AGAIN_DROP_IN] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error).context(path);
                }
                Ok(()) | Err(_) => {}
            }
        }
        self.systemctl(&["daemon-reload"])?;
        // This also resets the count of starts for the start limit.
        for unit in [UNIT, THAW, AGAIN] {
            match self.systemctl(&["reset-failed", unit]) {
                // systemd may already have unloaded a stopped unit, with its counts.
                Err(error) if !error.to_string().contains("not loaded") => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }
}

impl Drop for Unit {
    /// Panics if the unit cannot be restored. During a panic it prints a message instead.
    fn drop(&mut self) {
        let Err(error) = self.put_back() else { return };
        let message = format!("the unit cannot be restored: {error:#}");
        if std::thread::panicking() {
            let _ = writeln!(std::io::stderr(), "{message}");
        } else {
            panic!("{message}");
        }
    }
}
