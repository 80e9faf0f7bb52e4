//! The one place that writes to the terminal.
//!
//! A terminal or pipe that was closed is no reason to stop: there may be an engine to clean up.

use std::io::Write;
use std::time::{Duration, Instant};

/// Writes one line of the answer to stdout.
pub fn say(line: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}

/// Writes one line about what went wrong to stderr.
pub fn complain(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// A duration as people read it: `3.4 s`.
pub fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// Runs one step and says in one line how it ended and how long it took.
pub fn step<T>(name: &str, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let start = Instant::now();
    let outcome = work();
    let verdict = if outcome.is_ok() { "ok" } else { "FAILED" };
    say(&format!("{name}: {verdict} ({})", seconds(start.elapsed())));
    outcome
}
