//! Runs `cargo test`, shows its output as it comes, and counts its tests.

use std::io::{BufRead, BufReader, PipeReader};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::program;
use crate::say::say;

/// How long the output may stay open after cargo ended.
const GRACE: Duration = Duration::from_secs(2);

/// The tests of one or more runs of `cargo test`.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
pub struct Counts {
    pub passed: u64,
    pub failed: u64,
    pub ignored: u64,
    /// Test programs that have no test.
    pub empty: Vec<String>,
    /// What went wrong beside failed tests.
    pub problem: Option<String>,
}

impl Counts {
    /// Nothing went wrong.
    pub fn passed(passed: u64) -> Self {
        Self { passed, ..Self::default() }
    }

    /// Both runs together.
    pub fn and(mut self, other: Self) -> Self {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.empty.extend(other.empty);
        self.problem = self.problem.or(other.problem);
        self
    }
}

/// Runs `cargo test` to its end. A failed test is not an error; it is counted.
pub fn cargo_test(command: &mut Command) -> Result<Counts> {
    say(&format!("+ {}", program::line(command)));
    follow(command, say)
}

/// Runs a command to its end; every line of its output goes to `show`.
fn follow(command: &mut Command, show: fn(&str)) -> Result<Counts> {
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    // One pipe for both streams keeps the name of a test program before its result.
    let stderr = writer.try_clone().context("cannot share a pipe")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(stderr)
        .spawn()
        .context("cannot start cargo")?;
    // The command keeps our ends of the pipe; the reader waits until all of them are closed.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let (done, whole) = channel();
    let (lines, parsed) = channel();
    std::thread::spawn(move || pass_on(reader, show, &lines, &done));
    let status = child.wait().context("cannot wait for cargo")?;
    let closed = whole.recv_timeout(GRACE).is_ok();
    let mut counts = count(parsed.try_iter());
    if !closed {
        counts.problem = Some("a process that a test started is still running".into());
    } else if !status.success() && counts.failed == 0 {
        counts.problem = Some(format!("`{}` ended with {status}", program::line(command)));
    }
    Ok(counts)
}

fn pass_on(reader: PipeReader, show: fn(&str), lines: &Sender<String>, done: &Sender<()>) {
    for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).into_owned();
        show(&line);
        // Nobody listens any more after the grace time.
        let _ = lines.send(line);
    }
    let _ = done.send(());
}

fn count(lines: impl Iterator<Item = String>) -> Counts {
    let mut counts = Counts::default();
    let mut program = String::new();
    for line in lines {
        let words = line.trim_start();
        if let Some(name) = words.strip_prefix("Running ").or(words.strip_prefix("Doc-tests ")) {
            program = short(name);
        } else if let Some(result) = line.strip_prefix("test result: ") {
            add(&mut counts, result, &program);
        }
    }
    counts
}

/// `ok. 12 passed; 0 failed; 1 ignored; 0 measured; ...`
fn add(counts: &mut Counts, result: &str, program: &str) {
    let number = |what: &str| {
        let field = result.split(['.', ';']).find_map(|field| field.trim().strip_suffix(what));
        field.and_then(|number| number.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    let (passed, failed, ignored) = (number("passed"), number("failed"), number("ignored"));
    if passed + failed + ignored == 0 {
        counts.empty.push(program.to_owned());
    }
    counts.passed += passed;
    counts.failed += failed;
    counts.ignored += ignored;
}

/// `unittests src/lib.rs (target/debug/deps/mcp_guard-0123)` as `mcp_guard`.
fn short(name: &str) -> String {
    let file = name.rsplit(['/', '(']).next().unwrap_or(name).trim_end_matches(')');
    file.rsplit_once('-').map_or(file, |(stem, _)| stem).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_the_tests_of_several_programs() {
        let output = "\
     Running unittests src/main.rs (target/debug/deps/xtask-0a1b)
running 0 tests
test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
     Running tests/host_fork.rs (target/debug/deps/host_fork-77)
test a ... ok
test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; finished in 1.2s
   Doc-tests mcp_guard
test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s";
        let counts = count(output.lines().map(str::to_owned));
        let empty = vec!["xtask".to_owned()];
        assert_eq!(counts, Counts { passed: 14, failed: 3, ignored: 1, empty, problem: None });
    }

    #[test]
    fn a_left_over_process_does_not_hang_the_run() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 3 & echo 'test result: ok. 1 passed; 0 failed;'"]);
        let counts = follow(&mut command, |_| {}).unwrap();
        assert_eq!((counts.passed, counts.problem.is_some()), (1, true));
    }
}
