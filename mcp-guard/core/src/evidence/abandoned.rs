//! Whether a server that nobody can reach is at work all the same: it may be a job that got all of its input, and
//! whose result is a change elsewhere.
//!
//! Its timers do not count: most servers that outlive their client have one.

use super::{
    connection::Channels,
    quiescence::{ProcessLook, Wait, Waker, leaves},
};

/// Judges one look at all processes of a server.
#[must_use]
pub fn is_busy(processes: &[ProcessLook], stdio: Channels) -> bool {
    processes.iter().any(|process| {
        let leaves = process.channels.iter().any(|open| leaves(open, stdio.stdin));
        let works = process.threads.iter().any(|thread| match thread.wait {
            Wait::Epoll { .. }
            | Wait::Local
            | Wait::Child
            | Wait::Timed(_)
            | Wait::Unreadable(_) => false,
            // A read of a pipe or a socket: see above. A read of anything else waits for a disk or a device.
            Wait::Read(fd) => process.channels.iter().all(|open| open.fd != fd),
            Wait::Call(_) | Wait::Runs | Wait::Unread => true,
        });
        let is_woken = process.wakers().any(|waker| match waker {
            Waker::Timer => false,
            // It may wait for the next file.
            Waker::Files
            | Waker::IoUring
            | Waker::NamedPipe
            | Waker::Process
            | Waker::Child
            | Waker::Unknown => true,
        });
        leaves || works || is_woken
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        evidence::{Channel, OpenChannel, PeerIs, Runtime, ThreadLook},
        id::Pid,
    };

    const STDIO: Channels = Channels { stdin: Channel::Pipe(1), stdout: Channel::Pipe(2) };

    fn process(wait: Wait, peer: Option<PeerIs>) -> ProcessLook {
        let open = |(fd, inode, peer)| OpenChannel { fd, channel: Channel::Socket(inode), peer };
        let stdin = OpenChannel { fd: 0, channel: STDIO.stdin, peer: PeerIs::Outside };
        ProcessLook {
            pid: Pid(7),
            runtime: Runtime::Other,
            is_launcher: false,
            threads: vec![ThreadLook { tid: Pid(7), wait }],
            epolls: Vec::new(),
            channels: peer.map(|peer| open((3, 3, peer))).into_iter().chain([stdin]).collect(),
            wakers: Vec::new(),
            locks: Vec::new(),
        }
    }

    #[test]
    fn a_server_that_only_waits_is_not_busy() {
        let at_rest = [
            Wait::Epoll { fd: 5, has_timeout: true },
            Wait::Timed("nanosleep"),
            Wait::Local,
            Wait::Child,
            Wait::Unreadable("poll"),
            Wait::Read(0),
        ];
        for wait in at_rest {
            assert!(!is_busy(&[process(wait, None)], STDIO), "{wait:?}");
            assert!(!is_busy(&[process(wait, Some(PeerIs::Inside))], STDIO), "{wait:?}");
            // It waits for a database, or serves others.
            for peer in [PeerIs::Outside, PeerIs::Listening, PeerIs::Unknown] {
                assert!(is_busy(&[process(wait, Some(peer))], STDIO), "{wait:?} {peer:?}");
            }
        }
        // `fsync`, `flock`, a read of a file.
        for wait in [Wait::Runs, Wait::Unread, Wait::Call(74), Wait::Call(73), Wait::Read(9)] {
            let one = process(Wait::Local, None);
            assert!(is_busy(&[one, process(wait, None)], STDIO), "{wait:?}");
        }
        let mut ring = process(Wait::Local, None);
        ring.wakers = vec![Waker::Timer];
        assert!(!is_busy(&[ring.clone()], STDIO));
        let launcher =
            ProcessLook { is_launcher: true, wakers: vec![Waker::Process], ..ring.clone() };
        assert!(!is_busy(&[launcher], STDIO), "it waits for its child");
        use Waker::{Child, Files, IoUring, NamedPipe, Process, Unknown};
        for by in [Child, Files, IoUring, NamedPipe, Process, Unknown] {
            let busy = ProcessLook { wakers: vec![Waker::Timer, by], ..ring.clone() };
            assert!(is_busy(&[busy], STDIO), "{by:?}");
        }
    }
}
