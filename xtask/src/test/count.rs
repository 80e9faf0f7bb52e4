//! Runs `cargo test`, shows its output as it comes, and counts its tests.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, PipeReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::tree;
use crate::counts::Counts;
use crate::program;
use crate::say::say;

/// How long the output may stay open after cargo ended.
const GRACE: Duration = Duration::from_secs(2);
/// How often it is asked whether cargo ended.
const LOOK: Duration = Duration::from_millis(100);

/// Runs `cargo test` to its end, or ends it after `limit`. A failed test is not an error; it is counted.
pub fn cargo_test(command: &mut Command, limit: Duration) -> Result<Counts> {
    say(&format!("+ {}", program::line(command)));
    follow(command, limit, say)
}

/// Every line of a command's output goes to `show`.
fn follow(command: &mut Command, limit: Duration, show: fn(&str)) -> Result<Counts> {
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
    let status = wait(&mut child, limit).context("cannot wait for cargo")?;
    let closed = whole.recv_timeout(GRACE).is_ok();
    let lines: Vec<String> = parsed.try_iter().collect();
    let mut counts = count(&lines);
    counts.problem = match status {
        None => {
            Some(format!("not over after {} s, while {} ran", limit.as_secs(), running(&lines)))
        }
        Some(_) if !closed => Some("a process that a test started is still running".into()),
        Some(status) if !status.success() && counts.failed == 0 => {
            Some(format!("`{}` ended with {status}", program::line(command)))
        }
        Some(_) => counts.problem,
    };
    Ok(counts)
}

/// How it ended; nothing where it had to be ended.
fn wait(child: &mut Child, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
    let began = Instant::now();
    while began.elapsed() < limit {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        std::thread::sleep(LOOK);
    }
    tree::end(child);
    child.wait().map(|_| None)
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

/// What ran last: `test NAME ... ` is followed by its verdict, in a line with it where nobody else writes.
fn running(lines: &[String]) -> String {
    let (mut program, mut tests) = (String::new(), BTreeSet::new());
    for line in lines {
        if let Some(name) = program_of(line) {
            program = name;
            tests.clear();
        } else if let Some(test) = line.strip_prefix("test ") {
            let slow = test.split_once(" has been running for over ").map(|(name, _)| name);
            if let Some(name) = slow {
                tests.insert(name);
            } else if let Some((name, verdict)) = test.split_once(" ... ") {
                let over = ["ok", "FAILED", "ignored"].iter().any(|word| verdict.starts_with(word));
                if over {
                    tests.remove(name)
                } else {
                    tests.insert(name)
                };
            }
        }
    }
    let tests: Vec<&str> = tests.into_iter().collect();
    if tests.is_empty() { program } else { format!("{program}::{}", tests.join(", ")) }
}

/// How cargo begins with the examples in a library's comments, of which it may have none.
const EXAMPLES: &str = "Doc-tests ";

fn count(lines: &[String]) -> Counts {
    let mut counts = Counts::default();
    let (mut program, mut examples) = (String::new(), false);
    for line in lines {
        if let Some(name) = program_of(line) {
            program = name;
            examples = line.trim_start().starts_with(EXAMPLES);
        } else if let Some(result) = line.strip_prefix("test result: ") {
            let tests = add(&mut counts, result);
            if tests == 0 && !examples {
                // What it had is gone, or was never seen.
                counts.problem = Some(format!("{program} has no test"));
            }
        }
    }
    counts
}

/// The test program that a line of cargo's begins.
fn program_of(line: &str) -> Option<String> {
    let words = line.trim_start();
    words.strip_prefix("Running ").or(words.strip_prefix(EXAMPLES)).map(short)
}

/// `ok. 12 passed; 0 failed; 1 ignored; 0 measured; ...`; how many tests that were.
fn add(counts: &mut Counts, result: &str) -> u64 {
    let number = |what: &str| {
        let field = result.split(['.', ';']).find_map(|field| field.trim().strip_suffix(what));
        field.and_then(|number| number.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    let (passed, failed, ignored) = (number("passed"), number("failed"), number("ignored"));
    counts.passed += passed;
    counts.failed += failed;
    counts.ignored += ignored;
    passed + failed + ignored
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
     Running tests/host_fork.rs (target/debug/deps/host_fork-77)
test a ... ok
test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; finished in 1.2s
   Doc-tests mcp_guard
test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s";
        let lines: Vec<String> = output.lines().map(str::to_owned).collect();
        let counts = count(&lines);
        assert_eq!(counts, Counts { passed: 14, failed: 3, ignored: 1, problem: None });
    }

    #[test]
    fn a_program_without_a_test_is_a_problem_and_a_library_without_examples_is_none() {
        let none = "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out;";
        let problem = |began: &str| count(&[began.to_owned(), none.to_owned()]).problem;
        let program = problem("     Running unittests src/main.rs (target/debug/deps/xtask-0a1b)");
        assert_eq!(program.as_deref(), Some("xtask has no test"));
        assert_eq!(problem("   Doc-tests mcp_guard"), None);
    }

    #[test]
    fn a_left_over_process_does_not_hang_the_run() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 3 & echo 'test result: ok. 1 passed; 0 failed;'"]);
        let counts = follow(&mut command, Duration::from_secs(60), |_| {}).unwrap();
        assert_eq!((counts.passed, counts.problem.is_some()), (1, true));
    }

    #[test]
    fn what_does_not_end_is_ended_and_named() {
        let script = "echo '     Running tests/host_x.rs (target/debug/deps/host_x-0a)'
            echo 'test a ... ok'
            printf 'test b ... '
            sleep 1000 & wait; :";
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let counts = follow(&mut command, Duration::from_secs(1), |_| {}).unwrap();
        assert_eq!(counts.problem.unwrap(), "not over after 1 s, while host_x::b ran");
    }

    #[test]
    fn of_tests_side_by_side_the_slow_ones_are_named() {
        let lines = [
            "     Running unittests src/lib.rs (target/debug/deps/core-0a)",
            "test a has been running for over 60 seconds",
            "test b has been running for over 60 seconds",
            "test a ... ok",
        ];
        assert_eq!(running(&lines.map(str::to_owned)), "core::b");
    }
}
