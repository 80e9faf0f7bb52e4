use std::{fs, path::PathBuf};

use clap::Args;
use mcp_guard_core::{
    policy::Policy,
    replay::{ReplayReport, replay as run},
};

use super::{Exit, Failure, out, run::read_policy};

/// Largest trace, in bytes. A larger one is refused instead of read into memory.
const MAX_TRACE: u64 = 1 << 30;

#[derive(Debug, Args)]
pub struct Arguments {
    /// Trace file: a header line, then one JSON event per line.
    file: PathBuf,
    /// Policy file to test; its mode is ignored.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

pub fn replay(arguments: &Arguments) -> Result<Exit, Failure> {
    let policy = arguments.policy.as_deref().map_or_else(|| Ok(Policy::default()), read_policy)?;
    let name = arguments.file.display();
    let failure = |error: &dyn std::fmt::Display| Failure::data(format!("trace {name}: {error}"));
    let length = fs::metadata(&arguments.file).map_err(|error| failure(&error))?.len();
    if length > MAX_TRACE {
        return Err(failure(&"larger than 1 GiB; split it"));
    }
    let bytes = fs::read(&arguments.file).map_err(|error| failure(&error))?;
    let trace = String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count();
        failure(&format!("line {}: not UTF-8", line + 1))
    })?;
    let report = run(&trace, policy).map_err(|error| failure(&error))?;
    let text = if arguments.json {
        serde_json::to_string(&report).map_err(|error| Failure::could_not(error.to_string()))?
    } else {
        render(&report)
    };
    out::answer(&text);
    Ok(Exit::Done)
}

fn render(report: &ReplayReport) -> String {
    let ReplayReport { events, processes, execs, live_at_end, identities, warnings, actions } =
        report;
    let mut text = format!(
        "{events} events: {processes} processes started, {execs} execs, {live_at_end} alive at the end\n"
    );
    for (name, one) in identities {
        text += &format!(
            "  {name}: {} starts, {} alive at the end, {} at the peak\n",
            one.starts, one.live_at_end, one.live_peak
        );
    }
    let warned = warnings
        .iter()
        .map(|one| (one.t_ns, "warning".to_owned(), one.detector, one.identity.as_deref()));
    let acted = actions
        .iter()
        .map(|one| (one.t_ns, one.response.to_string(), one.detector, one.identity.as_deref()));
    let mut lines: Vec<_> = warned.chain(acted).collect();
    lines.sort_by_key(|(t_ns, ..)| *t_ns);
    for (t_ns, what, detector, identity) in lines {
        let seconds = t_ns as f64 / 1e9;
        let identity = identity.unwrap_or("");
        text += &format!("{seconds:9.3} s  {what:<8} {detector:?} {identity}\n");
    }
    if warnings.is_empty() && actions.is_empty() {
        text += "no warning, no action\n";
    }
    text
}
