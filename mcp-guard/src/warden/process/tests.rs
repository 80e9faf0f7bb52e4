//! The loop against one end of a socket, with files and pipes in place of a cgroup and a server.

use std::{
    fs::File,
    io::Write as _,
    os::{
        fd::{AsRawFd as _, BorrowedFd},
        unix::{fs::FileExt as _, net::UnixStream},
    },
    process::{Command, Stdio},
    thread::{self, JoinHandle},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    net::{AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SocketFlags, recv, sendmsg},
    process::{Pid, PidfdFlags, getpid, pidfd_open},
};

use super::*;
use crate::warden::{
    client::{HoldFds, hand_over},
    protocol::Packet,
};

/// Longest wait for anything, and a silence that never comes.
const LONG: Duration = Duration::from_secs(60);
const NEVER: Duration = Duration::from_secs(24 * 3600);

/// The agent's end of the socket.
struct AgentEnd(OwnedFd);

fn ends() -> (AgentEnd, OwnedFd) {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let (ours, theirs) = rustix::net::socketpair(family, kind, SocketFlags::CLOEXEC, None).unwrap();
    (AgentEnd(ours), theirs)
}

/// Starts the loop on a thread.
fn start(silence: Duration) -> (AgentEnd, JoinHandle<io::Result<()>>) {
    let (agent, socket) = ends();
    (agent, thread::spawn(move || serve(socket, silence)))
}

/// Returns the loop, to be run turn by turn.
fn by_turns(silence: Duration) -> (AgentEnd, Sleepers) {
    let (agent, socket) = ends();
    (agent, Sleepers::new(socket, silence).unwrap())
}

impl AgentEnd {
    fn send(&self, bytes: &[u8]) {
        send(&self.0, bytes, SendFlags::NOSIGNAL).unwrap();
    }

    fn order(&self, order: ToWarden) {
        self.send(&order.encode());
    }

    fn hold(&self, number: u64, server: &Server) {
        hand_over(&self.0, number, &server.files()).unwrap();
    }

    fn hold_and_arm(&self, number: u64, server: &Server) {
        self.hold(number, server);
        self.order(ToWarden::Arm { number });
    }

    fn report(&self) -> FromWarden {
        let long = Timespec::try_from(LONG).unwrap();
        let mut socket = [PollFd::new(&self.0, PollFlags::IN)];
        assert_eq!(poll(&mut socket, Some(&long)), Ok(1), "no report came");
        let mut packet = Packet::default();
        let (length, _) = recv(&self.0, &mut packet[..], RecvFlags::empty()).unwrap();
        FromWarden::decode(&packet[..length]).unwrap()
    }

    /// Waits until all orders are carried out. Nothing is reported meanwhile.
    fn settle(&self) {
        self.order(ToWarden::Beat);
        assert_eq!(self.report(), FromWarden::Beat);
    }
}

/// A suspended server with one process, which is this one.
struct Server {
    freeze: File,
    procs: File,
    parent_procs: File,
    stdin: Option<OwnedFd>,
    client: Option<OwnedFd>,
    pidfds: Vec<OwnedFd>,
}

impl Server {
    fn new() -> Self {
        let (stdin, client) = io::pipe().unwrap();
        Self::with(stdin.into(), client.into())
    }

    fn with(stdin: OwnedFd, client: OwnedFd) -> Self {
        let [freeze, procs, parent_procs] = [(); 3].map(|()| tempfile::tempfile().unwrap());
        freeze.write_at(b"1", 0).unwrap();
        let pidfds = vec![pidfd_open(getpid(), PidfdFlags::empty()).unwrap()];
        Self { freeze, procs, parent_procs, stdin: Some(stdin), client: Some(client), pidfds }
    }

    fn with_processes(list: &str) -> Self {
        let server = Self::new();
        server.procs.write_at(list.as_bytes(), 0).unwrap();
        server
    }

    fn files(&self) -> HoldFds<'_> {
        HoldFds {
            freeze: self.freeze.as_fd(),
            procs: self.procs.as_fd(),
            parent_procs: self.parent_procs.as_fd(),
            stdin: self.stdin.as_ref().unwrap().as_fd(),
            pidfds: &self.pidfds,
        }
    }

    fn request(&self) -> Result<usize, Errno> {
        write(self.client.as_ref().unwrap(), b"{")
    }

    /// Whether nobody has its stdin open to read, once the server itself has closed it.
    fn has_no_reader(&mut self) -> bool {
        self.stdin = None;
        // A process that another test starts has a copy until its exec.
        let long = Timespec::try_from(LONG).unwrap();
        let mut client = [PollFd::new(self.client.as_ref().unwrap(), PollFlags::empty())];
        poll(&mut client, Some(&long)) == Ok(1) && self.request() == Err(Errno::PIPE)
    }

    fn is_thawed(&self) -> bool {
        text(&self.freeze).starts_with('0')
    }
}

