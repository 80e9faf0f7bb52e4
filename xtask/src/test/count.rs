//! Runs `cargo test`, shows its output as it arrives, and counts its tests.

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

/// How long the output may stay open after cargo has ended.
const GRACE: Duration = Duration::from_secs(2);
/// How often to check whether cargo has ended.
const LOOK: Duration = Duration::from_millis(100);

/// Runs `cargo test` to its end, or kills it after `limit`. A failed test is counted and is not an
/// error.
pub fn cargo_test(command: &mut Command, limit: Duration) -> Result<Counts> {
    say(&format!("+ {}", program::line(command)));
    follow(command, limit, say)
}

/// Runs a command, passes every line of its output to `show`, and counts its tests.
fn follow(command: &mut Command, limit: Duration, show: fn(&str)) -> Result<Counts> {
    let (reader, writer) = std::io::pipe().context("cannot create a pipe")?;
    // With one pipe for both streams, the name of a test program stays before its result.
    let stderr = writer.try_clone().context("cannot share a pipe")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(stderr)
        .spawn()
        .context("cannot start cargo")?;
    // The command holds our ends of the pipe: this closes them, so that the reader can reach the end.
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
            let seconds = limit.as_secs();
            Some(format!("did not end within {seconds} s; {} was running", running(&lines)))
        }
        Some(_) if !closed => Some("a process that a test started is still running".into()),
        Some(status) if !status.success() && counts.failed == 0 => {
            Some(format!("`{}` ended with {status}", program::line(command)))
        }
        Some(_) => counts.problem,
    };
    Ok(counts)
}

/// Returns the exit status, or None if the child had to be killed.
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
        // After the grace period the receiver is gone.
        let _ = lines.send(line);
    }
    let _ = done.send(());
}

/// Returns the tests that ran last.
///
/// The verdict follows `test NAME ... `, on the same line unless something else writes in between.
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

/// The line that begins the examples in a library's comments. A library may have no examples.
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
                // Its tests are gone, or were never found.
                counts.problem = Some(format!("{program} has no test"));
            }
        }
    }
    counts
}

/// Returns the name of the test program if a line of cargo begins one.
fn program_of(line: &str) -> Option<String> {
    let words = line.trim_start();
    words.strip_prefix("Running ").or(words.strip_prefix(EXAMPLES)).map(short)
}

/// Adds the counts of a line like `ok. 12 passed; 0 failed; 1 ignored; 0 measured; ...`, and returns
/// how many tests it has.
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

/// Shortens `unittests src/lib.rs (target/debug/deps/mcp_guard-0123)` to `mcp_guard`.
fn short(name: &str) -> String {
    let file = name.rsplit(['/', '(']).next().unwrap_or(name).trim_end_matches(')');
    file.rsplit_once('-').map_or(file, |(stem, _)| stem).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tests_of_several_programs_are_counted() {
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
    fn a_program_without_tests_is_a_problem_but_a_library_without_examples_is_not() {
        let none = "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out;";
        let problem = |began: &str| count(&[began.to_owned(), none.to_owned()]).problem;
        let program = problem("     Running unittests src/main.rs (target/debug/deps/xtask-0a1b)");
        assert_eq!(program.as_deref(), Some("xtask has no test"));
        assert_eq!(problem("   Doc-tests mcp_guard"), None);
    }

    #[test]
    fn a_leftover_process_does_not_block_the_run() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 3 & echo 'test result: ok. 1 passed; 0 failed;'"]);
        let counts = follow(&mut command, Duration::from_secs(60), |_| {}).unwrap();
        assert_eq!((counts.passed, counts.problem.is_some()), (1, true));
    }

    #[test]
    fn a_test_that_does_not_end_is_killed_and_named() {
        let script = "echo '     Running tests/host_x.rs (target/debug/deps/host_x-0a)'
            echo 'test a ... ok'
            printf 'test b ... '
            sleep 1000 & wait; :";
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let counts = follow(&mut command, Duration::from_secs(1), |_| {}).unwrap();
        assert_eq!(counts.problem.unwrap(), "did not end within 1 s; host_x::b was running");
    }

    #[test]
    fn slow_tests_are_named_when_tests_run_in_parallel() {
        let lines = [
            "     Running unittests src/lib.rs (target/debug/deps/core-0a)",
            "test a has been running for over 60 seconds",
            "test b has been running for over 60 seconds",
            "test a ... ok",
        ];
        assert_eq!(running(&lines.map(str::to_owned)), "core::b");
    }
}
