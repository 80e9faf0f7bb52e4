//! Traces for `replay`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mcp_guard_core::{policy::Policy, replay::replay};

/// A replay looks at each second, and a trace may last a year. Here it lasts ten minutes.
const LONGEST_NS: u64 = 600_000_000_000;

fuzz_target!(|trace: &str| {
    let lasts = |line: &str| {
        let event: serde_json::Value = serde_json::from_str(line).ok()?;
        event["t"].as_u64()
    };
    if trace.lines().filter_map(lasts).any(|t| t > LONGEST_NS) {
        return;
    }
    let Ok(report) = replay(trace, Policy::default()) else { return };
    let live: usize = report.identities.values().map(|one| one.live_at_end).sum();
    assert!(live <= report.live_at_end, "{live} servers, {} processes", report.live_at_end);
});
