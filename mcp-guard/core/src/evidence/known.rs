//! The evidence about one server from the looks at it so far.

use std::{fmt, mem, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    connection::{Channel, Channels, Connection, PollFlags, has_reader},
    quiescence::Quiescence,
};
use crate::Time;

/// The stdin and stdout that a server had when it was executed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StdioAtExec {
    /// They were not read in time.
    #[default]
    Unread,
    /// One of them was neither a pipe nor a socket, and so says nothing about a client.
    Other,
    Are(Channels),
}

/// Whether a server's client can reach it, as far as that is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Contact {
    #[default]
    Unknown,
    /// Its stdin or its stdout is neither a pipe nor a socket.
    NoStdio,
    /// See [`Connection`].
    Connected,
    Closing,
    Disconnected,
}

impl Contact {
    /// Judges by what poll(2) says of a server's stdin and stdout, each `None` if no process of the server has
    /// it any more.
    #[must_use]
    pub fn of(stdin: Option<(Channel, PollFlags)>, stdout: Option<(Channel, PollFlags)>) -> Self {
        match (stdin, stdout) {
            (Some(stdin), Some(stdout)) => match Connection::of(stdin, stdout) {
                Connection::Connected => Self::Connected,
                Connection::Closing => Self::Closing,
                Connection::Disconnected => Self::Disconnected,
            },
            // Node closes its stdin at its end.
            (None, Some((output, flags))) if !has_reader(output, flags) => Self::Disconnected,
            // It has closed them itself, as a daemon does.
            (_, None) | (None, Some(_)) => Self::Unknown,
        }
    }
}

impl fmt::Display for Contact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::NoStdio => "no-stdio",
            Self::Connected => "connected",
            Self::Closing => "closing",
            Self::Disconnected => "disconnected",
        })
    }
}

/// Counters of all processes of a server together. Each grows when the server does something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    pub processes: u64,
    /// Bytes read and written, and calls that did so.
    pub io: u64,
    /// Those of the first thread of each process.
    pub context_switches: u64,
    /// Nanoseconds that all threads ran. This shows work of any thread, also what is too short for a clock tick.
    pub runtime: u64,
    /// In clock ticks, with the time of children that have ended.
    pub cpu: u64,
    /// Bytes that are to reach a disk.
    pub written: u64,
}

/// One look at a server. Whatever could not be read is unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerSeen {
    /// None of its processes but launchers could run: they are frozen, or stopped by a signal or a debugger. All else
    /// is unknown, but its stdio and its contact.
    pub is_stopped: bool,
    /// Read by the look itself, if it was not read at the exec.
    pub stdio: StdioAtExec,
    pub contact: Contact,
    pub activity: Option<Activity>,
    /// Bytes of memory that no file backs.
    pub memory: Option<u64>,
    /// Whether a disconnected server is at work all the same.
    pub is_busy: Option<bool>,
    /// Read only if it is connected and did nothing since the look before.
    pub quiescence: Quiescence,
    /// Whether only its client can give it work, apart from timers. Read with the quiescence.
    pub is_stdio_alone: Option<bool>,
}

/// The use of a server, as a look adds to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Its counters could not be read.
    Unknown,
    /// They were read for the first time, so it may have done something right before.
    Begins,
    Idle,
    /// It did something since the look before.
    Used,
    /// It could not run.
    Stopped,
}

/// The sum of the looks at one server.
#[derive(Clone, Debug, Default)]
pub struct Known {
    pub stdio: StdioAtExec,
    pub contact: Contact,
    pub memory: Option<u64>,
    /// As the last look has shown it.
    pub quiescence: Quiescence,
    is_stdio_alone: Option<bool>,
    /// When the last look was taken.
    looked: Option<Time>,
    was_stopped: bool,
    activity: Option<Activity>,
    /// The first of the looks that have seen the present activity. It did nothing since.
    idle_since: Option<Time>,
    /// The last look that found that it, or a server inside it, had done something.
    used: Option<Time>,
    /// The first of the looks that have seen the present contact, and what the server has done since then.
    contact_since: (Time, Option<SinceContact>),
    is_busy: Option<bool>,
    /// Since when each look found that it had used much of a CPU.
    burns_since: Option<Time>,
}

/// The work of a server since the first look that has seen its present contact.
#[derive(Clone, Copy, Debug)]
struct SinceContact {
    /// Its counters in that look.
    before: Activity,
    /// The CPU time in the last look.
    cpu: u64,
    /// The CPU time since the first look. It is added up from look to look, because a process that ends may take
    /// its time with it, and must not hide what the others do later.
    ran: u64,
}

