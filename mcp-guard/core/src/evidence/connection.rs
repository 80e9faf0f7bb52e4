//! Whether anybody can still write to a server, or read from it.

use std::fmt;

/// The pipe or socket that was a server's stdin or stdout when it was executed. It is known by its
/// inode, because some programs move it to another descriptor: the Python SDK of MCP puts
/// `/dev/null` in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Channel {
    Pipe(u64),
    Socket(u64),
}

impl Channel {
    /// Parses the target of a link in `/proc/PID/fd`: `pipe:[7]` or `socket:[7]`. Anything else, such
    /// as a terminal, a file or a named FIFO, says nothing about a client.
    #[must_use]
    pub fn parse(link: &str) -> Option<Self> {
        let number = |rest: &str| rest.strip_suffix(']')?.parse().ok();
        if let Some(rest) = link.strip_prefix("pipe:[") {
            return number(rest).map(Self::Pipe);
        }
        number(link.strip_prefix("socket:[")?).map(Self::Socket)
    }

    #[must_use]
    pub fn inode(self) -> u64 {
        match self {
            Self::Pipe(inode) | Self::Socket(inode) => inode,
        }
    }
}

/// The pipes or sockets that are a server's stdin and stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channels {
    pub stdin: Channel,
    pub stdout: Channel,
}

/// The flags that poll(2) reports for a descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PollFlags(pub u16);

impl PollFlags {
    const IN: u16 = 0x1;
    const OUT: u16 = 0x4;
    const ERR: u16 = 0x8;
    const HUP: u16 = 0x10;
    const RDHUP: u16 = 0x2000;

    fn has(self, flag: u16) -> bool {
        self.0 & flag != 0
    }

    /// Whether something can be read, the end of the stream included.
    #[must_use]
    pub fn is_readable(self) -> bool {
        self.has(Self::IN)
    }

    #[must_use]
    pub fn is_writable(self) -> bool {
        self.has(Self::OUT)
    }

    /// Whether the other end of a connection is closed.
    #[must_use]
    pub fn is_hung_up(self) -> bool {
        self.has(Self::HUP)
    }

    /// Whether the other end of a connection sends nothing more. It may still read.
    #[must_use]
    pub fn has_sent_all(self) -> bool {
        self.has(Self::RDHUP)
    }
}

/// Whether a server's client can reach it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// Somebody can write to its stdin.
    Connected,
    /// Nobody can write to its stdin, but somebody can read its stdout. An MCP client ends a server
    /// like this, but a job that got all of its input looks the same.
    Closing,
    /// Nobody can write to its stdin or read its stdout.
    Disconnected,
}

impl Connection {
    /// Judges by what poll(2) says of a server's stdin and stdout. A pipe without a writer reports
    /// HUP, one without a reader ERR. A socket whose peer does not write any more reports RDHUP, one
    /// whose peer is gone also HUP.
    #[must_use]
    pub fn of(
        (input, reads): (Channel, PollFlags),
        (output, writes): (Channel, PollFlags),
    ) -> Self {
        let has_writer = match input {
            Channel::Pipe(_) => !reads.has(PollFlags::HUP),
            Channel::Socket(_) => !reads.has(PollFlags::HUP) && !reads.has(PollFlags::RDHUP),
        };
        match (has_writer, has_reader(output, writes)) {
            (true, _) => Self::Connected,
            (false, true) => Self::Closing,
            (false, false) => Self::Disconnected,
        }
    }
}

/// Whether anybody can read what is written to a server's stdout.
pub(super) fn has_reader(output: Channel, flags: PollFlags) -> bool {
    match output {
        Channel::Pipe(_) => !flags.has(PollFlags::ERR),
        Channel::Socket(_) => !flags.has(PollFlags::HUP),
    }
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connected => "connected",
            Self::Closing => "closing",
            Self::Disconnected => "disconnected",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Channel::*, Connection::*, *};

    #[test]
    fn only_pipes_and_sockets_say_something_about_a_client() {
        assert_eq!(Channel::parse("pipe:[12]"), Some(Pipe(12)));
        assert_eq!(Channel::parse("socket:[18446744073709551615]"), Some(Socket(u64::MAX)));
        for none in [
            "/dev/null",
            "/tmp/pipe:[12]",
            "pipe:[12",
            "pipe:[]",
            "pipe:[-1]",
            "pipe:[1] ",
            "socket:[18446744073709551616]",
            "anon_inode:[eventpoll]",
            "/dev/pts/0",
            "/run/fifo",
            "",
        ] {
            assert_eq!(Channel::parse(none), None, "{none:?}");
        }
    }

    /// The flags are those that the kernel reported for each case.
    #[test]
    fn a_connection_is_judged_by_both_far_ends() {
        for (stdin, stdout, expected) in [
            // The client lives.
            ((Pipe(1), 0x0), (Pipe(2), 0x4), Connected),
            ((Socket(1), 0x4), (Socket(2), 0x4), Connected),
            // A request waits.
            ((Pipe(1), 0x1), (Pipe(2), 0x4), Connected),
            // The client is slow to read.
            ((Pipe(1), 0x0), (Pipe(2), 0x0), Connected),
            // Somebody else holds the writing end.
            ((Pipe(1), 0x0), (Pipe(2), 0xc), Connected),
            // `echo job | docker exec -i`: the client waits for the result.
            ((Pipe(1), 0x10), (Pipe(2), 0x4), Closing),
            ((Pipe(1), 0x11), (Pipe(2), 0x4), Closing),
            ((Socket(1), 0x2005), (Socket(1), 0x2005), Closing),
            // The client is gone.
            ((Pipe(1), 0x10), (Pipe(2), 0xc), Disconnected),
            ((Pipe(1), 0x10), (Pipe(2), 0x8), Disconnected),
            ((Socket(1), 0x2015), (Socket(1), 0x2015), Disconnected),
            ((Socket(1), 0x2011), (Socket(2), 0x2015), Disconnected),
            ((Socket(1), 0x2011), (Pipe(2), 0x8), Disconnected),
        ] {
            let [reads, writes] = [stdin.1, stdout.1].map(PollFlags);
            let found = Connection::of((stdin.0, reads), (stdout.0, writes));
            assert_eq!(found, expected, "{stdin:?} {stdout:?}");
        }
    }
}
