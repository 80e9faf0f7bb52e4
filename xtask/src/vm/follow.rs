//! Follows a guest by its lines and its console. Pure: the time is an argument.

use std::time::Duration;

use guest_runner::Line;

/// The longest silence. A guest sends a beat every five seconds, but a loaded host may delay it.
const SILENCE: Duration = Duration::from_secs(60);
/// The longest time from power-on to the first line.
const BOOT: Duration = Duration::from_secs(240);

/// Words, anywhere in a line of the console, with which the kernel reports a problem.
const TROUBLE: [&str; 12] = [
    "Kernel panic",
    "Oops:",
    "BUG: ",
    "kernel BUG at",
    "soft lockup",
    "hard LOCKUP",
    "rcu_sched detected stalls",
    "rcu_preempt detected stalls",
    "self-detected stall on CPU",
    "detected expedited stalls",
    "blocked for more than",
    "general protection fault",
];

/// The progress of a run.
#[derive(Debug, Default)]
pub struct Report {
    /// The console's last lines.
    pub console: String,
    pub passed: u64,
    pub failures: Vec<Failure>,
    pub facts: Vec<(String, String)>,
    /// Whether the guest has sent its last line.
    pub over: bool,
    /// The test or command that is running in the guest.
    now: Option<String>,
    up: bool,
    heard: Duration,
    /// The longest time of the whole run.
    limit: Duration,
}

/// A failure of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub what: String,
    pub why: String,
    pub output: String,
}

impl Report {
    pub fn new(limit: Duration) -> Self {
        Self { limit, ..Self::default() }
    }

    /// Processes one line of the guest, which arrived `at` this time after power-on. Returns the text to
    /// show, if any.
    pub fn line(&mut self, at: Duration, text: &str) -> Option<String> {
        self.heard = at;
        let Ok(line) = serde_json::from_str(text) else {
            let text = text.trim_end();
            return (!text.is_empty()).then(|| format!("unexpected line: {text}"));
        };
        match line {
            Line::Up => {
                self.up = true;
                Some(format!("up after {:.0} s", at.as_secs_f64()))
            }
            Line::Begin { what } => {
                self.now = Some(what);
                None
            }
            Line::Beat => None,
            Line::Ready { what, millis } => {
                self.now = None;
                Some(format!("ready   {:>6.1} s  {what}", seconds(millis)))
            }
            Line::Passed { what, millis } => {
                self.now = None;
                self.passed += 1;
                Some(format!("ok      {:>6.1} s  {what}", seconds(millis)))
            }
            Line::Failed { what, millis, why, output } => {
                self.now = None;
                let shown = format!("FAILED  {:>6.1} s  {what}: {why}\n{output}", seconds(millis));
                self.failures.push(Failure { what, why, output });
                Some(shown)
            }
            // Another one in each run, so that the table does not have it.
            Line::Fact { name, value } if name.starts_with("measured ") => {
                Some(format!("{name}: {value}"))
            }
            Line::Fact { name, value } => {
                let shown = format!("fact    {name}: {value}");
                self.facts.push((name, value));
                Some(shown)
            }
            Line::Over { passed, failed } => {
                self.over = true;
                let received = (self.passed, self.failures.len() as u64);
                if received != (passed, failed) {
                    self.fail(format!(
                        "the guest counted {passed} passed and {failed} failed; \
                         the host received {received:?}"
                    ));
                }
                None
            }
        }
    }

    /// Returns whether the run must be ended `at` this time. Records the reason as a failure.
    pub fn overdue(&mut self, at: Duration, console: &str) -> bool {
        let limit = if self.up { SILENCE } else { BOOT };
        let trouble = trouble(console).map(|line| format!("the kernel reports a problem: {line}"));
        let silent = (at.saturating_sub(self.heard) > limit)
            .then(|| format!("the guest sent nothing for {} s", limit.as_secs()));
        let late = (at > self.limit)
            .then(|| format!("the run did not end within {} s", self.limit.as_secs()));
        let Some(why) = trouble.or(silent).or(late) else { return false };
        self.fail(why);
        true
    }

    /// Checks the console once more after the last line, because `overdue` is no longer called then.
    pub fn last_look(&mut self, console: &str) {
        if let Some(line) = trouble(console) {
            let why = format!("the kernel reports a problem: {line}");
            self.failed("after the last test", why);
        }
    }

    /// Records that QEMU has ended. Before the last line that is a failure.
    pub fn ended(&mut self, console: &str, complaint: &str) {
        if self.over {
            return;
        }
        let why = trouble(console).map_or_else(
            || format!("the guest ended without a verdict {complaint}").trim_end().to_owned(),
            |line| format!("the kernel reports a problem: {line}"),
        );
        self.fail(why);
    }