impl SinceContact {
    /// Nothing, so far.
    fn nothing(activity: Activity) -> Self {
        Self { before: activity, cpu: activity.cpu, ran: 0 }
    }

    fn add(&mut self, activity: Activity) {
        self.ran = self.ran.saturating_add(activity.cpu.saturating_sub(self.cpu));
        self.cpu = activity.cpu;
    }
}

/// The share of a CPU from which on a server burns it: one part in this many.
const BURNS: u64 = 2;
/// A server that used less than one part in this many of a CPU hardly did anything.
const HARDLY: u64 = 100;
/// A server that has only timers uses less than one part in this many of a CPU. A request over a socket, which no
/// counter of the kernel shows, takes more.
const BARELY: u32 = 5000;
/// Clock ticks of a CPU in a second, see `TICK_NS` of the registry.
const TICKS: u64 = 100;

impl Known {
    /// Takes a look. Returns what it adds about the use of the server.
    pub fn take(&mut self, now: Time, seen: &ServerSeen) -> Use {
        let since = self.looked.replace(now).unwrap_or(now);
        let was_stopped = mem::replace(&mut self.was_stopped, seen.is_stopped);
        if self.stdio == StdioAtExec::Unread {
            self.stdio = seen.stdio;
        }
        if seen.is_stopped {
            let found = self.stood_still(now.since(since));
            // Its client may end meanwhile.
            if seen.contact != Contact::Unknown && self.contact != seen.contact {
                self.contact = seen.contact;
                self.contact_since = (now, self.activity.map(SinceContact::nothing));
                self.is_busy = None;
            }
            return found;
        }
        self.count_since_contact(now, seen);
        (self.memory, self.is_busy) = (seen.memory, seen.is_busy);
        (self.quiescence, self.is_stdio_alone) = (seen.quiescence, seen.is_stdio_alone);
        let burns = self.activity.zip(seen.activity).is_some_and(|(before, after)| {
            is_more_than(after.cpu.saturating_sub(before.cpu), now.since(since), BURNS)
        });
        self.burns_since = if burns { self.burns_since.or(Some(since)) } else { None };
        let found = match (self.activity, seen.activity) {
            (_, None) => Use::Unknown,
            // A thaw makes the threads run, so nothing tells what they did besides.
            (Some(_), Some(_)) if was_stopped => Use::Begins,
            (None, Some(_)) => Use::Begins,
            (Some(before), Some(after)) if before == after => Use::Idle,
            (Some(_), Some(_)) => Use::Used,
        };
        match found {
            Use::Unknown => self.idle_since = None,
            Use::Begins | Use::Used => self.idle_since = Some(now),
            Use::Idle | Use::Stopped => {}
        }
        self.activity = seen.activity;
        if found == Use::Used {
            self.used = Some(now);
        }
        found
    }

    /// Adds what it has done since its contact is as it is.
    fn count_since_contact(&mut self, now: Time, seen: &ServerSeen) {
        let is_new = mem::replace(&mut self.contact, seen.contact) != seen.contact;
        match (&mut self.contact_since.1, seen.activity) {
            (Some(done), Some(activity)) if !is_new => done.add(activity),
            // Nothing was known of what it did until now.
            (None, Some(activity)) => {
                self.contact_since = (now, Some(SinceContact::nothing(activity)))
            }
            (_, activity) if is_new => {
                self.contact_since = (now, activity.map(SinceContact::nothing))
            }
            (Some(_) | None, Some(_) | None) => {}
        }
    }

    /// Leaves out the time since the look before: it could do nothing, for a part of it at least.
    fn stood_still(&mut self, time: Duration) -> Use {
        self.idle_since = self.idle_since.map(|since| since.after(time));
        self.contact_since.0 = self.contact_since.0.after(time);
        (self.burns_since, self.quiescence) = (None, Quiescence::Unknown);
        self.is_stdio_alone = None;
        Use::Stopped
    }

    /// Returns when it was last looked at.
    #[must_use]
    pub fn looked(&self) -> Option<Time> {
        self.looked
    }

