//! The agent as the systemd unit of the package, on a guest where the package is installed.

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
/// What gives back where the unit could not.
pub const THAW: &str = "mcp-guard-thaw.service";
/// Where the package puts the program.
pub const PROGRAM: &str = "/usr/bin/mcp-guard";
/// Where the unit's audit log is, of all runs since the guest was made.
pub const AUDIT: &str = "/var/log/mcp-guard/audit.jsonl";
/// Every wait ends by then: a guest without hardware virtualisation is ten times slower than we are.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Gone with the next boot, whatever becomes of the test.
const DROP_IN: &str = "/run/systemd/system/mcp-guard.service.d/test.conf";

/// The unit, with a drop-in of the test's. Stopped, reset and without the drop-in when dropped.
pub struct Unit {
    /// Holds the policy. Below /run, which no sandbox of a unit hides.
    folder: tempfile::TempDir,
    /// Length of the audit log before this test.
    audited: u64,
    began: SystemTime,
}

/// What systemd says of the unit.
#[derive(Debug, PartialEq, Eq)]
pub struct State {
    /// "inactive", "activating", "active", "deactivating" or "failed".
    pub active: String,
    /// "running", "auto-restart", "stop-post" and the like.
    pub sub: String,
    /// "success", "exit-code", "signal", "watchdog", "timeout", "start-limit-hit" and the like.
    pub result: String,
    /// 0 where none runs.
    pub main_pid: u32,
    /// What the last main process exited with, or the signal that ended it.
    pub main_status: i32,
    /// Restarts by systemd itself since it was started by hand.
    pub restarts: u32,
    /// The agent's own line.
    pub status: String,
}

impl Unit {
    /// The package's unit with its own command line and policy, not started.
    pub fn installed() -> Result<Self> {
        Self::with("")
    }

    /// The unit under this policy, with more arguments of `run`; returns when systemd says it is
    /// active.
    pub fn start(policy: &str, more: &[&str]) -> Result<Self> {
        let unit = Self::prepare(policy, more, "")?;
        unit.started()?;
        Ok(unit)
    }

    /// The same, not started, and with more lines in the drop-in.
    pub fn prepare(policy: &str, more: &[&str], lines: &str) -> Result<Self> {
        let mut unit = Self::with("")?;
        fs::write(unit.policy(), policy)?;
        unit.drop_in(&format!("{}{lines}", unit.exec_start(&unit.policy(), more)))?;
        Ok(unit)
    }

    /// The package's unit with these lines in a drop-in, not started.
    pub fn with(lines: &str) -> Result<Self> {
        let audited = fs::metadata(AUDIT).map_or(0, |file| file.len());
        let folder = tempfile::Builder::new().prefix("mcp-guard-test-").tempdir_in("/run")?;
        ensure!(!Path::new(DROP_IN).exists(), "{DROP_IN} is there: another test uses the unit");
        let mut unit = Self { folder, audited, began: SystemTime::now() };
        let state = unit.state()?;
        ensure!(["inactive", "failed"].contains(&state.active.as_str()), "in use: {state:?}");
        if !lines.is_empty() {
            unit.drop_in(lines)?;
        }
        Ok(unit)
    }

