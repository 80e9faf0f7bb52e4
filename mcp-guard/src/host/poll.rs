//! Waiting inside the async runtime: for descriptors, and for a moment.

use std::{io, os::fd::OwnedFd};

use mcp_guard_core::Time;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::{Interest, unix::AsyncFd};

/// Registers a descriptor that we own with the runtime.
///
/// # Errors
/// If the descriptor cannot be polled.
#[expect(unsafe_code, reason = "tokio requires a promise that the descriptor stays open")]
pub fn register(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd stays open and refers to the same file as long as the AsyncFd that owns
    // it lives; nothing here takes the descriptor out of it.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}

/// Wakes once, at a moment of `CLOCK_BOOTTIME`, to the nanosecond. The runtime's own timers count
/// whole milliseconds, and wake several times on the way to a distant moment.
pub struct Alarm {
    timer: AsyncFd<OwnedFd>,
    set: Option<Time>,
}

impl Alarm {
    /// # Errors
    /// If the process has no descriptors left.
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Boottime, flags)?;
        Ok(Self { timer: register(timer, Interest::READABLE)?, set: None })
    }

    /// Returns at `moment`, or at once if it has passed. The future may be dropped, and this called
    /// again.
    ///
    /// # Errors
    /// If the kernel refuses the timer.
    pub async fn at(&mut self, moment: Time) -> io::Result<()> {
        if self.set != Some(moment) {
            // Zero would disarm the timer.
            let nanos = moment.0.max(1);
            let it_value = Timespec {
                tv_sec: i64::try_from(nanos / 1_000_000_000).unwrap_or(i64::MAX),
                tv_nsec: i64::try_from(nanos % 1_000_000_000).unwrap_or(0),
            };
            let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
            let spec = Itimerspec { it_interval, it_value };
            timerfd_settime(self.timer.get_ref(), TimerfdTimerFlags::ABSTIME, &spec)?;
            self.set = Some(moment);
        }
        let mut ready = self.timer.readable().await?;
        let mut expirations = [0; 8];
        // If an older setting woke it, there is nothing to read, and it only returns early.
        let _ = rustix::io::read(self.timer.get_ref(), &mut expirations);
        ready.clear_ready();
        self.set = None;
        Ok(())
    }
}
