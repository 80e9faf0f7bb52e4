//! `spawn-workload --case CASE --seconds S --workers W [--into DIR] [--alive K] [--max N]`: creates
//! processes as fast as it can, reaps all of them, and prints its own exact ledger as one JSON line.
//! The processes, threads and execs that the kernel counts for the cgroup, without this main process
//! itself, must equal the ledger.

mod births;
mod cases;
mod ledger;
mod options;

use anyhow::{Context, Result, bail};
use births::Status;
use cases::Worker;
use ledger::Ledger;
use options::{Options, TICK};
use std::io::{PipeReader, PipeWriter, Write};
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1).peekable();
    if words.peek().is_some_and(|word| word == TICK) {
        return tick(words.nth(1));
    }
    let options = match Options::parse(words) {
        Ok(options) => options,
        Err(error) => return complain(&error, 64),
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&error, 1),
    }
}

/// Runs as the program that the exec cases start: counts itself in the ledger it inherited.
fn tick(fd: Option<String>) -> ExitCode {
    let ledger =
        fd.and_then(|fd| fd.parse().ok()).context("the ledger is missing").and_then(Ledger::attach);
    match ledger {
        Ok(ledger) => {
            ledger.executed();
            ExitCode::SUCCESS
        }
        Err(error) => complain(&error, 1),
    }
}

fn complain(error: &anyhow::Error, code: u8) -> ExitCode {
    // A failing stderr cannot be reported anywhere.
    let _ = writeln!(std::io::stderr(), "spawn-workload: {error:#}");
    ExitCode::from(code)
}

fn run(options: &Options) -> Result<()> {
    let (memory, ledger) = Ledger::create(options.max)?;
    let (credits_out, credits_in) = std::io::pipe().context("cannot create a pipe")?;
    let end = Instant::now() + options.time;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let mut workers = Vec::new();
    for _ in 0..options.workers {
        if !ledger.claim() {
            break;
        }
        let start = || work(options, ledger, memory.as_raw_fd(), (&credits_out, &credits_in), end);
        workers.extend(ledger.born(births::fork(start))?);
    }
    let failed = reap_all(&workers, &credits_in)?;
    let mut out = std::io::stdout();
    writeln!(out, "{}", serde_json::to_string(&ledger.report(options.case.name()))?)?;
    if workers.is_empty() || failed > 0 {
        bail!("{} workers started, {failed} children failed", workers.len());
    }
    Ok(())
}

fn work(
    options: &Options,
    ledger: &'static Ledger,
    memory: i32,
    credits: (&PipeReader, &PipeWriter),
    end: Instant,
) -> i32 {
    let worker = Worker::new(options, ledger, memory, credits);
    let result = worker.and_then(|mut worker| worker.run(options.case, end));
    match result {
        Ok(()) => 0,
        Err(error) => {
            complain(&error, 1);
            1
        }
    }
}

/// Reaps the workers and their CLONE_PARENT children, which are children of this process, until none
/// is left: only then is the ledger final. Each such child that is reaped is a credit for another.
fn reap_all(workers: &[i32], mut credits: &PipeWriter) -> Result<usize> {
    let mut failed = 0;
    while let Some((pid, status)) = births::reap_any()? {
        failed += usize::from(status != Status::Fine);
        if !workers.contains(&pid) {
            credits.write_all(b"c").context("cannot write a credit")?;
        }
    }
    Ok(failed)
}
