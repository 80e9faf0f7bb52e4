//! The runner, tested: what must fail fails, and says what and where.

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

/// The number of cases, all of which went wrong as they should.
pub fn run(built: &programs::Built) -> Result<u64> {
    step("vm: an agent that never becomes ready", || never_ready(built))?;
    step("vm: a kernel that panics", panics)?;
    Ok(2)
}

/// A program in the place of the agent that starts and says nothing.
fn never_ready(built: &programs::Built) -> Result<()> {
    let test = Test { program: "host_control".into(), name: "it_describes_itself".into() };
    let plan = Plan { tests: vec![test], limit: 10, ..Plan::default() };
    let payload = Payload::new()?;
    payload.with_programs(built, &plan)?;
    payload.replace("bin/mcp-guard", NEVER_READY)?;
    let report = follow(one(IMAGE)?, &payload, &plan, "", None)?;
    expect(&report, &["host_control::it_describes_itself", "not over within 10 s", "never ready"])
}

/// The kernel's own way to make one: <https://docs.kernel.org/admin-guide/sysrq.html>.
fn panics() -> Result<()> {
    let crash = "echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger";
    let before = vec![["sh", "-c", crash].map(str::to_owned).to_vec()];
    let plan = Plan { before, limit: 60, ..Plan::default() };
    let report = follow(one(IMAGE)?, &Payload::new()?, &plan, "", None)?;
    expect(&report, &[crash, "the kernel is in trouble", "sysrq triggered crash"])
}

/// One failure, whose explanation has all of these words.
fn expect(report: &Report, words: &[&str]) -> Result<()> {
    let shown = report.explain().join("\n");
    say(&format!("what the runner says:\n{shown}"));
    ensure!(report.failures.len() == 1, "{} failures instead of one", report.failures.len());
    for word in words {
        ensure!(shown.contains(word), "the failure does not say {word:?}");
    }
    Ok(())
}
