//! The command line: one small file per verb. stdout carries only the answer; logs go to stderr.

mod demo;
mod diagnose;
mod doctor;
mod exit;
mod explain;
mod hands;
mod listed;
mod out;
mod policy;
mod reap;
mod record;
#[cfg(test)]
mod reference;
mod repair;
mod replay;
mod resolve;
mod run;
mod status;
mod suspend;

use std::{
    io::IsTerminal as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Parser, Subcommand};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing_subscriber::EnvFilter;

pub use exit::{Exit, Failure};

use self::{
    hands::How,
    out::{Complaints, Terminal},
};

use crate::{
    control::lock::DEFAULT_RUN_DIR,
    engine::{DEFAULT_SOCKET, DEFAULT_TIMEOUT, Engines},
    requests::DEFAULT_STATE_DIR,
    warden,
};

/// Finds, explains and contains process leaks of MCP servers in containers.
///
/// Exit codes: 0 success; 1 answered, but something is wrong (refused, not contained); 2 failed
/// (target, permissions, BPF, engine); 64 bad command line; 65 bad policy or input file.
#[derive(Debug, Parser)]
#[command(name = "mcp-guard", version, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    host: HostOptions,
    #[command(subcommand)]
    verb: Verb,
}

/// Paths and timeouts on this host.
#[derive(Clone, Debug, Args)]
pub struct HostOptions {
    /// Directory of the agent's lock and control socket.
    #[arg(long, global = true, value_name = "DIR", default_value = DEFAULT_RUN_DIR)]
    pub run_dir: PathBuf,
    /// Socket of the engine: Docker's, or Podman's Docker-compatible one.
    #[arg(long, global = true, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub docker: String,
    /// Longest wait for an engine's answer, 1s to 1h; writing a limit through the engine may take
    /// three times as long.
    #[arg(
        long,
        global = true,
        value_name = "DURATION",
        value_parser = engine_timeout,
        default_value = DEFAULT_TIMEOUT
    )]
    pub engine_timeout: Duration,
    /// Audit log to append to.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        default_value = "/var/log/mcp-guard/audit.jsonl"
    )]
    pub audit: PathBuf,
    /// Directory of the state that survives a reboot.
    #[arg(long, global = true, value_name = "DIR", default_value = DEFAULT_STATE_DIR)]
    pub state_dir: PathBuf,
}

impl HostOptions {
    #[must_use]
    pub fn engines(&self) -> Engines {
        Engines::at(&self.docker, self.engine_timeout)
    }

    /// The files and folders that the agent writes to all the time, with their names in messages.
    #[must_use]
    pub fn storage(&self) -> [(&str, &Path); 2] {
        [("audit log", &self.audit), ("run directory", &self.run_dir)]
    }
}

/// Parses a timeout between 1 second and 1 hour: bollard counts whole seconds, and an hour can be
/// multiplied without overflow.
fn engine_timeout(text: &str) -> Result<Duration, String> {
    let timeout = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if timeout < Duration::from_secs(1) || timeout > Duration::from_secs(3600) {
        return Err("must be between 1s and 1h".to_owned());
    }
    Ok(timeout)
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the agent: watch, detect and contain.
    Run(run::Arguments),
    /// Show the guarded cgroups: servers, counts, rates, and whether records were lost.
    Status(status::Arguments),
    /// Freeze every process of a target for a limited time.
    Freeze {
        /// Container name, id or id prefix; docker:NAME, unit:NAME, cgroup:/path or pid:N.
        target: String,
        /// Time after which the target is thawed, 1s to 1day.
        #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "5min")]
        lease: Duration,
        /// Run every check, but do not act.
        #[arg(long)]
        dry_run: bool,
        /// Act even though the target contains process PID, which an earlier refusal has named. It runs
        /// containers, or belongs to a guest. That process, or the whole guest, is then acted on too.
        #[arg(long, value_name = "PID")]
        despite: Option<u32>,
    },
    /// Undo a freeze or clamp that mcp-guard made.
    Thaw {
        /// Target, named as for freeze.
        #[arg(required_unless_present = "owned", conflicts_with = "owned")]
        target: Option<String>,
        /// Release every freeze and clamp on this host whose mcp-guard process has ended.
        #[arg(long)]
        owned: bool,
    },
    /// Kill every process of a target.
    Kill {
        /// Target, named as for freeze.
        target: String,
        /// Run every check, but do not act.
        #[arg(long)]
        dry_run: bool,
        /// Act even though the target contains process PID, which an earlier refusal has named. It runs
        /// containers, or belongs to a guest. That process, or the whole guest, is then acted on too.
        #[arg(long, value_name = "PID")]
        despite: Option<u32>,
    },
    /// Freeze single servers that wait for their client and for nothing else. They wake when it asks them.
    Suspend(suspend::Arguments),
    /// Let suspended servers run again.
    Resume(suspend::ResumeArguments),
    /// End single servers that no client can reach, or that have been idle for long.
    Reap(reap::Arguments),
    /// Explain, with evidence, why a process limit is not in force, and how to fix it.
    Diagnose(diagnose::Arguments),
    /// Write a limit where its owner stores it, and prove that it is in force.
    Repair(repair::Arguments),
    /// Print the long form of a finding: what it means, how it is proved, how to fix it by hand.
    Explain {
        /// Code of the finding: MG-P001, P001 or 1; without it, all findings are listed.
        code: Option<String>,
    },
    /// Check, show or explain the policy, or have the agent read it again.
    Policy(policy::Arguments),
    /// Check what this host supports and what it lacks.
    Doctor {
        /// Print JSON instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Start a small leak in a scratch cgroup, and show its detection, containment and cleanup.
    Demo,
    /// Record what happens in a guarded container to a file for replay; changes nothing in it.
    Record(record::Arguments),
    /// Show what the detectors decide about a recorded workload; changes nothing on this host.
    Replay(replay::Arguments),
    /// Wake suspended servers. The agent starts it, and its stdin is the agent's socket.
    #[command(hide = true)]
    Warden,
}

impl Verb {
    fn terminal(&self) -> Terminal {
        match self {
            Self::Run(_) => Terminal::of_the_agent(),
            Self::Freeze { .. } | Self::Thaw { .. } | Self::Kill { .. } | Self::Repair(_) => {
                Terminal::that_never_waits()
            }
            Self::Status(_)
            | Self::Suspend(_)
            | Self::Resume(_)
            | Self::Reap(_)
            | Self::Diagnose(_)
            | Self::Explain { .. }
            | Self::Policy(_)
            | Self::Doctor { .. }
            | Self::Demo
            | Self::Record(_)
            | Self::Replay(_)
            | Self::Warden => Terminal::that_may_wait(),
        }
    }
}

/// Parses the command line, runs the verb, and turns its result into an exit code.
#[must_use]
pub fn main() -> ExitCode {
    if let Some(code) = demo::as_demo_process() {
        return code;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers; every other error is a bad command line.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage.into() } else { Exit::Done.into() };
        }
    };
    let terminal = cli.verb.terminal();
    log_to_stderr(&cli.verb, terminal.complaints());
    if let Err(error) = raise_open_files() {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    let exit = dispatch(cli, &terminal).unwrap_or_else(|failure| {
        terminal.complaints().error(&failure.message);
        failure.exit
    });
    terminal.finish();
    exit.into()
}

