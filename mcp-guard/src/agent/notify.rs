//! Notifies systemd: readiness, a status line, the watchdog, and the end.

use std::{
    collections::VecDeque, env, ffi::OsString, io, os::unix::net::UnixDatagram, time::Duration,
};

use mcp_guard_core::{Time, policy::Mode};
use sd_notify::NotifyState;

/// Most messages about reloads that wait while systemd's queue is full.
const MOST_RELOADS: usize = 64;

/// The line that `systemctl status` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    pub mode: Mode,
    pub guards: usize,
    /// The policy in the files is not applied.
    pub is_rejected: bool,
}

/// The last notification; decides the next one.
#[derive(Debug, Default)]
struct Sent {
    /// Longest silence that systemd tolerates, see `WatchdogSec=` in systemd.service(5).
    watchdog: Option<Duration>,
    last: Option<(Time, Shown)>,
}

impl Sent {
    /// Returns the next message if one is due. The first one reports readiness, and each one resets the
    /// watchdog.
    fn due(&self, now: Time, shown: Shown) -> Option<String> {
        let is_new = self.last.is_none_or(|(_, before)| before != shown);
        let is_silent = self.last.zip(self.watchdog).is_some_and(|((at, _), longest)| {
            // Half of it, as sd_watchdog_enabled(3) recommends.
            now.since(at) >= longest / 2
        });
        if !is_new && !is_silent {
            return None;
        }
        let Shown { mode, guards, is_rejected } = shown;
        let plural = if guards == 1 { "" } else { "s" };
        let rejected = if is_rejected { "; THE NEW POLICY IS NOT APPLIED" } else { "" };
        let status = format!("{mode}, {guards} guard{plural}{rejected}");
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

/// Notifies systemd, or does nothing if the environment does not ask for it.
pub struct Notify {
    sent: Sent,
    /// Messages about reloads that were not sent yet, the oldest first.
    reloads: VecDeque<String>,
    to: Option<(UnixDatagram, OsString)>,
    has_failed: bool,
}

impl Notify {
    /// Reads the socket and the watchdog interval from this process's environment.
    pub fn from_environment() -> Self {
        let mut notify =
            Self { sent: Sent::default(), reloads: VecDeque::new(), to: None, has_failed: false };
        let Some(address) = env::var_os("NOTIFY_SOCKET") else { return notify };
        notify.sent.watchdog = sd_notify::watchdog_enabled();
        // The crate's own sender blocks while the queue of PID 1 is full, as it may be in a storm. The agent
        // must not stop then.
        let socket = UnixDatagram::unbound();
        match socket.and_then(|socket| socket.set_nonblocking(true).map(|()| socket)) {
            Ok(socket) => notify.to = Some((socket, address)),
            Err(error) => notify.failed(&error),
        }
        notify
    }

    /// Called at each tick, so that a loop that hangs is silent. A message that could not be sent is sent
    /// at the next tick.
    pub fn turn(&mut self, now: Time, shown: Shown) {
        if self.to.is_none() {
            return;
        }
        self.send_reloads();
        if let Some(message) = self.sent.due(now, shown)
            && self.send(&message)
        {
            self.sent.last = Some((now, shown));
        }
    }

    /// Announces that the policy is read again.
    pub fn reloading(&mut self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.announce(&[NotifyState::Reloading, now]),
            Err(error) => self.failed(&error),
        }
    }

    /// Announces that the policy was read again.
    pub fn reloaded(&mut self) {
        self.announce(&[NotifyState::Ready]);
    }

    fn announce(&mut self, states: &[NotifyState]) {
        // Each reload ends before the next one begins.
        if self.to.is_some() && self.reloads.len() < MOST_RELOADS {
            self.reloads.push_back(message(states));
            self.send_reloads();
        }
    }

    fn send_reloads(&mut self) {
        while let Some(message) = self.reloads.pop_front() {
            if !self.send(&message) {
                return self.reloads.push_front(message);
            }
        }
    }

    /// Announces an orderly end. From here on, systemd applies `TimeoutStopSec=` instead of the watchdog.
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
            tracing::warn!(%error, "cannot notify systemd; this is logged once");
        }
    }
}