    /// Where [`Unit::prepare`] puts the policy.
    pub fn policy(&self) -> PathBuf {
        self.folder.path().join("policy.toml")
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The lines of a drop-in that run the agent under another policy.
    pub fn exec_start(&self, policy: &Path, more: &[&str]) -> String {
        let (policy, more) = (policy.display(), more.join(" "));
        format!("[Service]\nExecStart=\nExecStart={PROGRAM} run --policy {policy} {more}\n")
    }

    /// Replaces the test's drop-in. A unit that runs keeps what it was started with.
    pub fn drop_in(&mut self, lines: &str) -> Result<()> {
        let folder = Path::new(DROP_IN).parent().context("a folder")?;
        fs::create_dir_all(folder)?;
        fs::write(DROP_IN, lines).context(DROP_IN)?;
        self.systemctl(&["daemon-reload"])
    }

    /// Starts it; an error where systemd says that it did not become active.
    pub fn started(&self) -> Result<()> {
        self.systemctl(&["start", UNIT])
    }

    /// Asks systemd to start it, and does not wait.
    pub fn begin(&self) -> Result<()> {
        self.systemctl(&["start", "--no-block", UNIT])
    }

    /// Stops it, and waits until it is stopped.
    pub fn stop(&self) -> Result<()> {
        self.systemctl(&["stop", UNIT])
    }

    /// A command of `systemctl` that must succeed.
    pub fn systemctl(&self, arguments: &[&str]) -> Result<()> {
        let output = Command::new("systemctl").args(arguments).output().context("systemctl")?;
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

    /// The agent's process, which must run.
    pub fn main_pid(&self) -> Result<u32> {
        let state = self.state()?;
        ensure!(state.main_pid != 0, "no main process: {state:?}\n{}", self.journal());
        Ok(state.main_pid)
    }

    /// Sends a signal to the agent's process.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.main_pid()?.cast_signed()).context("pid 0")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Runs the program as an operator does, with the places that the unit uses too.
    pub fn cli(&self, arguments: &[&str]) -> Result<Output> {
        Command::new(PROGRAM).args(arguments).output().context(PROGRAM)
    }

    /// The agent's own answer.
    pub fn status(&self) -> Result<Status> {
        let output = self.cli(&["status", "--json"])?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("status: {}", String::from_utf8_lossy(&output.stderr)))
    }

    /// The guard of a cgroup id.
    pub fn guard(&self, cgroup_id: u64) -> Result<WatchedStatus> {
        let mut guards = self.status()?.guards.into_iter();
        guards.find(|guard| guard.cgroup_id.0 == cgroup_id).context("not guarded")
    }

    /// What was audited since this began, by all runs of the agent and by the command line.
    pub fn audit(&self) -> Result<Vec<Record>> {
        let mut file = File::open(AUDIT).context(AUDIT)?;
        file.seek(SeekFrom::Start(self.audited))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let lines = whole.lines().map(serde_json::from_str::<Line>);
        Ok(lines.collect::<Result<Vec<_>, _>>()?.into_iter().map(|line| line.record).collect())
    }

    /// Waits for the first record for which `find` gives something.
    pub fn await_record<T>(&self, what: &str, find: impl Fn(&Record) -> Option<T>) -> Result<T> {
        let mut found = None;
        self.wait_until(what, |unit| {
            found = unit.audit().unwrap_or_default().iter().find_map(&find);
            Ok(found.is_some())
        })?;
        found.context("waited for it")
    }

    /// Waits for a state of the unit, and gives it back.
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
            bail!("not within {PATIENCE:?}: {what}; {:?}\n{}", self.state()?, self.journal());
        }
        Ok(())
    }

    /// What the unit said since this began, and systemd of it.
    pub fn journal(&self) -> String {
        let began = self.began.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut command = Command::new("journalctl");
        command.args(["--unit", UNIT, "--output", "cat", "--no-pager", "--since"]);
        command.arg(format!("@{began}")).output().map_or_else(
            |error| format!("no journal: {error}"),
            |output| String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    }

    fn put_back(&self) -> Result<()> {
        self.systemctl(&["stop", UNIT, THAW])?;
        match fs::remove_file(DROP_IN) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).context(DROP_IN);
            }
            Ok(()) | Err(_) => {}
        }
        self.systemctl(&["daemon-reload"])?;
        // Also forgets how often they were started, which the start limit counts.
        for unit in [UNIT, THAW] {
            match self.systemctl(&["reset-failed", unit]) {
                // systemd forgets a unit that has stopped, and its counts with it.
                Err(error) if !error.to_string().contains("not loaded") => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }
}

impl Drop for Unit {
    /// Also runs while a failed assertion unwinds; only then is a failure a mere message.
    fn drop(&mut self) {
        let Err(error) = self.put_back() else { return };
        let message = format!("the unit is left as it is: {error:#}");
        if std::thread::panicking() {
            let _ = writeln!(std::io::stderr(), "{message}");
        } else {
            panic!("{message}");
        }
    }
}
