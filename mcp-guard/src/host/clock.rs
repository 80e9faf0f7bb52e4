//! The clocks. Decisions use no other time: they get it from here, as an argument.

use std::time::SystemTime;

use mcp_guard_core::Time;
use rustix::time::{ClockId, clock_gettime};

/// Returns `CLOCK_BOOTTIME`, which continues during suspend. Kernel records and the start times in
/// `/proc` use it too.
#[must_use]
pub fn now() -> Time {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    Time(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}

/// Returns the wall-clock time by RFC 3339 in UTC, with milliseconds.
#[must_use]
pub fn wall() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

/// Returns the id of this boot, so that a time of `CLOCK_BOOTTIME` is never taken for one of
/// another boot.
#[must_use]
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_or_else(|_| "unknown".to_owned(), |id| id.trim().to_owned())
}
