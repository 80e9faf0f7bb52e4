//! Runs a plan in a guest: as a systemd service, or as the first process of a guest without a
//! distribution.

mod first;
mod step;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{ErrorKind, Write as _},
    path::Path,
    process::{Command, ExitCode},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use guest_runner::{BEAT_SECONDS, FACTS, Line, PAYLOAD, PLAN, PORT, Plan, Test};

use step::Verdict;

/// The file in which this guest's tests record facts.
const FACTS_FILE: &str = "/run/mcp-guard-test-facts";

fn main() -> ExitCode {
    if rustix::process::getpid().is_init() {
        first::run();
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Goes to the console. The host shows its last lines if the guest sends no verdict.
            let _ = writeln!(std::io::stderr(), "guest-runner: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let plan = Path::new(PAYLOAD).join(PLAN);
    let text = fs::read(&plan).with_context(|| plan.display().to_string())?;
    let plan: Plan = serde_json::from_slice(&text).with_context(|| plan.display().to_string())?;
    let port = Port::open()?;
    port.say(&Line::Up)?;
    let beat = port.clone();
    // Runs until the process ends. A failed write cannot be reported anywhere.
    std::thread::spawn(move || {
        while beat.say(&Line::Beat).is_ok() {
            std::thread::sleep(Duration::from_secs(BEAT_SECONDS));
        }
    });
    let (passed, failed) = work(&plan, &port)?;
    facts(&port)?;
    // Before the last line: the host may kill the guest as soon as it has read it.
    rustix::fs::sync();
    port.say(&Line::Over { passed, failed })?;
    if !plan.stay {
        turn_off();
    }
    Ok(())
}

/// Powers off at once: under emulation an orderly shutdown takes longer than most tests.
fn turn_off() {
    rustix::fs::sync();
    let _ = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
}

/// Returns how many tests passed and failed. If the guest cannot be prepared, no test runs.
fn work(plan: &Plan, port: &Port) -> Result<(u64, u64)> {
    for words in &plan.before {
        if !port.tell(words.join(" "), ready, || command(plan, words)?.judge(limit(plan)))? {
            return Ok((0, 1));
        }
    }
    let mut counts = (0, 0);
    for test in &plan.tests {
        if port.tell(test.to_string(), passed, || program(plan, test).judge(limit(plan)))? {
            counts.0 += 1;
        } else {
            counts.1 += 1;
        }
    }
    Ok(counts)
}

fn ready(what: String, millis: u64) -> Line {
    Line::Ready { what, millis }
}

fn passed(what: String, millis: u64) -> Line {
    Line::Passed { what, millis }
}

fn limit(plan: &Plan) -> Duration {
    Duration::from_secs(plan.limit)
}

fn command(plan: &Plan, words: &[String]) -> Result<step::Step> {
    let (name, arguments) = words.split_first().context("the plan has an empty command")?;
    let mut command = Command::new(name);
    command.args(arguments);
    Ok(step::Step::command(with_environment(command, &plan.environment)))
}

fn program(plan: &Plan, test: &Test) -> step::Step {
    let mut command = Command::new(Path::new(PAYLOAD).join("bin").join(&test.program));
    command.args(["--exact", &test.name, "--test-threads=1", "--include-ignored"]);
    step::Step::test(with_environment(command, &plan.environment))
}

fn with_environment(mut command: Command, environment: &BTreeMap<String, String>) -> Command {
    command.envs(environment).env(FACTS, FACTS_FILE);
    command
}

fn facts(port: &Port) -> Result<()> {
    let text = match fs::read_to_string(FACTS_FILE) {
        // No test of this boot recorded a fact.
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        read => read.context(FACTS_FILE)?,
    };
    for (name, value) in text.lines().filter_map(|line| line.split_once('=')) {
        port.say(&Line::Fact { name: name.to_owned(), value: value.to_owned() })?;
    }
    Ok(())
}

/// The serial port to the host. Shared with the thread that sends beats: each line is written whole.
#[derive(Clone)]
struct Port(Arc<Mutex<File>>);

impl Port {
    fn open() -> Result<Self> {
        let port = File::options().write(true).open(PORT).context(PORT)?;
        // Without raw mode the terminal would turn each line end into two bytes.
        let mut mode = rustix::termios::tcgetattr(&port).context(PORT)?;
        mode.make_raw();
        rustix::termios::tcsetattr(&port, rustix::termios::OptionalActions::Now, &mode)
            .context(PORT)?;
        Ok(Self(Arc::new(Mutex::new(port))))
    }

    fn say(&self, line: &Line) -> Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        let mut port = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        port.write_all(&text).context(PORT)
    }

    /// Runs one step, and reports its begin and its result.
    fn tell(
        &self,
        what: String,
        good: fn(String, u64) -> Line,
        work: impl FnOnce() -> Result<Verdict>,
    ) -> Result<bool> {
        self.say(&Line::Begin { what: what.clone() })?;
        let began = Instant::now();
        let verdict = work();
        let millis = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (why, output) = match verdict {
            Ok(Verdict::Passed) => {
                self.say(&good(what, millis))?;
                return Ok(true);
            }
            Ok(Verdict::Failed { why, output }) => (why, output),
            Err(error) => (format!("{error:#}"), String::new()),
        };
        self.say(&Line::Failed { what, millis, why, output })?;
        Ok(false)
    }
}
