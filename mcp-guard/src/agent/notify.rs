//! What systemd is told: ready, a line of status, that the loop still turns, and the end.

use std::{env, ffi::OsString, io, os::unix::net::UnixDatagram, time::Duration};

use mcp_guard_core::{Time, policy::Mode};
use sd_notify::NotifyState;

/// The line that `systemctl status` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    pub mode: Mode,
    pub guards: usize,
}

/// What was told last; decides what is told next.
#[derive(Debug, Default)]
struct Told {
    /// Longest silence that systemd takes for life, see `WatchdogSec=` in systemd.service(5).
    watchdog: Option<Duration>,
    last: Option<(Time, Shown)>,
}

impl Told {
    /// The next message, where one is due. The first one says that we are ready, and each one is a
    /// sign of life.
    fn due(&self, now: Time, shown: Shown) -> Option<String> {
        let is_new = self.last.is_none_or(|(_, before)| before != shown);
        let is_silent = self.last.zip(self.watchdog).is_some_and(|((at, _), longest)| {
            // Half of it, as sd_watchdog_enabled(3) recommends.
            now.since(at) >= longest / 2
        });
        if !is_new && !is_silent {
            return None;
        }
        let Shown { mode, guards } = shown;
        let status = format!("{mode}, {guards} guard{}", if guards == 1 { "" } else { "s" });
        let mut states = Vec::new();
        if self.last.is_none() {
            states.push(NotifyState::Ready);
        }
        if is_new {
            states.push(NotifyState::Status(&status));
        }
        if self.watchdog.is_some() {
            states.push(NotifyState::Watchdog);
        }
        Some(message(&states))
    }
}

/// Tells nobody where nobody asked for it.
pub struct Notify {
    told: Told,
    to: Option<(UnixDatagram, OsString)>,
    has_failed: bool,
}

impl Notify {
    /// Who is told, by this process's environment.
    pub fn from_environment() -> Self {
        let mut notify = Self { told: Told::default(), to: None, has_failed: false };
        let Some(address) = env::var_os("NOTIFY_SOCKET") else { return notify };
        notify.told.watchdog = sd_notify::watchdog_enabled();
        // The crate's own sender waits while the queue of PID 1 is full, as in a storm it may be; a
        // guard must not stand still then.
        let socket = UnixDatagram::unbound();
        match socket.and_then(|socket| socket.set_nonblocking(true).map(|()| socket)) {
            Ok(socket) => notify.to = Some((socket, address)),
            Err(error) => notify.failed(&error),
        }
        notify
    }

    /// Called at each tick, so that a loop that stands still is silent. What could not be told is
    /// told at the next one.
    pub fn turn(&mut self, now: Time, shown: Shown) {
        if self.to.is_none() {
            return;
        }
        if let Some(message) = self.told.due(now, shown)
            && self.send(&message)
        {
            self.told.last = Some((now, shown));
        }
    }

    /// The end is in order. From here on systemd waits for `TimeoutStopSec=`, not for signs of life.
    pub fn stopping(&mut self, reason: &str) {
        let status = format!("stopping: {reason}");
        self.send(&message(&[NotifyState::Stopping, NotifyState::Status(&status)]));
    }

    fn send(&mut self, message: &str) -> bool {
        let Some((socket, address)) = &self.to else { return false };
        match socket.send_to(message.as_bytes(), address) {
            Ok(_) => true,
            Err(error) => {
                self.failed(&error);
                false
            }
        }
    }

    fn failed(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.has_failed, true) {
            tracing::warn!(%error, "systemd cannot be told; said once");
        }
    }
}

fn message(states: &[NotifyState]) -> String {
    let lines: Vec<String> = states.iter().map(ToString::to_string).collect();
    // A line break inside would be read as a line of its own, which may say anything.
    lines.iter().map(|line| line.replace('\n', " ")).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn shown(guards: usize) -> Shown {
        Shown { mode: Mode::Observe, guards }
    }

    /// What is told at these times, in quarters of a second, with so many guards.
    fn told(watchdog: Option<Duration>, ticks: &[(u32, usize)]) -> Vec<Option<String>> {
        let mut told = Told { watchdog, last: None };
        let mut all = Vec::new();
        for (quarters, guards) in ticks {
            let now = Time::default().after(SECOND / 4 * *quarters);
            let message = told.due(now, shown(*guards));
            if message.is_some() {
                told.last = Some((now, shown(*guards)));
            }
            all.push(message);
        }
        all
    }

    #[test]
    fn ready_once_and_a_status_when_it_changes() {
        let told = told(None, &[(0, 0), (1, 0), (2, 1), (3, 1), (4000, 1), (4001, 2)]);
        let told: Vec<_> = told.iter().map(Option::as_deref).collect();
        let expected = [
            Some("READY=1\nSTATUS=observe, 0 guards"),
            None,
            Some("STATUS=observe, 1 guard"),
            None,
            None,
            Some("STATUS=observe, 2 guards"),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn a_sign_of_life_at_half_the_interval_counted_from_any_message() {
        let ticks = [(0, 1), (1, 1), (2, 1), (3, 2), (4, 2), (5, 2), (9, 2), (10, 2)];
        let told = told(Some(SECOND), &ticks);
        let told: Vec<_> = told.iter().map(Option::as_deref).collect();
        let expected = [
            Some("READY=1\nSTATUS=observe, 1 guard\nWATCHDOG=1"),
            None,
            Some("WATCHDOG=1"),
            Some("STATUS=observe, 2 guards\nWATCHDOG=1"),
            None,
            Some("WATCHDOG=1"),
            Some("WATCHDOG=1"),
            None,
        ];
        assert_eq!(told, expected);
    }

    /// A socket nobody reads: the loop goes on, and what was not told is still due.
    #[test]
    fn a_full_queue_neither_blocks_nor_loses_that_it_is_ready() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let systemd = UnixDatagram::bind(&path).expect("binds");
        let socket = UnixDatagram::unbound().expect("a socket");
        socket.set_nonblocking(true).expect("sets");
        while socket.send_to(b"X=1", &path).is_ok() {}
        let to = Some((socket, path.into_os_string()));
        let mut notify = Notify { told: Told::default(), to, has_failed: false };
        notify.turn(Time::default(), shown(0));
        assert!(notify.has_failed && notify.told.last.is_none());

        systemd.set_nonblocking(true).expect("sets");
        let mut buffer = [0; 256];
        while systemd.recv(&mut buffer).is_ok() {}
        notify.turn(Time::default(), shown(0));
        let length = systemd.recv(&mut buffer).expect("told");
        assert_eq!(&buffer[..length], b"READY=1\nSTATUS=observe, 0 guards");
        notify.stopping("SIGTERM");
        let length = systemd.recv(&mut buffer).expect("told");
        assert_eq!(&buffer[..length], b"STOPPING=1\nSTATUS=stopping: SIGTERM");
    }

    #[test]
    fn nobody_asked_nobody_is_told() {
        let mut notify = Notify { told: Told::default(), to: None, has_failed: false };
        notify.turn(Time::default(), shown(0));
        notify.stopping("SIGTERM");
        assert!(notify.told.last.is_none() && !notify.has_failed);
    }

    #[test]
    fn one_line_stays_one_line() {
        assert_eq!(message(&[NotifyState::Status("a\nREADY=1")]), "STATUS=a READY=1");
    }
}
