//! `demo`: starts a small leak in a scratch cgroup, and reports its detection, containment, audit lines
//! and cleanup as they happen.
//!
//! The agent is the real one, in its own process; the servers only look like `npm exec`.

mod leak;
mod scratch;
mod story;

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use mcp_guard_core::{audit::Record, incident::Outcome, policy::Response};
use tokio::signal::unix::{SignalKind, signal};

use super::{Exit, Failure, out, runtime};
use crate::host::{bpf, kernel, layout::Layout};
pub use leak::as_demo_process;
use scratch::Scratch;
use story::Story;

/// Longest time for the whole demo.
const LIMIT: Duration = Duration::from_secs(60);
const SERVERS: u32 = 30;
/// Interval between two server starts of the leak.
const EVERY: Duration = Duration::from_millis(300);

pub fn demo() -> Result<Exit, Failure> {
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::could_not(
            "the demo needs root to load BPF programs and create a cgroup; run it with sudo",
        ));
    }
    // Checked here, so that the answer is one sentence instead of an agent's log.
    drop(bpf::Kernel::start(bpf::KernelOptions::default()).map_err(Failure::could_not)?);
    let layout = Layout::read().map_err(Failure::could_not)?;
    kernel::check(&layout).map_err(Failure::could_not)?;
    runtime()?.block_on(async {
        let mut scratch = Scratch::new(&layout)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::could_not)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(Failure::could_not)?;
        let ended = tokio::select! {
            ended = tokio::time::timeout(LIMIT, tell(&mut scratch)) => match ended {
                Ok(ended) => ended,
                Err(_) => Err(Failure { exit: Exit::Wrong, message: format!("the leak was not contained within {LIMIT:?}") }),
            },
            _ = interrupt.recv() => Err(Failure::could_not("interrupted by SIGINT; cleaned up")),
            _ = terminate.recv() => Err(Failure::could_not("terminated by SIGTERM; cleaned up")),
        };
        scratch.clean_up()?;
        if ended.is_ok() {
            out::answer("cleaned up: no process, cgroup or file is left");
        }
        ended
    })
}

async fn tell(scratch: &mut Scratch) -> Result<Exit, Failure> {
    let mut agent = DemoAgent::start(scratch)?;
    let mut story = Story::of(scratch.audit());
    let watching = |record: &Record| matches!(record, Record::GuardStart { .. });
    story.until(&mut agent.0, watching).await?;
    out::answer(&format!("watching   {} (the \"container\"), mode enforce", scratch.path()));
    out::answer(&format!(
        "leaking    one `npm exec demo-mcp-server` every {EVERY:?}; none of them ends"
    ));
    scratch.start_leak(SERVERS, EVERY)?;
    while scratch.launchers() < 2 {
        tokio::time::sleep(EVERY / 10).await;
    }
    out::answer("duplicates a second server of the same package is live");

    if !contained(scratch, &mut agent, &mut story).await? {
        return Ok(Exit::Wrong);
    }
    let before = scratch.processes();
    tokio::time::sleep(EVERY * 3).await;
    let after = scratch.processes();
    out::answer(&format!(
        "holding    {before} processes, {after} after three more start intervals"
    ));

    agent.stop()?;
    story.finish(|record| matches!(record, Record::Release { outcome: Some(_), .. }))?;
    let thawed = !scratch.is_frozen();
    let answer = if thawed { "yes" } else { "NO" };
    out::answer(&format!("stopped    the agent released its freeze: {answer}"));
    out::answer(&format!("audit      {} lines read back:", story.lines().len()));
    for line in story.lines() {
        out::answer(&format!("  {}", story::shorten(line)));
    }
    Ok(if before == after && thawed { Exit::Done } else { Exit::Wrong })
}

/// Follows the audit log up to the freeze. Returns true if a warning came first and the kernel reports
/// the cgroup as frozen.
async fn contained(
    scratch: &Scratch,
    agent: &mut DemoAgent,
    story: &mut Story,
) -> Result<bool, Failure> {
    let mut warned = false;
    let end = story
        .until(&mut agent.0, |record| {
            if let Record::Warning { cause, .. } = record {
                warned = true;
                out::answer(&format!("warning    {}", story::because(cause)));
            }
            matches!(record, Record::Outcome { response: Response::Freeze, .. })
        })
        .await?;
    let Record::Outcome { outcome, detail, timing, .. } = end else { return Ok(false) };
    if outcome != Outcome::Done || !warned || !scratch.is_frozen() {
        out::error(&format!("not contained: {outcome:?}, {detail}"));
        return Ok(false);
    }
    let millis = |us: Option<u64>| us.unwrap_or(0) as f64 / 1000.0;
    let written = millis(timing.map(|timing| timing.written_us));
    let confirmed = millis(timing.and_then(|timing| timing.confirmed_us));
    out::answer(&format!(
        "contained  after {} servers: frozen {confirmed:.1} ms after the last one reached act_age \
         (cgroup.freeze written after {written:.1} ms)",
        scratch.launchers()
    ));
    Ok(true)
}

/// The demo's agent. It is stopped with SIGTERM, so that it releases what it holds.
struct DemoAgent(Child);

impl DemoAgent {
    fn start(scratch: &Scratch) -> Result<Self, Failure> {
        let child = Command::new("/proc/self/exe")
            .arg("--run-dir")
            .arg(scratch.folder())
            .arg("--audit")
            .arg(scratch.audit())
            .args(["--docker", "/nonexistent", "run", "--policy"])
            .arg(scratch.policy())
            .env("MCP_GUARD_LOG", "error")
            .stdin(Stdio::null())
            .spawn();
        child
            .map(Self)
            .map_err(|error| Failure::could_not(format!("cannot start the agent: {error}")))
    }

    fn stop(&mut self) -> Result<(), Failure> {
        let pid = rustix::process::Pid::from_child(&self.0);
        let ended = rustix::process::kill_process(pid, rustix::process::Signal::TERM)
            .map_err(std::io::Error::from)
            .and_then(|()| self.0.wait());
        match ended {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(Failure::could_not(format!("the agent ended with {status}"))),
            Err(error) => Err(Failure::could_not(format!("cannot stop the agent: {error}"))),
        }
    }
}

impl Drop for DemoAgent {
    fn drop(&mut self) {
        if !matches!(self.0.try_wait(), Ok(Some(_))) {
            let _ = self.stop();
        }
    }
}
