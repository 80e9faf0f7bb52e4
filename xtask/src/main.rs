//! The tasks that contributors and CI run: build the kernel side, check, test, demo, bench.

mod bench;
mod check;
mod counts;
mod demo;
mod demo_docker;
mod deny;
mod docker;
mod docs;
mod ebpf;
mod english;
mod fuzz;
mod lanes;
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
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, checks, tests and demonstrates mcp-guard")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Build the kernel side and replace the committed object
    Ebpf {
        /// Only check that the committed object matches its sources
        #[arg(long, conflicts_with = "features")]
        check: bool,
        /// Build with debug lines; the result is not committed
        #[arg(long, value_parser = ["bpf-log"])]
        features: Option<String>,
    },
    /// Check the format, clippy, the documentation, the committed object and the dependencies, and run all tests
    Check {
        /// Install and start what the checks and the tests need, without asking
        #[arg(long)]
        setup: bool,
        /// Do not run the tests
        #[arg(long)]
        no_test: bool,
    },
    /// Run every tier of tests that this machine can run
    Test {
        /// Install and start what the tests need, without asking
        #[arg(long)]
        setup: bool,
    },
    /// Fuzz the parsers and the core: all targets, or one
    Fuzz {
        /// A file or folder of `fuzz/fuzz_targets`, without its ending
        target: Option<String>,
        /// How long each target runs
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// Run a command with the engine and the images of the Docker tests
    Docker {
        /// Install and start what the Docker tests need, without asking
        #[arg(long)]
        setup: bool,
        /// The command; DOCKER_HOST names the engine, and MCP_GUARD_TEST_* name the images
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Show how mcp-guard contains a leak
    Demo {
        /// Use a real container with real MCP servers behind a real leaking gateway
        #[arg(long)]
        docker: bool,
        /// Install and start what the demo in Docker needs, without asking
        #[arg(long, requires = "docker")]
        setup: bool,
        /// Draw the output into docs/demo.svg
        #[arg(long, conflicts_with = "docker")]
        svg: bool,
    },
    /// Generate the parts of the documents that are made from the program: commands, policy keys, output
    Docs,
    /// Measure what mcp-guard costs and how fast it acts, and compare it with its goals and peers
    Bench {
        /// Install the peers that it is compared with, without asking
        #[arg(long)]
        setup: bool,
        /// Arguments for the bench itself, such as `--only latency`
        #[arg(last = true)]
        more: Vec<String>,
    },
    /// Build and run virtual machines with other kernels, systemd, Docker and Podman
    Vm {
        #[command(subcommand)]
        verb: vm::Verb,
    },
    /// Run a private Docker engine until stdin ends (started by the commands that need one)
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

/// Runs a command. Exit codes: 0 success, 1 failure, 2 cannot run.
fn run(verb: Verb) -> Result<u8> {
    match verb {
        Verb::Ebpf { check: true, .. } => ebpf::check().map(|()| 0),
        Verb::Ebpf { features, .. } => ebpf::rebuild(features.is_some()).map(|()| 0),
        Verb::Check { setup, no_test } => check::run(setup, no_test),
        Verb::Test { setup } => test::run(setup),
        Verb::Fuzz { target, seconds } => {
            fuzz::run(target.as_deref(), Duration::from_secs(seconds))
        }
        Verb::Docker { setup, command } => docker::with_rig(setup, &command),
        Verb::Demo { docker: true, setup, .. } => demo_docker::run(setup),
        Verb::Demo { svg: true, .. } => demo::svg(),
        Verb::Demo { docker: false, .. } => demo::run(),
        Verb::Docs => docs::write().map(|()| 0),
        Verb::Bench { setup, more } => bench::run(setup, &more),
        Verb::Vm { verb } => vm::run(verb),
        Verb::EngineKeeper => docker::keep_engine().map(|()| 0),
    }
}
