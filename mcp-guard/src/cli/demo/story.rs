//! Follows the audit log as it grows.

use std::{fs, path::PathBuf, process::Child, time::Duration};

use mcp_guard_core::{
    audit::{Line, Record},
    incident::Cause,
};

use crate::cli::Failure;

/// Interval between two reads of the log, which grows by only a few lines.
const LOOK: Duration = Duration::from_millis(20);

pub struct Story {
    path: PathBuf,
    lines: Vec<String>,
}

impl Story {
    pub fn of(path: PathBuf) -> Self {
        Self { path, lines: Vec::new() }
    }

    pub fn lines(&self) -> &[String] {
        &self.lines
    }

    /// Reads until the awaited record appears. Fails if the agent ends first.
    pub async fn until(
        &mut self,
        agent: &mut Child,
        mut awaited: impl FnMut(&Record) -> bool,
    ) -> Result<Record, Failure> {
        loop {
            if let Some(record) = self.read(&mut awaited)? {
                return Ok(record);
            }
            if let Ok(Some(status)) = agent.try_wait() {
                return Err(Failure::could_not(format!("the agent ended early, with {status}")));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Reads to the end of a log that no longer grows. Fails if the awaited record is missing.
    pub fn finish(&mut self, mut awaited: impl FnMut(&Record) -> bool) -> Result<(), Failure> {
        let mut found = false;
        while let Some(record) = self.read(&mut |_| true)? {
            found |= awaited(&record);
        }
        if found {
            Ok(())
        } else {
            Err(Failure::could_not("the audit log lacks the expected last record"))
        }
    }

    fn read(
        &mut self,
        awaited: &mut impl FnMut(&Record) -> bool,
    ) -> Result<Option<Record>, Failure> {
        let text = fs::read_to_string(&self.path).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        for line in whole.lines().skip(self.lines.len()) {
            self.lines.push(line.to_owned());
            let line: Line = serde_json::from_str(line).map_err(|error| {
                Failure::could_not(format!("cannot parse audit line {line}: {error}"))
            })?;
            if awaited(&line.record) {
                return Ok(Some(line.record));
            }
        }
        Ok(None)
    }
}

/// Formats a record as one line for the screen.
pub fn shorten(line: &str) -> String {
    let Ok(Line { seq, record, .. }) = serde_json::from_str(line) else { return line.to_owned() };
    match record {
        Record::Warning { cause, .. } | Record::Herd { cause, .. } => {
            format!("{seq} warning {}", because(&cause))
        }
        Record::Intent { response, cause, .. } => {
            format!("{seq} intent {response}: {}", because(&cause))
        }
        Record::Outcome { response, outcome, detail, .. } => {
            format!("{seq} outcome {response} {outcome:?}: {detail}")
        }
        Record::Release { response, end, outcome: Some(outcome), detail, .. } => {
            format!("{seq} release {response} ({end:?}) {outcome:?}: {detail}")
        }
        Record::Release { response, end, .. } => format!("{seq} release {response} ({end:?})"),
        Record::AgentStart { version, mode } => {
            format!("{seq} agent {version} starts, mode {mode}")
        }
        Record::AgentStop { reason } => format!("{seq} agent stops: {reason}"),
        Record::GuardStart { guard, .. } => {
            format!("{seq} guarding {} id {}", guard.cgroup, guard.cgroup_id)
        }
        Record::GuardStop { guard } => format!("{seq} no longer guarding {}", guard.cgroup),
        Record::GuardRefused { guard, reason } => {
            format!("{seq} not guarding {}: {reason}", guard.cgroup)
        }
        Record::RefusalStart { guard, refused } => {
            format!("{seq} not acting on {}: {refused}", guard.cgroup)
        }
        Record::RefusalEnd { guard } => format!("{seq} acting on {} again", guard.cgroup),
        Record::Limit { outcome: None, reason, .. } => format!("{seq} limit: {reason}"),
        Record::Limit { outcome: Some(outcome), detail, .. } => {
            format!("{seq} limit {outcome:?}: {detail}")
        }
        Record::Reap { outcome: None, cause, .. } => format!("{seq} reap: {}", because(&cause)),
        Record::Reap { outcome: Some(outcome), detail, .. } => {
            format!("{seq} reap {outcome:?}: {detail}")
        }
        Record::Suspend { outcome: None, cause, .. } => {
            format!("{seq} suspend: {}", because(&cause))
        }
        Record::Suspend { outcome: Some(outcome), detail, .. } => {
            format!("{seq} suspend {outcome:?}: {detail}")
        }
        Record::Resume { identity, pid, by, slept_ms, .. } => {
            format!("{seq} {identity} (pid {pid}) runs again after {slept_ms} ms: {by:?}")
        }
        Record::PolicyReloaded { changes, .. } => {
            format!("{seq} the policy was read again; {} changes", changes.len())
        }
        Record::PolicyRejected { reason } => format!("{seq} the policy is bad: {reason}"),
        Record::Loss { cause, count } => format!("{seq} lost {cause} {count}"),
    }
}

pub fn because(cause: &Cause) -> String {
    let detector = cause.detector.map_or_else(|| "operator".to_owned(), |one| format!("{one:?}"));
    let numbers: Vec<String> =
        cause.numbers.iter().map(|(name, number)| format!("{name} {number}")).collect();
    format!("{detector} of {}: {}", cause.identity.as_deref().unwrap_or("all"), numbers.join(", "))
}