    /// Whether it could not run when it was last looked at.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.was_stopped
    }

    /// Notes that it did something, or that a server inside it did.
    pub fn used(&mut self, now: Time) {
        self.idle_since = self.idle_since.map(|_| now);
        self.used = Some(now);
    }

    /// Whether it is known to have done something within this time.
    #[must_use]
    pub fn was_used(&self, now: Time, within: Duration) -> bool {
        self.used.is_some_and(|used| now.since(used) < within)
    }

    /// Returns what the last look has seen that it had done.
    #[must_use]
    pub fn activity(&self) -> Option<Activity> {
        self.activity
    }

    /// Returns for how long it had done nothing when it was last looked at, although it could run. `None` if that is
    /// not known.
    #[must_use]
    pub fn idle(&self) -> Option<Duration> {
        Some(self.looked?.since(self.idle_since?))
    }

    /// Returns for how long its contact was known to be as it is when it was last looked at. `None` if the last look
    /// is older than `fresh`.
    #[must_use]
    pub fn contact_for(&self, now: Time, fresh: Duration) -> Option<Duration> {
        let looked = self.looked.filter(|looked| now.since(*looked) <= fresh)?;
        (self.contact != Contact::Unknown).then(|| looked.since(self.contact_since.0))
    }

    /// Whether it is disconnected, and is known to have done nothing else since then: hardly anything ran, and
    /// nothing was written to a file.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        let (since, done) = self.contact_since;
        let (Some(done), Some(activity)) = (done, self.activity) else { return false };
        let is_still = done.before.written == activity.written
            && !is_more_than(done.ran, self.looked.unwrap_or(since).since(since), HARDLY);
        self.contact == Contact::Disconnected && self.is_busy == Some(false) && is_still
    }

    /// Whether it is abandoned, and has not even tried to read or write anything since its client went. Timers may
    /// run in it.
    #[must_use]
    pub fn is_left_at_rest(&self) -> bool {
        let (since, done) = self.contact_since;
        let elapsed = self.looked.unwrap_or(since).since(since);
        let is_same = |(SinceContact { before, .. }, after): (SinceContact, Activity)| {
            let ran = Duration::from_nanos(after.runtime.saturating_sub(before.runtime));
            before.io == after.io
                && before.processes == after.processes
                && ran.saturating_mul(BARELY) <= elapsed
        };
        self.is_abandoned() && done.zip(self.activity).is_some_and(is_same)
    }

    /// Whether the last look has proved that it is a stdio server without work: only its client can give it any, and
    /// has not, or is gone.
    #[must_use]
    pub fn is_idle_stdio_server(&self) -> bool {
        match self.contact {
            Contact::Connected => self.is_stdio_alone == Some(true),
            Contact::Disconnected => self.is_abandoned(),
            Contact::Unknown | Contact::NoStdio | Contact::Closing => false,
        }
    }

    /// Returns for how long it had used at least half of a CPU when it was last looked at.
    #[must_use]
    pub fn burns(&self) -> Option<Duration> {
        Some(self.looked?.since(self.burns_since?))
    }
}

