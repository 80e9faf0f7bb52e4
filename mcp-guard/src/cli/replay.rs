//! `replay`: shows what the detectors decide about recorded workloads, and what another policy would change.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use clap::Args;
use mcp_guard_core::{
    escape::visible,
    policy::Policy,
    replay::{ReplayReport, replay as run},
    trace::EndOfTrace,
};
use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl, open};
use serde::Serialize;

use super::{Exit, Failure, out, run::read_policy};

/// Largest trace, in bytes. A larger one is refused instead of read into memory.
const MAX_TRACE: u64 = 1 << 30;

#[derive(Debug, Args)]
pub struct Arguments {
    /// Trace files, each with a header line, then one JSON event per line. For several files, a table is
    /// printed.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Policy file to test. Each mode in it is ignored; the mode of the recording counts, else enforce.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Show what a new policy would decide differently from an old one.
    #[arg(long, num_args = 2, value_names = ["OLD", "NEW"], conflicts_with = "policy")]
    compare: Option<Vec<PathBuf>>,
    /// Show for each warning and action the numbers that led to it.
    #[arg(long, conflicts_with = "compare")]
    explain: bool,
    /// Print JSON instead of text: one object, or a list of objects for several files.
    #[arg(long)]
    json: bool,
}

/// A report, and the file that it is about.
#[derive(Serialize)]
struct OfFile {
    file: String,
    #[serde(flatten)]
    report: ReplayReport,
}

/// A warning or an action, as one line shows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct ReplayLine {
    t_ns: u64,
    /// `warning`, or the response.
    decision: String,
    detector: String,
    identity: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    numbers: BTreeMap<String, u64>,
}

impl ReplayLine {
    /// Returns whether another one decides the same. Its numbers may differ.
    fn is_same(&self, other: &Self) -> bool {
        let Self { t_ns, decision, detector, identity, numbers: _ } = self;
        (t_ns, decision, detector, identity)
            == (&other.t_ns, &other.decision, &other.detector, &other.identity)
    }
}

pub fn replay(arguments: &Arguments) -> Result<Exit, Failure> {
    let text = match &arguments.compare {
        Some(policies) => compared(arguments, policies)?,
        None => replayed(arguments)?,
    };
    out::answer(&text);
    Ok(Exit::Done)
}

fn replayed(arguments: &Arguments) -> Result<String, Failure> {
    let Arguments { files, policy, explain, json, .. } = arguments;
    let policy = policy.as_deref().map_or_else(|| Ok(Policy::default()), read_policy)?;
    let report = |file: &PathBuf| {
        let report = run_one(&read(file)?, &policy, file)?;
        Ok(OfFile { file: file.display().to_string(), report })
    };
    let mut reports = files.iter().map(report).collect::<Result<Vec<_>, Failure>>()?;
    if let ([_], Some(only)) = (files.as_slice(), reports.first()) {
        return match json {
            true => text_of(&only.report),
            false => Ok(summary(&only.report) + &lines(&only.report, *explain)),
        };
    }
    if *json {
        return text_of(&reports);
    }
    let mut text = compact(&reports);
    if *explain {
        for OfFile { file, report } in reports.drain(..) {
            text += &format!("\n{}\n{}", visible(&file), lines(&report, true));
        }
    }
    Ok(text)
}

/// Says what the new one of two policies decides differently.
fn compared(arguments: &Arguments, policies: &[PathBuf]) -> Result<String, Failure> {
    let policies = policies.iter().map(|file| read_policy(file)).collect::<Result<Vec<_>, _>>()?;
    let compare = |file: &PathBuf| {
        let trace = read(file)?;
        let reports = policies.iter().map(|policy| run_one(&trace, policy, file));
        let reports = reports.collect::<Result<Vec<_>, Failure>>()?;
        Ok(Comparison::of(file, &reports))
    };
    let all = arguments.files.iter().map(compare).collect::<Result<Vec<_>, Failure>>()?;
    if arguments.json { text_of(&all) } else { Ok(all.iter().map(differences).collect()) }
}

