//! A recording by the command line, and what an agent and a replay decided about the same time.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use mcp_guard_core::{
    audit::{Line, Record},
    incident::Detector,
    policy::Response,
    replay::ReplayReport,
    trace::TraceHeader,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Map, Value};

use crate::{
    agent::{Agent, command},
    cgroup::FixtureCgroup,
};

/// A recording under way. Killed and reaped on drop.
pub struct Recording {
    child: Child,
    pub file: PathBuf,
}

impl Drop for Recording {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Recording {
    /// Begins, and waits until what lives already is in the trace.
    pub fn begin(
        agent: &mut Agent,
        cgroup: &FixtureCgroup,
        file: &Path,
        more: &[&str],
    ) -> Result<Self> {
        let mut record = command(agent.folder(), "/nonexistent")?;
        record.args(["record", &format!("cgroup:{}", cgroup.path()), "-o"]).arg(file).args(more);
        let child = record.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let one = Self { child, file: file.to_owned() };
        one.wait_for(agent, "\"e\":\"baseline\"")?;
        Ok(one)
    }

    pub fn text(&self) -> String {
        fs::read_to_string(&self.file).unwrap_or_default()
    }

    /// Waits until the trace has this.
    pub fn wait_for(&self, agent: &mut Agent, part: &str) -> Result<()> {
        agent.wait_until(part, |_| Ok(self.text().contains(part)))
    }

    /// Waits for its end. Returns the exit code, and what it said.
    pub fn ended(&mut self, agent: &mut Agent) -> Result<(Option<i32>, String)> {
        let mut status = None;
        agent.wait_until("the recording ends", |_| {
            status = self.child.try_wait()?;
            Ok(status.is_some())
        })?;
        let mut said = String::new();
        self.child.stdout.take().context("its stdout")?.read_to_string(&mut said)?;
        self.child.stderr.take().context("its stderr")?.read_to_string(&mut said)?;
        Ok((status.context("no status")?.code(), said))
    }

    /// Stops it as Ctrl-C does. Returns the trace.
    pub fn stop(mut self, agent: &mut Agent) -> Result<String> {
        self.signal(Signal::INT)?;
        let (code, said) = self.ended(agent)?;
        ensure!(code == Some(0), "{code:?}: {said}");
        Ok(self.text())
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }
}

/// A warning, or an action, and its time since the start of the trace in nanoseconds.
#[derive(Clone, Debug)]
pub struct Decided {
    pub t: u64,
    pub detector: Detector,
    /// `None` for a warning.
    pub response: Option<Response>,
    pub identity: Option<String>,
}

impl Decided {
    fn kind(&self) -> (Detector, Option<Response>, Option<&str>) {
        (self.detector, self.response, self.identity.as_deref())
    }

    /// Reads what an agent decided from its audit log.
    pub fn live(agent: &Agent, header: &TraceHeader) -> Result<Vec<Self>> {
        let text = fs::read_to_string(agent.audit_path())?;
        let lines: Vec<Line> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let decided = |Line { boot_ns, record, .. }| {
            let (response, cause) = if let Record::Warning { cause, .. } = record {
                (None, cause)
            } else if let Record::Intent { response, cause, .. } = record {
                (Some(response), cause)
            } else {
                return None;
            };
            let t = boot_ns.saturating_sub(header.boot_ns);
            Some(Self { t, detector: cause.detector?, response, identity: cause.identity })
        };
        Ok(lines.into_iter().filter_map(decided).collect())
    }

    #[must_use]
    pub fn replayed(report: &ReplayReport) -> Vec<Self> {
        let warned = report.warnings.iter().map(|one| Self {
            t: one.t_ns,
            detector: one.detector,
            response: None,
            identity: one.identity.clone(),
        });
        let acted = report.actions.iter().map(|one| Self {
            t: one.t_ns,
            detector: one.detector,
            response: Some(one.response),
            identity: one.identity.clone(),
        });
        warned.chain(acted).collect()
    }

    /// Asserts that both decided the same, each at most `within` nanoseconds from the other.
    pub fn assert_same(mut live: Vec<Self>, mut again: Vec<Self>, within: u64) {
        for all in [&mut live, &mut again] {
            all.sort_by(|a, b| (a.kind(), a.t).cmp(&(b.kind(), b.t)));
        }
        let kinds = |all: &[Self]| -> Vec<String> {
            all.iter().map(|one| format!("{:?}", one.kind())).collect()
        };
        assert_eq!(kinds(&live), kinds(&again), "live {live:?}\nreplayed {again:?}");
        for (one, other) in live.iter().zip(&again) {
            assert!(one.t.abs_diff(other.t) <= within, "live {one:?}\nreplayed {other:?}");
        }
    }
}

/// Writes a trace to the folder that `MCP_GUARD_TRACES` names, for the corpus: with its kind, and what it is a trace
/// of.
pub fn keep(name: &str, (kind, what): (&str, &str), trace: &str) -> Result<()> {
    let Some(folder) = std::env::var_os("MCP_GUARD_TRACES") else { return Ok(()) };
    let (header, events) = trace.split_once('\n').context("a header")?;
    let mut header: Map<String, Value> = serde_json::from_str(header)?;
    header.insert("kind".to_owned(), kind.into());
    header.insert("what".to_owned(), what.into());
    let header = serde_json::to_string(&header)?;
    let path = Path::new(&folder).join(format!("{name}.jsonl"));
    fs::write(&path, format!("{header}\n{events}")).with_context(|| path.display().to_string())
}
