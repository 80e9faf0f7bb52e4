//! The command line: one small file per verb. stdout carries the answer alone, logs go to stderr.

mod demo;
mod diagnose;
mod doctor;
mod exit;
mod explain;
mod hands;
mod out;
mod repair;
mod replay;
mod resolve;
mod run;
mod status;

use std::{io::IsTerminal as _, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Parser, Subcommand};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing_subscriber::EnvFilter;

pub use exit::{Exit, Failure};

use crate::{
    control::lock::DEFAULT_RUN_DIR,
    engine::{DEFAULT_SOCKET, DEFAULT_TIMEOUT, Engines},
    requests::DEFAULT_STATE_DIR,
};

/// Finds, explains and contains process leaks of MCP servers in containers.
///
/// Exit codes: 0 done and nothing wrong; 1 answered, and something is wrong (refused, not contained);
/// 2 could not (target, rights, BPF, engine); 64 bad command line; 65 bad policy or input file.
#[derive(Debug, Parser)]
#[command(name = "mcp-guard", version, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    host: HostOptions,
    #[command(subcommand)]
    verb: Verb,
}

/// Where things are on this host.
#[derive(Clone, Debug, Args)]
pub struct HostOptions {
    /// Directory of the agent's lock and control socket.
    #[arg(long, global = true, value_name = "DIR", default_value = DEFAULT_RUN_DIR)]
    pub run_dir: PathBuf,
    /// Docker's socket.
    #[arg(long, global = true, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub docker: String,
    /// How long an engine may take to answer; a change may take three times as long.
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
    /// What must outlive a reboot.
    #[arg(long, global = true, value_name = "DIR", default_value = DEFAULT_STATE_DIR)]
    pub state_dir: PathBuf,
}

impl HostOptions {
    #[must_use]
    pub fn engines(&self) -> Engines {
        Engines::at(&self.docker, self.engine_timeout)
    }
}

/// bollard counts whole seconds, and an hour times anything fits.
fn engine_timeout(text: &str) -> Result<Duration, String> {
    let timeout = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if timeout < Duration::from_secs(1) || timeout > Duration::from_secs(3600) {
        return Err("it must lie between 1s and 1h".to_owned());
    }
    Ok(timeout)
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// The agent: watch, detect, contain.
    Run(run::Arguments),
    /// What the agent guards: servers, totals, rates, losses.
    Status {
        /// JSON instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Stop every process of a target, for a limited time.
    Freeze {
        /// Container name, id or id prefix; docker:NAME, unit:NAME, cgroup:/path, pid:N.
        target: String,
        /// Thaw after this time.
        #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "5min")]
        lease: Duration,
        /// All checks, but not the last step.
        #[arg(long)]
        dry_run: bool,
    },
    /// Undo a freeze or clamp of mcp-guard's own.
    Thaw {
        /// As for freeze.
        #[arg(required_unless_present = "owned", conflicts_with = "owned")]
        target: Option<String>,
        /// Everything on this host that an agent which is gone left frozen or clamped.
        #[arg(long)]
        owned: bool,
    },
    /// Kill every process of a target.
    Kill {
        /// As for freeze.
        target: String,
        /// All checks, but not the last step.
        #[arg(long)]
        dry_run: bool,
    },
    /// Why a PID limit does not hold, with evidence, and how to mend it.
    Diagnose(diagnose::Arguments),
    /// Write a limit where it is kept, and prove that it holds.
    Repair(repair::Arguments),
    /// The long form of a finding: what it means, how it is proved, how to mend it by hand.
    Explain {
        /// MG-P001, P001 or 1; without one, the list of all.
        code: Option<String>,
    },
    /// What this host can do, and what is missing.
    Doctor {
        /// JSON instead of text.
        #[arg(long)]
        json: bool,
    },
    /// A small leak in a cgroup of its own: detected, contained, audited, cleaned up.
    Demo,
    /// Run a policy over a recorded spawn trace; touches nothing.
    Replay(replay::Arguments),
}

/// Parses, dispatches, and turns what happened into an exit code.
#[must_use]
pub fn main() -> ExitCode {
    if let Some(code) = demo::as_demo_process() {
        return code;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers, everything else is a bad command line.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage.into() } else { Exit::Done.into() };
        }
    };
    log_to_stderr(&cli.verb);
    if let Err(error) = raise_open_files() {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    match dispatch(cli) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            out::error(&failure.message);
            failure.exit.into()
        }
    }
}

fn dispatch(cli: Cli) -> Result<Exit, Failure> {
    let host = cli.host;
    match cli.verb {
        Verb::Run(arguments) => run::run(&host, &arguments),
        Verb::Status { json } => status::status(&host, json),
        Verb::Freeze { target, lease, dry_run } => hands::freeze(&host, &target, lease, dry_run),
        Verb::Thaw { owned: true, .. } => hands::thaw_owned(&host),
        Verb::Thaw { target, .. } => hands::thaw(&host, &target.unwrap_or_default()),
        Verb::Kill { target, dry_run } => hands::kill(&host, &target, dry_run),
        Verb::Diagnose(arguments) => diagnose::diagnose(&host, &arguments),
        Verb::Repair(arguments) => repair::repair(&host, &arguments),
        Verb::Explain { code } => explain::explain(code.as_deref()),
        Verb::Doctor { json } => doctor::doctor(&host, json),
        Verb::Demo => demo::demo(),
        Verb::Replay(arguments) => replay::replay(&arguments),
    }
}

/// Each guard holds two descriptors, and a walk one for each level of a tree that containers make: 1024,
/// the usual soft limit, is for programs that use select(2).
fn raise_open_files() -> std::io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?)
}

fn log_to_stderr(verb: &Verb) {
    let level = if matches!(verb, Verb::Run(_)) { "info" } else { "warn" };
    let colour = std::env::var_os("NO_COLOR").is_none() && std::io::stderr().is_terminal();
    let filter = EnvFilter::try_from_env("MCP_GUARD_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .init();
}

/// One thread: the agent's loop needs no more, and capabilities are per thread.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Failure::could_not(format!("the runtime cannot start: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_may_take_ten_seconds_or_what_is_said_before_or_behind_the_verb() {
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
    fn as_many_files_as_allowed_may_be_open() {
        let hard = getrlimit(Resource::Nofile).maximum;
        setrlimit(Resource::Nofile, Rlimit { current: Some(256), maximum: hard }).unwrap();
        raise_open_files().unwrap();
        let now = getrlimit(Resource::Nofile);
        assert_eq!((now.current, now.maximum), (hard, hard));
    }
}