    /// Returns the lines that explain all failures, or none if there is no failure.
    pub fn explain(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for Failure { what, why, output } in &self.failures {
            lines.push(format!("---- {what}: {why}"));
            lines.extend(output.lines().map(str::to_owned));
        }
        if !lines.is_empty() {
            lines.push("---- the last lines of the guest's console:".to_owned());
            lines.extend(self.console.lines().map(str::to_owned));
        }
        lines
    }

    /// Records a failure.
    pub fn failed(&mut self, what: &str, why: String) {
        self.failures.push(Failure { what: what.to_owned(), why, output: String::new() });
    }

    /// Records a failure that no test reported, under the name of the test that was running.
    fn fail(&mut self, why: String) {
        let what = match self.now.take() {
            Some(what) => what,
            None if self.up => "between two tests".to_owned(),
            None => "boot".to_owned(),
        };
        self.failed(&what, why);
    }
}

/// Returns the first line in which the kernel reports a problem.
fn trouble(console: &str) -> Option<&str> {
    console.lines().find(|line| TROUBLE.iter().any(|words| line.contains(words))).map(str::trim)
}

/// Returns the last lines of a text, without empty ones.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

fn seconds(millis: u64) -> f64 {
    Duration::from_millis(millis).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    fn report(lines: &[Line]) -> Report {
        let mut report = Report::new(S(1000));
        for line in lines {
            report.line(S(10), &serde_json::to_string(line).unwrap());
        }
        report
    }

    fn begin(what: &str) -> Line {
        Line::Begin { what: what.into() }
    }

    fn why(report: &Report) -> Vec<(&str, &str)> {
        report.failures.iter().map(|one| (one.what.as_str(), one.why.as_str())).collect()
    }

    #[test]
    fn a_complete_run_has_no_failure() {
        let passed = Line::Passed { what: "a::b".into(), millis: 10 };
        let report =
            report(&[Line::Up, begin("a::b"), passed, Line::Over { passed: 1, failed: 0 }]);
        assert!(report.over && report.failures.is_empty() && report.passed == 1);
    }

    #[test]
    fn silence_is_a_failure_of_the_running_test() {
        let mut report = report(&[Line::Up, begin("a::b")]);
        assert!(!report.overdue(S(70), "all is well"));
        assert!(report.overdue(S(71), "all is well"));
        assert_eq!(why(&report), [("a::b", "the guest sent nothing for 60 s")]);
    }

    #[test]
    fn a_run_that_never_ends_is_ended() {
        let mut report = report(&[Line::Up, begin("a::b")]);
        report.line(S(1000), "\"beat\"");
        assert!(!report.overdue(S(1000), ""));
        assert!(report.overdue(S(1001), ""));
        assert_eq!(why(&report), [("a::b", "the run did not end within 1000 s")]);
    }

    #[test]
    fn a_boot_may_take_longer() {
        let mut report = Report::new(S(1000));
        assert!(!report.overdue(S(240), ""));
        assert!(report.overdue(S(241), ""));
        assert_eq!(why(&report), [("boot", "the guest sent nothing for 240 s")]);
    }

    #[test]
    fn a_problem_of_the_kernel_ends_the_run_at_once() {
        let mut report = report(&[Line::Up, begin("a::b")]);
        let console = "[ 1.0] fine\n[ 2.0] watchdog: BUG: soft lockup - CPU#0 stuck\n";
        assert!(report.overdue(S(11), console));
        let line = "the kernel reports a problem: [ 2.0] watchdog: BUG: soft lockup - CPU#0 stuck";
        assert_eq!(why(&report), [("a::b", line)]);
    }

    #[test]
    fn a_problem_after_the_last_test_is_a_failure() {
        let mut report = report(&[Line::Up, Line::Over { passed: 0, failed: 0 }]);
        report.last_look("[ 2.0] all is well\n");
        assert_eq!(why(&report), []);
        for words in [
            "rcu: INFO: rcu_preempt self-detected stall on CPU",
            "INFO: task sh:7 blocked for more than 120 seconds.",
        ] {
            report.last_look(words);
            let (what, said) = why(&report).pop().unwrap();
            assert_eq!(what, "after the last test");
            assert!(said.ends_with(words), "{said}");
        }
    }

    #[test]
    fn an_end_without_a_verdict_is_a_failure() {
        let mut report = report(&[Line::Up]);
        report.ended("", "qemu: no disk");
        let expected = "the guest ended without a verdict qemu: no disk";
        assert_eq!(why(&report), [("between two tests", expected)]);
    }

    #[test]
    fn a_lost_line_is_a_failure() {
        let report = report(&[Line::Up, Line::Over { passed: 3, failed: 0 }]);
        assert_eq!(report.failures.len(), 1);
    }

    #[test]
    fn the_tail_has_no_empty_lines() {
        assert_eq!(tail("a\n\nb\n \nc\n", 2), "b\nc");
    }
}