fn message(states: &[NotifyState]) -> String {
    let lines: Vec<String> = states.iter().map(ToString::to_string).collect();
    // A line break inside a value would begin another assignment, with any content.
    lines.iter().map(|line| line.replace('\n', " ")).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn shown(guards: usize) -> Shown {
        Shown { mode: Mode::Observe, guards, is_rejected: false }
    }

    /// Messages sent at these ticks; each tick is a time in quarters of a second and a number of guards.
    fn sent(watchdog: Option<Duration>, ticks: &[(u32, usize)]) -> Vec<Option<String>> {
        let mut sent = Sent { watchdog, last: None };
        let mut all = Vec::new();
        for (quarters, guards) in ticks {
            let now = Time::default().after(SECOND / 4 * *quarters);
            let message = sent.due(now, shown(*guards));
            if message.is_some() {
                sent.last = Some((now, shown(*guards)));
            }
            all.push(message);
        }
        all
    }

    #[test]
    fn readiness_is_sent_once_and_the_status_when_it_changes() {
        let sent = sent(None, &[(0, 0), (1, 0), (2, 1), (3, 1), (4000, 1), (4001, 2)]);
        let sent: Vec<_> = sent.iter().map(Option::as_deref).collect();
        let expected = [
            Some("READY=1\nSTATUS=observe, 0 guards"),
            None,
            Some("STATUS=observe, 1 guard"),
            None,
            None,
            Some("STATUS=observe, 2 guards"),
        ];
        assert_eq!(sent, expected);
    }

    #[test]
    fn the_watchdog_is_reset_half_an_interval_after_any_message() {
        let ticks = [(0, 1), (1, 1), (2, 1), (3, 2), (4, 2), (5, 2), (9, 2), (10, 2)];
        let sent = sent(Some(SECOND), &ticks);
        let sent: Vec<_> = sent.iter().map(Option::as_deref).collect();
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
        assert_eq!(sent, expected);
    }

    /// No process reads the socket: the loop continues, and the unsent message is still due.
    #[test]
    fn a_full_queue_neither_blocks_the_loop_nor_loses_readiness() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let systemd = UnixDatagram::bind(&path).expect("binds");
        let socket = UnixDatagram::unbound().expect("a socket");
        socket.set_nonblocking(true).expect("sets");
        while socket.send_to(b"X=1", &path).is_ok() {}
        let to = Some((socket, path.into_os_string()));
        let mut notify =
            Notify { sent: Sent::default(), reloads: VecDeque::new(), to, has_failed: false };
        notify.turn(Time::default(), shown(0));
        assert!(notify.has_failed && notify.sent.last.is_none());

        systemd.set_nonblocking(true).expect("sets");
        let mut buffer = [0; 256];
        while systemd.recv(&mut buffer).is_ok() {}
        notify.turn(Time::default(), shown(0));
        let length = systemd.recv(&mut buffer).expect("a message");
        assert_eq!(&buffer[..length], b"READY=1\nSTATUS=observe, 0 guards");
        notify.reloading();
        notify.reloaded();
        let length = systemd.recv(&mut buffer).expect("a message");
        assert!(buffer[..length].starts_with(b"RELOADING=1\nMONOTONIC_USEC="));
        let length = systemd.recv(&mut buffer).expect("a message");
        assert_eq!(&buffer[..length], b"READY=1");
        notify.stopping("SIGTERM");
        let length = systemd.recv(&mut buffer).expect("a message");
        assert_eq!(&buffer[..length], b"STOPPING=1\nSTATUS=stopping: SIGTERM");
    }

    #[test]
    fn without_a_socket_nothing_is_sent() {
        let mut notify =
            Notify { sent: Sent::default(), reloads: VecDeque::new(), to: None, has_failed: false };
        notify.turn(Time::default(), shown(0));
        notify.stopping("SIGTERM");
        assert!(notify.sent.last.is_none() && !notify.has_failed);
    }

    #[test]
    fn a_line_break_in_a_status_is_replaced() {
        assert_eq!(message(&[NotifyState::Status("a\nREADY=1")]), "STATUS=a READY=1");
    }
}