fn dispatch(cli: Cli, terminal: &Terminal) -> Result<Exit, Failure> {
    let host = cli.host;
    match cli.verb {
        Verb::Run(arguments) => run::run(&host, &arguments),
        Verb::Status(arguments) => status::status(&host, &arguments),
        Verb::Freeze { target, lease, dry_run, despite } => {
            hands::freeze(&host, terminal, &target, lease, How { dry_run, despite })
        }
        Verb::Thaw { owned: true, .. } => hands::thaw_owned(&host, terminal),
        Verb::Thaw { target, .. } => hands::thaw(&host, terminal, &target.unwrap_or_default()),
        Verb::Kill { target, dry_run, despite } => {
            hands::kill(&host, terminal, &target, How { dry_run, despite })
        }
        Verb::Suspend(arguments) => suspend::suspend(&host, &arguments),
        Verb::Resume(arguments) => suspend::resume(&host, &arguments),
        Verb::Reap(arguments) => reap::reap(&host, &arguments),
        Verb::Diagnose(arguments) => diagnose::diagnose(&host, &arguments),
        Verb::Repair(arguments) => repair::repair(&host, &arguments, terminal),
        Verb::Explain { code } => explain::explain(code.as_deref()),
        Verb::Policy(arguments) => policy::policy(&host, &arguments),
        Verb::Doctor { json } => doctor::doctor(&host, json),
        Verb::Demo => demo::demo(),
        Verb::Record(arguments) => record::record(&host, &arguments),
        Verb::Replay(arguments) => replay::replay(&arguments),
        Verb::Warden => warden::process::run().map(|()| Exit::Done).map_err(Failure::could_not),
    }
}

/// Raises the soft limit of open files to the hard limit. Each guard holds two descriptors, and a walk
/// holds one per level of a tree whose depth containers control. The usual soft limit of 1024 exists
/// for programs that use select(2).
fn raise_open_files() -> std::io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?)
}

/// Sends logs to stderr.
fn log_to_stderr(verb: &Verb, complaints: Complaints) {
    let level = if matches!(verb, Verb::Run(_)) { "info" } else { "warn" };
    let colour = std::env::var_os("NO_COLOR").is_none() && std::io::stderr().is_terminal();
    let filter = EnvFilter::try_from_env("MCP_GUARD_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colour);
    log.with_writer(move || complaints.clone()).init();
}

/// Builds a runtime of one thread: the agent's loop needs no more, and capabilities are per thread.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Failure::could_not(format!("cannot start the async runtime: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_timeout_is_ten_seconds_or_is_set_before_or_after_the_verb() {
        for (words, expected) in [
            ("mcp-guard status", Some(10_000)),
            ("mcp-guard --engine-timeout 60s status", Some(60_000)),
            ("mcp-guard --engine-timeout 60s status --engine-timeout 1500ms", Some(1_500)),
            ("mcp-guard --engine-timeout 0s status", None),
            ("mcp-guard --engine-timeout 3y status", None),
        ] {
            let cli = Cli::try_parse_from(words.split(' ')).ok();
            let found = cli.map(|cli| cli.host.engine_timeout.as_millis());
            assert_eq!(found, expected, "{words}");
        }
    }

    #[test]
    fn the_soft_limit_of_open_files_is_raised_to_the_hard_limit() {
        let hard = getrlimit(Resource::Nofile).maximum;
        setrlimit(Resource::Nofile, Rlimit { current: Some(256), maximum: hard }).unwrap();
        raise_open_files().unwrap();
        let now = getrlimit(Resource::Nofile);
        assert_eq!((now.current, now.maximum), (hard, hard));
    }
}