fn text(file: &File) -> String {
    let mut text = vec![0; 1 << 16];
    let length = file.read_at(&mut text, 0).unwrap();
    String::from_utf8(text[..length].to_vec()).unwrap()
}

fn woke(number: u64, by: WokenBy) -> FromWarden {
    FromWarden::Woke { number, by }
}

#[test]
fn every_beat_is_answered() {
    let (agent, _loop) = start(NEVER);
    (0..3).for_each(|_| agent.settle());
}

#[test]
fn a_request_wakes_its_server_alone() {
    let (agent, _loop) = start(NEVER);
    let (one, other) = (Server::new(), Server::new());
    agent.hold_and_arm(1, &one);
    agent.hold_and_arm(2, &other);
    agent.settle();
    assert!(!one.is_thawed());
    other.request().unwrap();
    assert_eq!(agent.report(), woke(2, WokenBy::Request));
    assert!(other.is_thawed() && !one.is_thawed());
    assert_eq!(text(&other.freeze), "0");
    assert_eq!(text(&other.parent_procs), "");
    agent.settle();
}

#[test]
fn a_byte_that_is_there_before_wakes_it_when_it_is_armed() {
    let (agent, _loop) = start(NEVER);
    let server = Server::new();
    server.request().unwrap();
    agent.hold(1, &server);
    agent.settle();
    assert!(!server.is_thawed());
    agent.order(ToWarden::Arm { number: 1 });
    assert_eq!(agent.report(), woke(1, WokenBy::Request));
    assert!(server.is_thawed());
}

#[test]
fn a_client_that_hangs_up_wakes_its_server() {
    let (agent, _loop) = start(NEVER);
    let mut closed = Server::new();
    agent.hold_and_arm(1, &closed);
    agent.settle();
    closed.client = None;
    assert_eq!(agent.report(), woke(1, WokenBy::HungUp));
    assert!(closed.is_thawed());

    let mut wrote = Server::new();
    wrote.request().unwrap();
    wrote.client = None;
    agent.hold_and_arm(2, &wrote);
    assert_eq!(agent.report(), woke(2, WokenBy::HungUp));

    let (stdin, client) = UnixStream::pair().unwrap();
    let half = client.try_clone().unwrap();
    let half_closed = Server::with(stdin.into(), client.into());
    agent.hold_and_arm(3, &half_closed);
    agent.settle();
    half.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(agent.report(), woke(3, WokenBy::HungUp));
}

#[test]
fn the_end_of_any_of_its_processes_wakes_a_server() {
    let (agent, _loop) = start(NEVER);
    let mut process = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    let mut server = Server::new();
    let pidfd = pidfd_open(Pid::from_child(&process), PidfdFlags::empty()).unwrap();
    server.pidfds.push(pidfd);
    agent.hold_and_arm(1, &server);
    agent.settle();
    assert!(!server.is_thawed());
    drop(process.stdin.take());
    assert_eq!(agent.report(), woke(1, WokenBy::Ended));
    assert!(server.is_thawed());
    process.wait().unwrap();
}

#[test]
fn a_server_that_is_dropped_is_neither_watched_nor_kept_open() {
    let (agent, _loop) = start(NEVER);
    let mut server = Server::new();
    agent.hold_and_arm(1, &server);
    agent.order(ToWarden::Drop { number: 1 });
    agent.settle();
    server.request().unwrap();
    agent.settle();
    assert!(!server.is_thawed());
    assert!(server.has_no_reader());
}

#[test]
fn a_server_that_was_woken_is_not_kept_open() {
    let (agent, _loop) = start(NEVER);
    let mut server = Server::new();
    agent.hold_and_arm(1, &server);
    server.request().unwrap();
    assert_eq!(agent.report(), woke(1, WokenBy::Request));
    assert!(server.has_no_reader());
    agent.order(ToWarden::Arm { number: 1 });
    assert_eq!(agent.report(), FromWarden::Refused { number: 1 });
}

