//! The cases are processes that were looked at: real servers at rest, and healthy work that every
//! counter calls idle.

use super::{Runtime::*, Wait::*, *};

const STDIN: Channel = Channel::Pipe(1);
const STDOUT: Channel = Channel::Pipe(2);
const REST: PollFlags = PollFlags(0);
const OUT: PollFlags = PollFlags(0x4);
const FOREVER: Wait = Epoll { fd: 13, has_timeout: false };

fn thread(number: usize, wait: Wait) -> ThreadLook {
    ThreadLook { tid: Pid(7 + u32::try_from(number).unwrap()), wait }
}

/// A server with the stdin on descriptor 0 and in epoll set 13.
fn process(runtime: Runtime, waits: &[Wait]) -> ProcessLook {
    let threads = waits.iter().cloned().enumerate();
    ProcessLook {
        pid: Pid(7),
        runtime,
        is_launcher: false,
        threads: threads.map(|(number, wait)| thread(number, wait)).collect(),
        epolls: vec![EpollSet { fd: 13, inodes: vec![90, 1] }],
        channels: vec![
            OpenChannel { fd: 0, channel: STDIN, peer: PeerIs::Outside },
            OpenChannel { fd: 1, channel: STDOUT, peer: PeerIs::Nobody },
        ],
        wakers: vec![],
        locks: vec![],
    }
}

fn tree(processes: Vec<ProcessLook>) -> TreeLook {
    TreeLook { stdin: (STDIN, REST), outputs: vec![OUT, OUT], processes }
}

fn node() -> ProcessLook {
    process(Node, &[FOREVER, Epoll { fd: 9, has_timeout: false }, Local, Local])
}

/// The Python SDK moves the protocol to other descriptors, and reads them with a thread.
fn python() -> ProcessLook {
    let mut python = process(Other, &[Epoll { fd: 5, has_timeout: false }, Read(6), Local]);
    python.epolls = vec![EpollSet { fd: 5, inodes: vec![40, 41] }];
    let own_pair =
        |fd, inode| OpenChannel { fd, channel: Channel::Socket(inode), peer: PeerIs::Inside };
    python.channels = vec![
        OpenChannel { fd: 6, channel: STDIN, peer: PeerIs::Outside },
        OpenChannel { fd: 7, channel: STDOUT, peer: PeerIs::Nobody },
        own_pair(3, 40),
        own_pair(4, 41),
    ];
    python
}

fn other(pid: u32, waits: &[Wait]) -> ProcessLook {
    let mut other = process(Other, waits);
    (other.pid, other.epolls) = (Pid(pid), vec![]);
    other
}

#[test]
fn a_server_at_rest_is_quiescent() {
    let delayed = process(Node, &[FOREVER, Epoll { fd: 9, has_timeout: true }, Local]);
    let timed = process(Node, &[Epoll { fd: 13, has_timeout: true }, Local]);
    let npm = ProcessLook { is_launcher: true, wakers: vec![Waker::Timer], ..timed };
    let sqlite = ProcessLook { locks: vec![FileLock::SqliteIdle], ..node() };
    // The wrapper has the same stdin, and waits for its child.
    for processes in [
        vec![node()],
        vec![python()],
        vec![process(Other, &[Read(0)])],
        vec![delayed],
        vec![npm, node()],
        vec![other(6, &[Child]), python()],
        vec![sqlite],
    ] {
        assert_eq!(at_work(&tree(processes.clone())), None, "{processes:?}");
    }
}

#[test]
fn a_server_that_waits_for_something_else_is_at_work() {
    let timer = Epoll { fd: 13, has_timeout: true };
    // A timer of a worker's script, and one of the main thread beside V8's own.
    let worker = &[FOREVER, Local, timer];
    let main = &[timer, Epoll { fd: 9, has_timeout: true }];
    for (runtime, waits, at) in [
        (Node, worker.as_slice(), 2),
        (Node, main.as_slice(), 0),
        // No other runtime has such a thread.
        (Other, &[FOREVER, Epoll { fd: 9, has_timeout: true }], 1),
        // It waits for a reply, sleeps, polls, computes, or is at a disk.
        (Other, &[Read(3), Local], 0),
        (Other, &[FOREVER, Timed("nanosleep")], 1),
        (Other, &[Unreadable("poll")], 0),
        (Other, &[FOREVER, Runs], 1),
        (Other, &[FOREVER, Call(1)], 1),
        (Other, &[FOREVER, Unread], 1),
    ] {
        let found = at_work(&tree(vec![process(runtime, waits)]));
        let tid = thread(at, Local).tid;
        let expected = AtWork::Thread { pid: Pid(7), tid, wait: waits[at] };
        assert_eq!(found, Some(expected), "{waits:?}");
    }
}

