//! Runs one program until it ends or its time limit is reached.

use std::{
    io::Read,
    os::unix::process::CommandExt as _,
    process::{Command, ExitStatus, Stdio},
    sync::mpsc::channel,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};

/// Bytes of output to keep. The end of the output shows what went wrong.
const KEPT: usize = 16 * 1024;
/// How long the output may stay open after the program has ended: a test that leaves a process
/// behind must not block the run.
const GRACE: Duration = Duration::from_secs(2);

pub enum Verdict {
    Passed,
    Failed { why: String, output: String },
}

pub struct Step {
    command: Command,
    /// The text that a test program prints only if it has run its test.
    proof: Option<&'static str>,
}

impl Step {
    pub fn command(command: Command) -> Self {
        Self { command, proof: None }
    }

    /// Makes a step for one test. The exit code is not enough: a test program also ends with 0 if no
    /// test has the given name.
    pub fn test(command: Command) -> Self {
        Self { command, proof: Some("test result: ok. 1 passed;") }
    }

    pub fn judge(mut self, limit: Duration) -> Result<Verdict> {
        let (reader, writer) = std::io::pipe().context("cannot create a pipe")?;
        let errors = writer.try_clone().context("cannot share a pipe")?;
        self.command.stdin(Stdio::null()).stdout(writer).stderr(errors).process_group(0);
        let child = self.command.spawn();
        let mut child = child.with_context(|| format!("cannot start {:?}", self.command))?;
        // The command holds our ends of the pipe: this closes them.
        self.command.stdout(Stdio::null()).stderr(Stdio::null());
        let (done, whole) = channel();
        let (kept, output) = channel();
        std::thread::spawn(move || {
            let _ = kept.send(end_of(reader));
            let _ = done.send(());
        });
        let ended = ends_within(Pid::from_child(&child), limit)?;
        if !ended {
            // The whole group. The child has not been reaped, so its pid cannot have been reused.
            kill_process_group(Pid::from_child(&child), Signal::KILL).context("cannot kill it")?;
        }
        let status = child.wait().context("cannot wait for it")?;
        let closed = whole.recv_timeout(GRACE).is_ok();
        let output = output.try_recv().unwrap_or_else(|_| "(its output is still open)".to_owned());
        Ok(self.verdict(status, ended, closed, limit, output))
    }

    fn verdict(
        &self,
        status: ExitStatus,
        ended: bool,
        closed: bool,
        limit: Duration,
        output: String,
    ) -> Verdict {
        let why = if !ended {
            format!("did not end within {} s; killed", limit.as_secs())
        } else if !status.success() {
            status.to_string()
        } else if !closed {
            "a process that it started is still running".to_owned()
        } else if self.proof.is_some_and(|proof| !output.contains(proof)) {
            "it succeeded, but has no test of that name".to_owned()
        } else {
            return Verdict::Passed;
        };
        Verdict::Failed { why, output }
    }
}

fn ends_within(child: Pid, limit: Duration) -> Result<bool> {
    let pidfd = pidfd_open(child, PidfdFlags::empty()).context("pidfd_open")?;
    let end = Instant::now() + limit;
    loop {
        let left = Timespec::try_from(end.saturating_duration_since(Instant::now()))?;
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("poll of a pidfd"),
        }
    }
}

/// Reads to the end and keeps the last bytes.
fn end_of(mut reader: impl Read) -> String {
    let mut kept = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(length @ 1..) = reader.read(&mut piece) {
        kept.extend_from_slice(&piece[..length]);
        if kept.len() > 2 * KEPT {
            kept.drain(..kept.len() - KEPT);
        }
    }
    let from = kept.len().saturating_sub(KEPT);
    String::from_utf8_lossy(&kept[from..]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Step {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Step::command(command)
    }

    fn why(step: Step, limit: u64) -> Option<String> {
        match step.judge(Duration::from_secs(limit)).unwrap() {
            Verdict::Passed => None,
            Verdict::Failed { why, output } => Some(format!("{why}: {output}")),
        }
    }

    #[test]
    fn a_step_is_judged_by_its_status_output_and_time() {
        assert_eq!(why(shell("exit 0"), 20), None);
        assert_eq!(why(shell("echo no; exit 3"), 20).unwrap(), "exit status: 3: no\n");
        assert!(
            why(shell("echo begun; exec sleep 60"), 1).unwrap().contains("did not end within 1 s")
        );
        assert!(why(shell("sleep 5 & exit 0"), 20).unwrap().contains("still running"));
    }

    #[test]
    fn a_program_that_runs_no_test_does_not_pass() {
        let step = |script| Step { proof: Some("test result: ok. 1 passed;"), ..shell(script) };
        assert_eq!(why(step("echo 'test result: ok. 1 passed; 0 failed'"), 20), None);
        assert!(why(step("echo 'test result: ok. 0 passed;'"), 20).unwrap().contains("no test"));
    }

    #[test]
    fn the_end_of_a_long_output_is_kept() {
        let text = end_of(&[[b'a'; 100_000].as_slice(), b"the end"].concat()[..]);
        assert!(text.len() <= KEPT && text.ends_with("athe end"));
    }
}