#[test]
fn a_wake_ends_the_registrations_although_the_descriptors_of_the_server_stay_open() {
    let (agent, mut sleepers) = by_turns(NEVER);
    let server = Server::new();
    agent.hold_and_arm(1, &server);
    assert!(sleepers.turn().unwrap().is_continue());
    // The socket, the stdin and one pidfd.
    assert_eq!(registrations(&sleepers.epoll), 3);
    server.request().unwrap();
    assert!(sleepers.turn().unwrap().is_continue());
    assert_eq!(agent.report(), woke(1, WokenBy::Request));
    assert_eq!(registrations(&sleepers.epoll), 1);
    // The next server in this slot is not woken by the byte that is still there.
    let next = Server::new();
    agent.order(ToWarden::Drop { number: 1 });
    agent.hold_and_arm(2, &next);
    for _ in 0..3 {
        agent.order(ToWarden::Beat);
        assert!(sleepers.turn().unwrap().is_continue());
        assert_eq!(agent.report(), FromWarden::Beat);
    }
    assert!(!next.is_thawed());
}

fn registrations(epoll: &OwnedFd) -> usize {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", epoll.as_raw_fd()));
    info.unwrap().lines().filter(|line| line.starts_with("tfd:")).count()
}

#[test]
fn a_stdin_that_cannot_be_watched_is_refused_and_its_server_thawed() {
    let (agent, _loop) = start(NEVER);
    let mut server = Server::new();
    server.stdin = Some(tempfile::tempfile().unwrap().into());
    agent.hold_and_arm(1, &server);
    assert_eq!(agent.report(), FromWarden::Refused { number: 1 });
    assert!(server.is_thawed());
}

#[test]
fn silence_wakes_all_and_brings_them_back() {
    let (agent, socket) = ends();
    let armed = [Server::with_processes("12\n"), Server::new()];
    let unarmed = Server::with_processes("13\n");
    agent.hold(3, &unarmed);
    agent.hold_and_arm(1, &armed[0]);
    agent.hold_and_arm(2, &armed[1]);
    // Only now, so that the silence is not over before the last order.
    let _loop = thread::spawn(move || serve(socket, Duration::from_millis(50)));
    let mut found: Vec<u64> = (0..3).map(|_| agent.silenced()).collect();
    found.sort_unstable();
    assert_eq!(found, [1, 2, 3]);
    // Its answer comes after the processes were brought back.
    agent.settle();
    assert!(unarmed.is_thawed() && armed.iter().all(Server::is_thawed));
    assert!(text(&armed[0].parent_procs).starts_with("12\n"));
    assert!(text(&unarmed.parent_procs).starts_with("13\n"));
    // They are held until they are dropped.
    agent.order(ToWarden::Arm { number: 3 });
    assert_eq!(agent.report(), FromWarden::Refused { number: 3 });
    agent.hold(2, &armed[1]);
    assert_eq!(agent.report(), FromWarden::Refused { number: 2 });
    agent.order(ToWarden::Drop { number: 2 });
    agent.hold(2, &armed[1]);
    assert_eq!(agent.silenced(), 2);
}

impl AgentEnd {
    fn silenced(&self) -> u64 {
        match self.report() {
            FromWarden::Woke { number, by: WokenBy::Silence } => number,
            report @ (FromWarden::Woke { .. } | FromWarden::Refused { .. } | FromWarden::Beat) => {
                panic!("{report:?}")
            }
        }
    }
}

#[test]
fn silence_counts_from_the_first_server_on_and_after_the_beats_that_wait() {
    let (agent, mut sleepers) = by_turns(NEVER);
    let server = Server::new();
    sleepers.heard -= NEVER;
    agent.hold(1, &server);
    assert!(sleepers.turn().unwrap().is_continue());
    assert!(!server.is_thawed());

    sleepers.heard -= NEVER;
    agent.order(ToWarden::Beat);
    assert!(sleepers.turn().unwrap().is_continue());
    assert_eq!(agent.report(), FromWarden::Beat);
    assert!(!server.is_thawed());

    sleepers.heard -= NEVER;
    assert!(sleepers.turn().unwrap().is_continue());
    assert_eq!(agent.report(), woke(1, WokenBy::Silence));
    assert!(server.is_thawed());
}

