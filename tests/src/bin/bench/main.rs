//! `bench [--out FILE] [--only PART] [--rounds N] [--runs N]`: measures what mcp-guard costs and how
//! fast it acts, and prints each number beside its goal. `docs/costs.md` says how each is measured.

mod age;
mod busy;
mod clients;
mod core;
mod cost;
mod diagnose;
mod evidence;
mod latency;
mod load;
mod numbers;
mod observer;
mod peer;
mod report;
mod stats;
mod status;
mod storm;
mod weight;

use anyhow::{Context, Result, ensure};
use mcp_guard_tests::flags::Flags;
use report::Report;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

const PARTS: [&str; 9] =
    ["core", "cost", "latency", "age", "weight", "diagnose", "evidence", "clients", "status"];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == busy::WORD) {
        busy::spin();
    }
    match run(words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&format!("bench: {error:#}"));
            ExitCode::from(2)
        }
    }
}

fn run(words: Vec<String>) -> Result<()> {
    let flags = Flags::parse(words.into_iter(), &["--out", "--only", "--rounds", "--runs"], &[])?;
    let only = flags.get("--only");
    ensure!(only.is_none_or(|part| PARTS.contains(&part)), "--only must be one of {PARTS:?}");
    let wanted = |part: &str| only.is_none_or(|only| only == part);
    let mut report = Report::default();
    if wanted("core") {
        core::measure(&mut report);
    }
    ensure!(
        only == Some("core") || rustix::process::geteuid().is_root(),
        "needs root: run it with sudo or in a root shell"
    );
    if wanted("cost") {
        cost::measure(flags.number("--rounds", 9)?, &mut report).context("cost per event")?;
    }
    if wanted("latency") {
        latency::measure(flags.number("--runs", 100)?, &mut report).context("latency")?;
    }
    if wanted("age") {
        age::measure(flags.number("--runs", 20)?.min(20), &mut report).context("age")?;
    }
    if wanted("weight") {
        weight::measure(&mut report).context("memory and idle CPU")?;
    }
    if wanted("diagnose") {
        diagnose::measure(&mut report).context("diagnose --all")?;
    }
    if wanted("evidence") {
        evidence::measure(&mut report).context("looks at servers")?;
    }
    if wanted("clients") {
        clients::measure(&mut report).context("the search for clients")?;
    }
    if wanted("status") {
        status::measure(&mut report).context("status of many guards")?;
    }
    say(&report.table());
    if let Some(file) = flags.get("--out") {
        report.write(Path::new(file)).with_context(|| file.to_owned())?;
        say(&format!("written to {file}"));
    }
    Ok(())
}

/// Prints a result. Ignores a closed terminal: the bench must still remove its cgroups.
fn say(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// Prints progress to stderr.
fn tell(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