/// The second thread of node is excepted only if its set does not hold the stdin.
#[test]
fn a_second_thread_that_reads_stdin_with_a_timeout_is_at_work() {
    let both = process(Node, &[FOREVER, Epoll { fd: 13, has_timeout: true }]);
    assert!(matches!(at_work(&tree(vec![both])), Some(AtWork::Thread { tid: Pid(8), .. })));
}

#[test]
fn what_can_be_reached_or_woken_from_outside_is_at_work() {
    for peer in [PeerIs::Outside, PeerIs::Listening, PeerIs::Unknown] {
        let mut server = node();
        server.channels.push(OpenChannel { fd: 20, channel: Channel::Socket(5), peer });
        assert_eq!(
            at_work(&tree(vec![server])),
            Some(AtWork::Connection { pid: Pid(7), peer }),
            "a socket"
        );
    }
    for peer in [PeerIs::Inside, PeerIs::Nobody] {
        let mut server = node();
        server.channels.push(OpenChannel { fd: 20, channel: Channel::Socket(5), peer });
        assert_eq!(at_work(&tree(vec![server])), None);
    }
    for by in [Waker::Timer, Waker::Files, Waker::IoUring, Waker::NamedPipe, Waker::Child] {
        let server = ProcessLook { wakers: vec![by], ..node() };
        assert_eq!(at_work(&tree(vec![server])), Some(AtWork::Woken { pid: Pid(7), by }));
    }
    // The reason that says most.
    let mut parent = ProcessLook { wakers: vec![Waker::Child], ..node() };
    let peer = PeerIs::Outside;
    parent.channels.push(OpenChannel { fd: 20, channel: Channel::Socket(5), peer });
    assert_eq!(at_work(&tree(vec![parent])), Some(AtWork::Connection { pid: Pid(7), peer }));
    let shared = ProcessLook { locks: vec![FileLock::SharedFlock], ..node() };
    assert_eq!(at_work(&tree(vec![shared.clone()])), Some(AtWork::Lock { pid: Pid(7) }));
    let launcher = ProcessLook { is_launcher: true, ..shared };
    assert_eq!(at_work(&tree(vec![launcher, node()])), None);
    let locked = ProcessLook { locks: vec![FileLock::SqliteIdle, FileLock::Other], ..node() };
    assert_eq!(at_work(&tree(vec![locked])), Some(AtWork::Lock { pid: Pid(7) }));
}

#[test]
fn a_server_with_unread_input_or_a_slow_reader_is_at_work() {
    let unread = TreeLook { stdin: (STDIN, PollFlags(0x1)), ..tree(vec![node()]) };
    assert_eq!(at_work(&unread), Some(AtWork::Unread));
    let slow = TreeLook { outputs: vec![OUT, REST], ..tree(vec![node()]) };
    assert_eq!(at_work(&slow), Some(AtWork::Unwritable));
}

#[test]
fn somebody_must_wait_for_stdin() {
    let deaf = process(Other, &[Local, Epoll { fd: 5, has_timeout: false }]);
    for processes in [vec![], vec![deaf], vec![other(6, &[Child])]] {
        assert_eq!(at_work(&tree(processes)), Some(AtWork::NobodyWaitsForStdin));
    }
}

/// One more thread, channel, waker or lock never makes a server quiescent.
#[test]
fn more_never_proves_more() {
    let extra = [Read(99), Runs, Call(0), Unread, Timed("nanosleep"), Unreadable("select")];
    for wait in extra {
        for mut server in [node(), python()] {
            server.threads.push(thread(9, wait));
            assert!(at_work(&tree(vec![server])).is_some(), "{wait:?}");
        }
    }
}

#[test]
fn what_may_give_a_server_work_without_its_client_is_no_proof_of_the_opposite() {
    let alone = |server: ProcessLook| is_reached_by_stdio_alone(&tree(vec![node(), server]));
    let timer = ProcessLook { wakers: vec![Waker::Timer, Waker::Child], ..node() };
    for server in [node(), python(), timer, other(6, &[Timed("nanosleep"), Child, Read(0)])] {
        assert_eq!(alone(server.clone()), Some(true), "{server:?}");
    }
    for peer in [PeerIs::Outside, PeerIs::Listening, PeerIs::Unknown] {
        let mut server = node();
        server.channels.push(OpenChannel { fd: 20, channel: Channel::Socket(5), peer });
        assert_eq!(alone(server), Some(false), "{peer:?}");
    }
    for by in [Waker::Files, Waker::IoUring, Waker::NamedPipe] {
        let server = ProcessLook { wakers: vec![Waker::Timer, by], ..node() };
        assert_eq!(alone(server), None, "{by:?}");
    }
    // `msgrcv`, and a read of a device.
    for wait in [Unreadable("poll"), Call(70), Read(99), Runs, Unread] {
        assert_eq!(alone(other(6, &[Local, wait])), None, "{wait:?}");
    }
}