#[test]
fn a_server_that_is_frozen_during_a_silence_is_thawed_again() {
    let (agent, mut sleepers) = by_turns(NEVER);
    let server = Server::new();
    agent.hold(1, &server);
    assert!(sleepers.turn().unwrap().is_continue());
    let mut silence = || {
        sleepers.heard -= NEVER;
        assert!(sleepers.turn().unwrap().is_continue());
        text(&server.freeze).len()
    };
    // Each write is appended to the file.
    assert!(silence() < silence());
    assert_eq!(agent.report(), woke(1, WokenBy::Silence));
    agent.order(ToWarden::Beat);
    assert!(sleepers.turn().unwrap().is_continue());
    assert_eq!(agent.report(), FromWarden::Beat);
}

#[test]
fn the_end_of_the_socket_wakes_all_and_brings_them_back() {
    let (agent, work) = start(NEVER);
    let (armed, unarmed) = (Server::new(), Server::with_processes("12\n13\n"));
    agent.hold_and_arm(1, &armed);
    agent.hold(2, &unarmed);
    drop(agent);
    work.join().unwrap().unwrap();
    assert!(armed.is_thawed() && unarmed.is_thawed());
    assert!(text(&unarmed.parent_procs).starts_with("12\n13\n12\n"));
}

#[test]
fn a_packet_that_is_not_understood_ends_it_as_the_end_of_the_socket_does() {
    for packet in [&[9; LENGTH][..], &[2; LENGTH + 1], &[4]] {
        let (agent, work) = start(NEVER);
        let server = Server::new();
        agent.hold(1, &server);
        agent.send(packet);
        work.join().unwrap().unwrap();
        assert!(server.is_thawed());
    }
}

#[test]
fn an_order_that_cannot_be_carried_out_is_refused() {
    let (agent, mut sleepers) = by_turns(NEVER);
    assert_eq!(sleepers.slots.len(), 512);
    // Fewer, because a test may have few descriptors.
    sleepers.slots = [None, None].into();
    let server = Server::new();
    let mut turn = || assert!(sleepers.turn().unwrap().is_continue());
    for (number, is_refused) in [(1, false), (1, true), (2, false), (3, true)] {
        agent.hold(number, &server);
        if is_refused {
            turn();
            assert_eq!(agent.report(), FromWarden::Refused { number });
        }
    }
    agent.order(ToWarden::Drop { number: 1 });
    agent.hold(3, &server);
    agent.order(ToWarden::Arm { number: 1 });
    turn();
    assert_eq!(agent.report(), FromWarden::Refused { number: 1 });
}

#[test]
fn a_server_with_too_few_or_too_many_descriptors_is_refused() {
    let (agent, _loop) = start(NEVER);
    let file = tempfile::tempfile().unwrap();
    for (number, count) in [(1, 0), (2, 4), (3, 37), (4, 60)] {
        let files: Vec<BorrowedFd<'_>> = vec![file.as_fd(); count];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(60))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&files)));
        let packet = ToWarden::Hold { number }.encode();
        let flags = SendFlags::NOSIGNAL;
        sendmsg(&agent.0, &[io::IoSlice::new(&packet)], &mut control, flags).unwrap();
        assert_eq!(agent.report(), FromWarden::Refused { number });
    }
    agent.settle();
}

#[test]
fn an_agent_that_does_not_read_blocks_nothing() {
    let (agent, _loop) = start(NEVER);
    let server = Server::new();
    agent.hold_and_arm(1, &server);
    // More answers than the socket queues.
    (0..4000).for_each(|_| agent.order(ToWarden::Beat));
    server.request().unwrap();
    let begun = Instant::now();
    while !server.is_thawed() {
        assert!(begun.elapsed() < LONG, "it is not woken");
        thread::yield_now();
    }
}

#[test]
fn processes_are_moved_until_none_is_left_or_too_many_were() {
    let moves = |list: &str| {
        let (mut procs, parent) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        procs.write_all(list.as_bytes()).unwrap();
        move_back(&procs.into(), &parent.try_clone().unwrap().into());
        text(&parent)
    };
    assert_eq!(moves(""), "");
    // The list of a file does not get shorter.
    assert_eq!(moves("12\n"), "12\n".repeat(MOST_MOVES));
    assert_eq!(moves("12\n0\n13\n7"), "12\n13\n".repeat(MOST_MOVES / 2));
    for list in ["0\n", "0\n0\n", "7", "x\n", "\n", "-1\n"] {
        assert_eq!(moves(list), "", "{list:?}");
    }
}

#[test]
fn signs_are_told_apart() {
    for sign in [
        Sign::Socket,
        Sign::Stdin(0),
        Sign::Process(0),
        Sign::Stdin(MOST - 1),
        Sign::Process(MOST - 1),
    ] {
        assert_eq!(Sign::of(sign.data()), sign);
    }
}
