//! Tests the runner: failures must be reported, with their cause and place.

use anyhow::{Result, ensure};
use guest_runner::{Plan, Test};

use super::follow::Report;
use super::payload::Payload;
use super::{follow, one};
use crate::programs;
use crate::say::{say, step};

/// The smallest guest that runs the agent.
const IMAGE: &str = "kernel-6.12";

const NEVER_READY: &str = "#!/bin/sh\necho never ready >/dev/console\nexec sleep 600\n";

/// Runs all cases, each of which must fail as expected. Returns their number.
pub fn run(built: &programs::Built) -> Result<u64> {
    step("vm: an agent that never becomes ready", || never_ready(built))?;
    step("vm: a kernel that panics", panics)?;
    Ok(2)
}

/// Replaces the agent with a program that starts but never becomes ready.
fn never_ready(built: &programs::Built) -> Result<()> {
    let test = Test { program: "host_control".into(), name: "it_describes_itself".into() };
    let plan = Plan { tests: vec![test], limit: 10, ..Plan::default() };
    let payload = Payload::new()?;
    payload.with_programs(built, &plan)?;
    payload.replace("bin/mcp-guard", NEVER_READY)?;
    let report = follow(one(IMAGE)?, &payload, &plan, "", None)?;
    let words = ["host_control::it_describes_itself", "did not end within 10 s", "never ready"];
    expect(&report, &words)
}

/// Makes the kernel panic through sysrq: <https://docs.kernel.org/admin-guide/sysrq.html>.
fn panics() -> Result<()> {
    let crash = "echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger";
    let before = vec![["sh", "-c", crash].map(str::to_owned).to_vec()];
    let plan = Plan { before, limit: 60, ..Plan::default() };
    let report = follow(one(IMAGE)?, &Payload::new()?, &plan, "", None)?;
    expect(&report, &[crash, "the kernel reports a problem", "sysrq triggered crash"])
}

/// Checks that there is exactly one failure and that its explanation has all of these words.
fn expect(report: &Report, words: &[&str]) -> Result<()> {
    let shown = report.explain().join("\n");
    say(&format!("the runner reports:\n{shown}"));
    ensure!(report.failures.len() == 1, "{} failures instead of one", report.failures.len());
    for word in words {
        ensure!(shown.contains(word), "the failure does not contain {word:?}");
    }
    Ok(())
}
