//! `cargo xtask test`: runs every tier of tests that this machine can run, and prints one line per tier
//! at the end.

mod count;
mod host;
mod left;
mod tier;
mod tree;

use std::time::Duration;

use anyhow::Result;

use crate::counts::Counts;
use crate::docker::Rig;
use crate::ebpf;
use crate::packages::{self, Permission};
use crate::say::say;
use crate::{fuzz, lanes, programs, vm, workspace};
use tier::{Outcome, Tier};

/// The time limit of one run of `cargo test`, with its build. On two CPUs all runs together take a
/// quarter of an hour.
const LIMIT: Duration = Duration::from_secs(20 * 60);

/// How long each fuzz target runs.
const FUZZ: Duration = Duration::from_secs(10);

/// The test that fills a PID namespace.
const P072: &str = "p072_the_pid_namespace_has_no_numbers_left";
/// The first kernel whose PID namespaces have their own `pid_max`.
const NAMESPACED_PID_MAX: (u32, u32) = (6, 14);

/// Runs the tiers. Exit codes: 0 all passed, 1 a test failed, 2 a tier could not run.
pub fn run(setup: bool) -> Result<u8> {
    let permission = Permission::from_flag(setup);
    let before = left::Picture::take();
    let mut tiers = vec![
        Tier::run("pure", pure),
        Tier::run("fuzz", fuzz),
        Tier::run("host", || host(permission)),
        Tier::run("docker", || docker(permission)),
    ];
    tiers.extend(guests(permission));
    if let Err(left) = before.compare_with_now() {
        tiers.push(Tier::run("cleanliness", || Err(left)));
    }
    for line in before.of_an_earlier_run() {
        say(&format!("left by an earlier run: {line}"));
    }
    for tier in &tiers {
        say(&tier.line());
    }
    let (passed, failed) = tier::sum(&tiers);
    say(&format!("{passed} passed, {failed} failed"));
    Ok(tier::exit_code(&tiers, workspace::in_ci()))
}

/// Runs the pure tests. They need neither root nor kernel features.
fn pure() -> Result<Outcome> {
    programs::build_pure()?;
    let mut cargo = programs::workspace_cargo("test");
    Ok(Outcome::Ran(count::cargo_test(cargo.arg("--no-fail-fast"), LIMIT)?))
}

/// Runs each fuzz target for some seconds, from the seeds. They need nightly.
fn fuzz() -> Result<Outcome> {
    if let Err(reason) = ebpf::toolchain::require_nightly() {
        return Ok(Outcome::CouldNotRun(format!("{reason:#}")));
    }
    fuzz::all(FUZZ).map(Outcome::Ran)
}

/// Runs the host tests. They need root, BPF and a writable cgroup2 tree.
fn host(permission: Permission) -> Result<Outcome> {
    let provided = || packages::provide_all(permission, &packages::HOST);
    if let Err(reason) = host::ready().and_then(|()| provided()) {
        return Ok(Outcome::CouldNotRun(format!("{reason:#}")));
    }
    programs::build_tests()?;
    let mut cargo = programs::workspace_cargo("test");
    // One at a time: the tests count the machine's own events, and a host has only one agent.
    cargo.args(["--no-fail-fast", "--test", "host_*", "--", "--test-threads=1"]);
    let counts = count::cargo_test(&mut cargo, LIMIT)?;
    Ok(Outcome::Ran(match bpf_log() {
        Ok(more) => counts.and(more),
        Err(error) => counts.and_then(Err(error)),
    }))
}

/// Tests the kernel side's debug lines. Their object is never committed, so it is built here.
fn bpf_log() -> Result<Counts> {
    if let Some(reason) = ebpf::toolchain::reason_to_skip()? {
        say(&format!("not in this set: the test of `bpf-log`: {reason}"));
        return Ok(Counts::default());
    }
    let object = ebpf::debug_object()?;
    let mut cargo = programs::workspace_cargo("test");
    cargo.args(["--test", "bpf_log"]);
    count::cargo_test(cargo.env("MCP_GUARD_BPF_OBJECT", object), LIMIT)
}

/// Runs the Docker tests. They need a Docker engine, and root to act on its containers.
fn docker(permission: Permission) -> Result<Outcome> {
    if let Err(reason) = host::ready() {
        return Ok(Outcome::CouldNotRun(format!("{reason:#}")));
    }
    let rig = match Rig::for_tests(permission) {
        Ok(rig) => rig,
        Err(reason) => return Ok(Outcome::CouldNotRun(format!("{reason:#}"))),
    };
    programs::build_tests()?;
    let counts = docker_tests(&rig)?;
    Ok(Outcome::Ran(counts.and_then(rig.close())))
}

fn docker_tests(rig: &Rig) -> Result<Counts> {
    let mut cargo = programs::workspace_cargo("test");
    cargo.args(["--no-fail-fast", "--test", "docker_*", "--", "--test-threads=1"]);
    if host::kernel()? < NAMESPACED_PID_MAX {
        say(&format!("not in this set: docker_diagnose::{P072}: needs Linux 6.14"));
        cargo.args(["--skip", P072]);
    }
    rig.tell(&mut cargo);
    count::cargo_test(&mut cargo, LIMIT)
}

/// Runs one tier per guest, and one for the runner that drives the guests. They need QEMU.
fn guests(permission: Permission) -> Vec<Tier> {
    if let Err(reason) = vm::ready(permission) {
        let reason = format!("{reason:#}");
        return vec![Tier::run("guests", || Ok(Outcome::CouldNotRun(reason)))];
    }
    let guests = match vm::Guests::usual() {
        Ok(guests) => guests,
        Err(error) => return vec![Tier::run("guests", || Err(error))],
    };
    let guests = &guests;
    let mut jobs: Vec<lanes::Job<'_, Tier>> = Vec::new();
    for image in vm::images() {
        let test = || guests.test(image).map(Outcome::Ran);
        jobs.push(Box::new(move || Tier::run(format!("guest {}", image.name), test)));
    }
    let self_test = || guests.self_test().map(Counts::passed).map(Outcome::Ran);
    jobs.push(Box::new(move || Tier::run("guest runner", self_test)));
    lanes::one_per_cpu(jobs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_test_that_needs_a_newer_kernel_exists() {
        let file = workspace::root().join("tests/tests/docker_diagnose/above.rs");
        let text = std::fs::read_to_string(file).unwrap();
        assert!(text.contains(&format!("fn {P072}()")));
    }
}