/// The decisions that only one of two policies makes about a trace.
#[derive(Serialize)]
struct Comparison {
    file: String,
    gone: Vec<ReplayLine>,
    new: Vec<ReplayLine>,
    /// `old`, `new`: the policies that do not guard what was recorded.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_guarded_by: Vec<&'static str>,
    /// Lines that are missing in the trace.
    #[serde(skip_serializing_if = "Option::is_none")]
    lost: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended: Option<EndOfTrace>,
}

impl Comparison {
    fn of(file: &Path, reports: &[ReplayReport]) -> Self {
        let decided: Vec<_> = reports.iter().map(decisions).collect();
        let only = |one: usize, other: usize| -> Vec<ReplayLine> {
            let lines = decided.get(one).into_iter().flatten();
            let others = decided.get(other).map_or(&[][..], Vec::as_slice);
            lines.filter(|line| !others.iter().any(|other| line.is_same(other))).cloned().collect()
        };
        let not_guarded = ["old", "new"].into_iter().zip(reports);
        let not_guarded = not_guarded.filter(|(_, report)| report.not_guarded);
        Self {
            file: file.display().to_string(),
            gone: only(0, 1),
            new: only(1, 0),
            not_guarded_by: not_guarded.map(|(which, _)| which).collect(),
            lost: reports.first().map(|report| report.lost).filter(|lost| *lost > 0),
            ended: reports.first().and_then(|report| report.ended),
        }
    }
}

fn differences(comparison: &Comparison) -> String {
    let Comparison { file, gone, new, not_guarded_by, lost, ended } = comparison;
    let mut text = format!("{}\n", visible(file));
    for line in incomplete(lost.unwrap_or(0), *ended).lines() {
        text += &format!("  {line}\n");
    }
    for which in not_guarded_by {
        text += &format!("  the {which} policy does not guard it\n");
    }
    let mut changes: Vec<_> =
        gone.iter().map(|line| ('-', line)).chain(new.iter().map(|line| ('+', line))).collect();
    changes.sort_by_key(|(_, line)| line.t_ns);
    for (sign, line) in &changes {
        text += &format!("{sign} {}\n", shown(line));
    }
    if changes.is_empty() && not_guarded_by.is_empty() {
        text += "  no difference\n";
    }
    text
}

fn text_of(answer: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string(answer).map_err(Failure::could_not)
}

fn failure(file: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::data(format!("trace {}: {error}", file.display()))
}

/// Opens a file, and does not wait for somebody to write to a named pipe. Then it is read like any other file, so that
/// `<(zcat FILE)` has the time that it needs.
fn opened(file: &Path) -> io::Result<File> {
    let opened = open(file, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
    fcntl_setfl(&opened, fcntl_getfl(&opened)? - OFlags::NONBLOCK)?;
    Ok(opened.into())
}

/// Reads to the end. Returns `None` if there is more: a pipe or a device does not say how much it has.
fn read_at_most(from: impl Read, most: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    let read = from.take(most + 1).read_to_end(&mut bytes)?;
    Ok(u64::try_from(read).is_ok_and(|read| read <= most).then_some(bytes))
}

fn read(file: &Path) -> Result<String, Failure> {
    let bytes = opened(file).and_then(|opened| read_at_most(opened, MAX_TRACE));
    let bytes = bytes.map_err(|error| failure(file, &error))?;
    let Some(bytes) = bytes else { return Err(failure(file, &"larger than 1 GiB; split it")) };
    String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count();
        failure(file, &format!("line {}: not UTF-8", line + 1))
    })
}

fn run_one(trace: &str, policy: &Policy, file: &Path) -> Result<ReplayReport, Failure> {
    run(trace, policy.clone()).map_err(|error| failure(file, &error))
}