/// Whether these clock ticks are at least one part in `share` of `elapsed`.
fn is_more_than(ticks: u64, elapsed: Duration, share: u64) -> bool {
    let elapsed = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX) / 1000 * TICKS;
    elapsed > 0 && ticks.saturating_mul(share) >= elapsed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::Channel::{Pipe, Socket};

    #[test]
    fn a_server_that_has_closed_its_stdin_is_disconnected_if_nobody_reads_its_stdout() {
        let [input, open, closed] = [(Pipe(1), 0x10), (Pipe(2), 0x4), (Pipe(2), 0x8)]
            .map(|(channel, flags)| (channel, PollFlags(flags)));
        let hung_up = (Socket(2), PollFlags(0x2015));
        for (stdin, stdout, expected) in [
            (Some(input), Some(open), Contact::Closing),
            (Some(input), Some(closed), Contact::Disconnected),
            (None, Some(closed), Contact::Disconnected),
            (None, Some(hung_up), Contact::Disconnected),
            (None, Some(open), Contact::Unknown),
            (Some(input), None, Contact::Unknown),
            (None, None, Contact::Unknown),
        ] {
            assert_eq!(Contact::of(stdin, stdout), expected, "{stdin:?} {stdout:?}");
        }
    }

    fn look(activity: Option<u64>) -> ServerSeen {
        let activity = activity.map(|cpu| Activity { cpu, ..Activity::default() });
        ServerSeen { activity, ..ServerSeen::default() }
    }

    #[test]
    fn a_server_is_idle_since_the_first_look_that_saw_its_activity() {
        let second = |at: u64| Time(at * 1_000_000_000);
        let mut known = Known::default();
        assert_eq!(known.idle(), None);
        // Each row: time, what was seen, what that says, for how long it is idle.
        for (at, activity, expected, idle) in [
            (10, Some(5), Use::Begins, Some(0)),
            (40, Some(5), Use::Idle, Some(30)),
            (70, Some(6), Use::Used, Some(0)),
            (100, Some(6), Use::Idle, Some(30)),
            // An unknown value is no proof, neither of use nor of idleness.
            (130, None, Use::Unknown, None),
            (160, Some(6), Use::Begins, Some(0)),
            (190, Some(6), Use::Idle, Some(30)),
        ] {
            assert_eq!(known.take(second(at), &look(activity)), expected, "{at}");
            assert_eq!(known.idle().map(|idle| idle.as_secs()), idle, "{at}");
        }
    }

    #[test]
    fn time_in_which_a_server_could_not_run_is_not_idle() {
        let second = |at: u64| Time(at * 1_000_000_000);
        let mut known = Known::default();
        let stopped = ServerSeen { is_stopped: true, ..ServerSeen::default() };
        // Each row: time, what was seen, what that says, for how long it is idle.
        for (at, seen, expected, idle) in [
            (10, stopped, Use::Stopped, None),
            (40, look(Some(5)), Use::Begins, Some(0)),
            (70, look(Some(5)), Use::Idle, Some(30)),
            (100, stopped, Use::Stopped, Some(30)),
            (1000, stopped, Use::Stopped, Some(30)),
            // The thaw itself makes it run a little.
            (1030, look(Some(6)), Use::Begins, Some(0)),
            (1060, look(Some(6)), Use::Idle, Some(30)),
            (1090, stopped, Use::Stopped, Some(30)),
            (1120, look(Some(6)), Use::Begins, Some(0)),
        ] {
            assert_eq!(known.take(second(at), &seen), expected, "{at}");
            assert_eq!(known.idle().map(|idle| idle.as_secs()), idle, "{at}");
        }
    }

    #[test]
    fn the_end_of_a_client_is_seen_while_the_server_cannot_run() {
        let (mut known, now) = looks(Contact::Connected, &[1, 0]);
        let contact = Contact::Disconnected;
        let stopped = ServerSeen { is_stopped: true, contact, ..ServerSeen::default() };
        known.take(now.after(Duration::from_secs(30)), &stopped);
        assert_eq!(known.contact, Contact::Disconnected);
        let later = now.after(Duration::from_secs(60));
        known.take(later, &stopped);
        let time = known.contact_for(later, Duration::from_secs(60));
        assert_eq!((time, known.is_abandoned()), (Some(Duration::ZERO), false));
    }

    #[test]
    fn time_in_which_a_server_could_not_run_is_not_time_without_its_client() {
        let (mut known, mut now) = looks(Contact::Disconnected, &[1, 0, 0]);
        let time = |known: &Known, now| {
            let time = known.contact_for(now, Duration::from_secs(60));
            time.map(|time| time.as_secs())
        };
        for _ in 0..10 {
            now = now.after(Duration::from_secs(30));
            known.take(now, &ServerSeen { is_stopped: true, ..ServerSeen::default() });
            assert_eq!((time(&known, now), known.is_abandoned()), (Some(60), true));
        }
        assert_eq!(known.burns(), None);
    }

    /// Each look is 30 s after the one before, with so many ticks more than it.
    fn looks(contact: Contact, ticks: &[u64]) -> (Known, Time) {
        let (mut known, mut cpu, mut now) = (Known::default(), 0, Time(1_000_000_000));
        for more in ticks {
            cpu += more;
            now = now.after(Duration::from_secs(30));
            let activity = Some(Activity { cpu, ..Activity::default() });
            known.take(
                now,
                &ServerSeen { activity, contact, is_busy: Some(false), ..ServerSeen::default() },
            );
        }
        (known, now)
    }

    #[test]
    fn a_server_burns_while_each_look_finds_half_of_a_cpu() {
        let burns = |ticks: &[u64]| {
            let (known, _) = looks(Contact::Disconnected, ticks);
            known.burns().map(|time| time.as_secs())
        };
        assert_eq!(burns(&[9000]), None, "nothing is known of the time before the first look");
        assert_eq!(burns(&[0, 1500]), Some(30));
        assert_eq!(burns(&[0, 1500, 3000, 1500]), Some(90));
        assert_eq!(burns(&[0, 1500, 1400, 1500]), Some(30));
        assert_eq!(burns(&[0, 1499]), None);
    }

    #[test]
    fn a_server_is_abandoned_if_it_does_hardly_anything_since_its_client_went() {
        let is_abandoned = |contact, ticks: &[u64]| looks(contact, ticks).0.is_abandoned();
        assert!(is_abandoned(Contact::Disconnected, &[500, 0, 0]));
        assert!(is_abandoned(Contact::Disconnected, &[500, 20, 20]), "a timer");
        assert!(!is_abandoned(Contact::Disconnected, &[500, 0, 60]), "one percent of 60 s");
        assert!(!is_abandoned(Contact::Closing, &[500, 0, 0]));
        let (mut known, now) = looks(Contact::Disconnected, &[1, 0]);
        let activity = Some(Activity { cpu: 1, written: 4096, ..Activity::default() });
        let contact = Contact::Disconnected;
        let writes =
            ServerSeen { activity, contact, is_busy: Some(false), ..ServerSeen::default() };
        known.take(now, &writes);
        assert!(!known.is_abandoned(), "it wrote to a file");
        let (mut known, now) = looks(Contact::Disconnected, &[1, 0]);
        known.take(
            now,
            &ServerSeen {
                is_busy: None,
                contact,
                activity: looks(contact, &[1]).0.activity,
                ..writes
            },
        );
        assert!(!known.is_abandoned(), "it is not known whether it is at work");
    }

    #[test]
    fn a_server_that_could_not_be_read_at_first_is_abandoned_later() {
        let (contact, is_busy) = (Contact::Disconnected, Some(false));
        let stopped = ServerSeen { is_stopped: true, contact, ..ServerSeen::default() };
        let unreadable = ServerSeen { contact, is_busy, ..look(None) };
        let readable = ServerSeen { contact, is_busy, ..look(Some(5)) };
        for first in [stopped, unreadable] {
            let (mut known, mut now) = (Known::default(), Time(1_000_000_000));
            let contact_for = |known: &Known, now| known.contact_for(now, Duration::MAX);
            for (seen, is_abandoned, seconds) in [
                (first, false, 0),
                (readable, true, 0),
                (readable, true, 30),
                (unreadable, false, 60),
                (readable, true, 90),
            ] {
                now = now.after(Duration::from_secs(30));
                known.take(now, &seen);
                assert_eq!(known.is_abandoned(), is_abandoned, "{first:?} {now:?}");
                assert_eq!(contact_for(&known, now), Some(Duration::from_secs(seconds)));
            }
        }
    }

    /// Its parent has not waited for it, so it took its time with it.
    #[test]
    fn a_child_that_ends_does_not_hide_what_the_others_do_later() {
        let (contact, mut now) = (Contact::Disconnected, Time(1_000_000_000));
        let mut known = Known::default();
        for (cpu, is_abandoned) in
            [(500, true), (100, true), (100, true), (150, true), (220, false)]
        {
            now = now.after(Duration::from_secs(30));
            known.take(now, &ServerSeen { contact, is_busy: Some(false), ..look(Some(cpu)) });
            assert_eq!(known.is_abandoned(), is_abandoned, "{cpu}");
        }
    }

    #[test]
    fn the_contact_of_an_old_look_is_not_known() {
        let (known, now) = looks(Contact::Closing, &[0, 0, 0]);
        let seconds = |later: u64, fresh: u64| {
            let time = known
                .contact_for(now.after(Duration::from_secs(later)), Duration::from_secs(fresh));
            time.map(|time| time.as_secs())
        };
        assert_eq!(seconds(0, 60), Some(60));
        assert_eq!(seconds(60, 60), Some(60));
        assert_eq!(seconds(61, 60), None);
        assert_eq!(Known::default().contact_for(Time(0), Duration::MAX), None);
    }

    #[test]
    fn stdio_that_was_read_at_the_exec_stays() {
        let mut known = Known { stdio: StdioAtExec::Other, ..Known::default() };
        let channels = Channels { stdin: Pipe(1), stdout: Pipe(2) };
        let found = ServerSeen { stdio: StdioAtExec::Are(channels), ..ServerSeen::default() };
        known.take(Time(1), &found);
        assert_eq!(known.stdio, StdioAtExec::Other);
        let mut late = Known::default();
        late.take(Time(1), &found);
        assert_eq!(late.stdio, StdioAtExec::Are(channels));
    }
}
