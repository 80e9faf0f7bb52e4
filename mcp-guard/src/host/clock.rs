//! The clocks. Decisions use no other time: they get it from here, as an argument.

use std::{
    io,
    time::{Duration, SystemTime},
};

use mcp_guard_core::{Time, id::Pid};
use rustix::time::{ClockId, clock_gettime};

/// The two clocks are read one after the other, which may take a moment.
const SHORTEST_SLEEP: Duration = Duration::from_secs(1);

/// Returns `CLOCK_BOOTTIME`, which continues during suspend. Kernel records and the start times in
/// `/proc` use it too.
#[must_use]
pub fn now() -> Time {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    Time(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}

/// Returns the CPU time of this thread.
#[must_use]
pub fn thread_cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let part = |number: i64| u64::try_from(number).unwrap_or_default();
    Duration::from_secs(part(time.tv_sec)) + Duration::from_nanos(part(time.tv_nsec))
}

/// Returns how many nanoseconds the threads of a process ran, those that ended included.
///
/// # Errors
/// If there is no such process.
#[expect(unsafe_code, reason = "rustix has no clocks of other processes")]
pub(super) fn cpu_time_of(pid: Pid) -> io::Result<u64> {
    /// `CPUCLOCK_SCHED` of the kernel's `include/linux/posix-timers.h`: the scheduler's own count.
    const SCHED: i32 = 2;
    let pid = i32::try_from(pid.0).map_err(io::Error::other)?;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one `timespec`, which is `time`. It refuses a clock that it does not know.
    if unsafe { libc::clock_gettime((!pid << 3) | SCHED, &raw mut time) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let part = |number: i64| u64::try_from(number).unwrap_or_default();
    Ok(part(time.tv_sec).saturating_mul(1_000_000_000).saturating_add(part(time.tv_nsec)))
}

/// Tells when the host has been suspended.
pub struct Sleep {
    /// `CLOCK_BOOTTIME` less `CLOCK_MONOTONIC`: how long this host has slept.
    slept: Duration,
}

impl Sleep {
    #[must_use]
    pub fn since_now() -> Self {
        Self { slept: slept() }
    }

    /// Returns whether the host has slept since the last call.
    pub fn is_over(&mut self) -> bool {
        let now = slept();
        let before = std::mem::replace(&mut self.slept, now);
        now.saturating_sub(before) >= SHORTEST_SLEEP
    }
}

fn slept() -> Duration {
    let monotonic = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(monotonic.tv_sec).unwrap_or(0);
    let awake = Duration::new(seconds, u32::try_from(monotonic.tv_nsec).unwrap_or(0));
    Duration::from_nanos(now().0).saturating_sub(awake)
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