fn summary(report: &ReplayReport) -> String {
    let ReplayReport { events, processes, execs, live_at_end, identities, .. } = report;
    let mut text = format!(
        "{events} events: {processes} processes started, {execs} execs, {live_at_end} alive at the end\n"
    );
    for (name, one) in identities {
        text += &format!(
            "  {name}: {} starts, {} alive at the end, {} at the peak\n",
            one.starts, one.live_at_end, one.live_peak
        );
    }
    text + &notes(report)
}

/// Says why nothing is decided, or why something else may have been.
fn notes(report: &ReplayReport) -> String {
    let mut text = String::new();
    if report.not_guarded {
        text += "nothing decided: this policy does not guard it\n";
    }
    text + &incomplete(report.lost, report.ended)
}

fn incomplete(lost: u64, ended: Option<EndOfTrace>) -> String {
    let mut text = String::new();
    if lost > 0 {
        text += &format!("incomplete: {lost} lines are missing; what is decided may differ\n");
    }
    if ended == Some(EndOfTrace::Cut) {
        text += "incomplete: the recording was cut; what came later is missing\n";
    }
    text
}

/// Lists the warnings and actions in the order of time.
fn decisions(report: &ReplayReport) -> Vec<ReplayLine> {
    let warned = report.warnings.iter().map(|one| ReplayLine {
        t_ns: one.t_ns,
        decision: "warning".to_owned(),
        detector: format!("{:?}", one.detector),
        identity: one.identity.clone(),
        numbers: one.numbers.clone(),
    });
    let acted = report.actions.iter().map(|one| ReplayLine {
        t_ns: one.t_ns,
        decision: one.response.to_string(),
        detector: format!("{:?}", one.detector),
        identity: one.identity.clone(),
        numbers: one.numbers.clone(),
    });
    let mut lines: Vec<_> = warned.chain(acted).collect();
    lines.sort_by_key(|line| line.t_ns);
    lines
}

fn shown(line: &ReplayLine) -> String {
    let seconds = line.t_ns as f64 / 1e9;
    let identity = line.identity.as_deref().unwrap_or("");
    format!("{seconds:9.3} s  {:<8} {} {identity}", line.decision, line.detector)
}

fn lines(report: &ReplayReport, explain: bool) -> String {
    let mut text = String::new();
    for line in decisions(report) {
        text += &format!("{}\n", shown(&line));
        if explain {
            let numbers = line.numbers.iter().map(|(name, value)| format!("{name} {value}"));
            text += &format!("               {}\n", numbers.collect::<Vec<_>>().join(", "));
        }
    }
    if text.is_empty() {
        text += "no warning, no action\n";
    }
    text
}

/// One line for each file.
fn compact(reports: &[OfFile]) -> String {
    let mut text = format!(
        "{:<44} {:>9} {:>7} {:>8} {:>7}  {}\n",
        "TRACE", "PROCESSES", "ALIVE", "WARNINGS", "ACTIONS", "FIRST ACTION"
    );
    for OfFile { file, report } in reports {
        let first = decisions(report).into_iter().find(|line| line.decision != "warning");
        let first = first.map_or_else(|| "-".to_owned(), |line| shown(&line).trim().to_owned());
        let path = Path::new(file).file_name();
        let name = path.map_or_else(|| file.clone(), |name| name.to_string_lossy().into_owned());
        text += &format!(
            "{:<44} {:>9} {:>7} {:>8} {:>7}  {first}\n",
            visible(&name),
            report.processes,
            report.live_at_end,
            report.warnings.len(),
            report.actions.len(),
        );
        for note in notes(report).lines() {
            text += &format!("  {note}\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_end_is_read_up_to_the_bound() {
        let read = |bytes: &[u8]| read_at_most(bytes, 4).expect("readable");
        assert_eq!((read(b"four"), read(b"fives")), (Some(b"four".to_vec()), None));
        assert_eq!(read_at_most(io::repeat(b'x'), 4).expect("readable"), None);
    }
}
