//! The only place that writes to the terminal.
//!
//! A closed terminal or pipe is ignored: there may be an engine to clean up.

use std::io::Write;
use std::time::{Duration, Instant};

/// Writes one line to stdout.
pub fn say(line: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}

/// Writes one line about a problem to stderr.
pub fn complain(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Formats a duration, such as `3.4 s`.
pub fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// Runs one step and prints one line with its result and duration.
pub fn step<T>(name: &str, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let start = Instant::now();
    let outcome = work();
    let verdict = if outcome.is_ok() { "ok" } else { "FAILED" };
    say(&format!("{name}: {verdict} ({})", seconds(start.elapsed())));
    outcome
}
