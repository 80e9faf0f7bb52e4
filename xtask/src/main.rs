//! What a contributor or CI runs: build the kernel side, check, test, demo, bench.

mod bench;
mod check;
mod counts;
mod demo;
mod demo_docker;
mod docker;
mod ebpf;
mod packages;
mod program;
mod programs;
mod recipe;
mod say;
mod test;
mod this_run;
mod vm;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, checks, tests and shows mcp-guard")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Build the kernel side and replace the committed object
    Ebpf {
        /// Only check that the committed object belongs to its sources
        #[arg(long, conflicts_with = "features")]
        check: bool,
        /// Build with debug lines; the result is not committed
        #[arg(long, value_parser = ["bpf-log"])]
        features: Option<String>,
    },
    /// Format, clippy, documentation, the kernel side's object, and all tests
    Check {
        /// Install and start what the tests need
        #[arg(long)]
        setup: bool,
        /// Leave the tests out
        #[arg(long)]
        no_test: bool,
    },
    /// Run every tier of tests this machine can run
    Test {
        /// Install and start what the tests need, without asking
        #[arg(long)]
        setup: bool,
    },
    /// Run a command with the engine and the images of the Docker tests at hand
    Docker {
        /// Install and start what it needs, without asking
        #[arg(long)]
        setup: bool,
        /// The command; it finds the engine in DOCKER_HOST and the names in MCP_GUARD_TEST_*
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Show a leak being contained
    Demo {
        /// In a real container with real MCP servers behind a real leaking gateway
        #[arg(long)]
        docker: bool,
        /// Install and start what the demo in Docker needs, without asking
        #[arg(long, requires = "docker")]
        setup: bool,
    },
    /// Measure what mcp-guard costs and how fast it acts, beside its goals and its peers
    Bench {
        /// Install the peers it is compared with, without asking
        #[arg(long)]
        setup: bool,
        /// More for the bench itself, such as `--only latency`
        #[arg(last = true)]
        more: Vec<String>,
    },
    /// Virtual machines with other kernels, systemd, Docker and Podman
    Vm {
        #[command(subcommand)]
        verb: vm::Verb,
    },
    /// Hold a private Docker engine until stdin ends (started by the verbs that need one)
    #[command(hide = true)]
    EngineKeeper,
}

fn main() -> ExitCode {
    match run(Arguments::parse().verb) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            say::complain(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// The exit code: 0 done, 1 something is wrong, 2 could not.
fn run(verb: Verb) -> Result<u8> {
    match verb {
        Verb::Ebpf { check: true, .. } => ebpf::check().map(|()| 0),
        Verb::Ebpf { features, .. } => ebpf::rebuild(features.is_some()).map(|()| 0),
        Verb::Check { setup, no_test } => check::run(setup, no_test),
        Verb::Test { setup } => test::run(setup),
        Verb::Docker { setup, command } => docker::with_rig(setup, &command),
        Verb::Demo { docker: true, setup } => demo_docker::run(setup),
        Verb::Demo { docker: false, .. } => demo::run(),
        Verb::Bench { setup, more } => bench::run(setup, &more),
        Verb::Vm { verb } => vm::run(verb),
        Verb::EngineKeeper => docker::keep_engine().map(|()| 0),
    }
}
