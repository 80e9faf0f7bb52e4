//! Evidence about real processes: whether a client can reach a server, and whether the server waits for its
//! client and for nothing else.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener},
    os::{fd::OwnedFd, unix::net::UnixStream},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use mcp_guard::host::{
    evidence::{Freezers, ServerLook, look, stdio, survey},
    process::OpenProcess,
};
use mcp_guard_core::{
    evidence::{
        AtWork, Channel, Channels, Connection, Contact, FileLock, PeerIs, Quiescence, StdioAtExec,
        Wait, at_work,
    },
    id::Pid,
    registry::{Member, ToLookAt, TreeId},
};
use mcp_guard_tests::{agent::DEADLINE, wait};

/// Returns the channels of a process, if it has any.
fn channels(pid: u32) -> Option<Channels> {
    match stdio(Pid(pid)).unwrap().1 {
        StdioAtExec::Are(channels) => Some(channels),
        StdioAtExec::Other | StdioAtExec::Unread => None,
    }
}

/// A program with its stdio. Killed and reaped on drop, with all that it has started.
struct Server {
    child: Child,
    channels: Channels,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
}

impl Drop for Server {
    fn drop(&mut self) {
        for member in self.members().into_iter().skip(1) {
            let pid = rustix::process::Pid::from_raw(i32::try_from(member.pid.0).unwrap()).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(words: &[&str]) -> Self {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let channels = channels(child.id()).unwrap();
        Self { child, channels, stdin, stdout }
    }

    /// A script of node, once it has written `ready`.
    fn node(script: &str) -> Self {
        let mut server = Self::start(&["node", "-e", script]);
        let mut ready = [0; 6];
        server.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        assert_eq!(&ready, b"ready\n");
        server
    }

    /// The program and all of its descendants.
    fn members(&self) -> Vec<Member> {
        let mut pids = vec![Pid(self.child.id())];
        let mut next = 0;
        while let Some(pid) = pids.get(next).copied() {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
            let children = children.unwrap_or_default();
            pids.extend(children.split_whitespace().map(|pid| Pid(pid.parse().unwrap())));
            next += 1;
        }
        // One may end meanwhile.
        let member = |pid| {
            let start_ticks = OpenProcess::open(pid).and_then(|process| process.start_ticks());
            Some(Member { pid, start_ticks: start_ticks.ok()?, is_launcher: false })
        };
        pids.into_iter().filter_map(member).collect()
    }

    fn look(&self) -> ServerLook {
        look(&self.members(), self.channels).unwrap()
    }

    /// Waits until a look says this.
    fn await_verdict(&self, what: &str, is_it: impl Fn(Option<AtWork>) -> bool) {
        let mut last = None;
        let reached = wait::until(DEADLINE, || {
            // A member may end meanwhile.
            let Ok(look) = look(&self.members(), self.channels) else { return Ok(false) };
            last = at_work(&look.tree);
            Ok(is_it(last))
        });
        assert!(reached.unwrap(), "{what}: {last:?}");
    }

    /// Another test that starts a program at the same time may hold the far end a moment longer.
    fn await_connection(&self, connection: Connection) {
        let reached = wait::until(DEADLINE, || Ok(self.look().connection == connection));
        assert!(reached.unwrap(), "{connection}");
    }

    fn await_rest(&self) {
        self.await_verdict("at rest", |verdict| verdict.is_none());
    }
}

const ECHO: &str = "process.stdin.on('data', line => process.stdout.write(line));";

#[test]
fn a_server_that_waits_for_its_client_is_quiescent() {
    for words in [
        &["cat"][..],
        &["sh", "-c", "while read line; do echo $line; done"],
        // The inner pipes are between members.
        &["sh", "-c", "cat | cat"],
        &["node", "-e", ECHO],
        &["perl", "-ne", "BEGIN { $| = 1 } print"],
    ] {
        let mut server = Server::start(words);
        server.await_rest();
        assert_eq!(server.look().connection, Connection::Connected);
        // It is the same after a request.
        server.stdin.as_mut().unwrap().write_all(b"hello\n").unwrap();
        let mut answer = [0; 6];
        server.stdout.as_mut().unwrap().read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"hello\n", "{words:?}");
        server.await_rest();
    }
}

#[test]
fn a_server_with_work_is_not_quiescent() {
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = upstream.local_addr().unwrap().port();
    let is_thread = |verdict: &Option<AtWork>, wanted: &Wait| matches!(verdict, Some(AtWork::Thread { wait, .. }) if wait == wanted);
    let timed = Server::node(&format!(
        "{ECHO} setTimeout(() => 0, 1e9); require('fs').writeSync(1, 'ready\\n');"
    ));
    timed.await_verdict("it has a timer", |verdict| {
        matches!(verdict, Some(AtWork::Thread { wait: Wait::Epoll { has_timeout: true, .. }, .. }))
    });
    let asks = Server::node(&format!(
        "{ECHO} require('net').connect({port}, '127.0.0.1', () => require('fs').writeSync(1, 'ready\\n'));"
    ));
    asks.await_verdict("it waits for a reply", |verdict| {
        matches!(verdict, Some(AtWork::Connection { peer: PeerIs::Outside, .. }))
    });
    let listens = Server::node(&format!(
        "{ECHO} require('net').createServer().listen(0, '127.0.0.1', () => require('fs').writeSync(1, 'ready\\n'));"
    ));
    listens.await_verdict("it accepts connections", |verdict| {
        matches!(verdict, Some(AtWork::Connection { peer: PeerIs::Listening, .. }))
    });
    let blocked = Server::start(&["head", "-c", "300000", "/dev/zero"]);
    blocked.await_verdict("nobody reads", |verdict| verdict == Some(AtWork::Unwritable));
    let sleeps = Server::start(&["sleep", "600"]);
    sleeps.await_verdict("it sleeps", |verdict| is_thread(&verdict, &Wait::Timed("nanosleep")));
    let polls =
        Server::start(&["perl", "-e", "vec($r, 0, 1) = 1; select($r, undef, undef, undef)"]);
    polls.await_verdict("it selects", |verdict| is_thread(&verdict, &Wait::Unreadable("select")));
    for (timeout, expected) in [
        ("", None),
        // SO_RCVTIMEO of SOL_SOCKET.
        ("setsockopt($a, 1, 20, pack('qq', 600, 0));", Some(Wait::Timed("recv"))),
    ] {
        let script = format!(
            "use Socket; socketpair($a, $b, 1, 1, 0); {timeout} $i = 'x'; recv($a, $i, 1, 0)"
        );
        let receives = Server::start(&["perl", "-e", &script]);
        receives.await_verdict("it receives", |verdict| match expected {
            Some(wait) => is_thread(&verdict, &wait),
            None => verdict == Some(AtWork::NobodyWaitsForStdin),
        });
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("lock");
    let locks = Server::start(&["flock", file.to_str().unwrap(), "cat"]);
    locks.await_verdict("it has a lock", |verdict| matches!(verdict, Some(AtWork::Lock { .. })));
    let mut unread = Server::start(&["sleep", "600"]);
    unread.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    assert_eq!(at_work(&unread.look().tree), Some(AtWork::Unread));
}

/// The sockets between a program and its child are inside, in the namespace of the host and in another.
#[test]
fn a_pair_of_sockets_within_a_server_is_inside() {
    let script = "const { spawn } = require('child_process');\
        spawn('cat', { stdio: ['pipe', 'pipe', 'ignore'] }).stdout.on('data', () => 0);\
        process.stdin.on('data', line => process.stdout.write(line));";
    for words in [&["node", "-e", script][..], &["unshare", "-n", "node", "-e", script]] {
        let server = Server::start(words);
        server.await_rest();
        let tree = server.look().tree;
        let is_inner = |look: &mcp_guard_core::evidence::ProcessLook| {
            let mut sockets = look.channels.iter();
            sockets.any(|open| {
                matches!(open.channel, Channel::Socket(_)) && open.peer == PeerIs::Inside
            })
        };
        assert_eq!(tree.processes.iter().filter(|look| is_inner(look)).count(), 2, "{tree:?}");
        // Without the child, the same sockets lead outside.
        let alone = look(&server.members()[..1], server.channels).unwrap();
        let verdict = at_work(&alone.tree);
        let leaves = matches!(verdict, Some(AtWork::Connection { peer: PeerIs::Outside, .. }));
        assert!(leaves, "{verdict:?}");
    }
}

/// Node gives its children three sockets. Nothing comes from stderr, unless somebody waits for it.
#[test]
fn a_socket_as_stderr_gives_no_work_unless_somebody_waits_for_it() {
    let reads = "use Socket; sysread(STDERR, my $x, 1)";
    for (words, expected) in [(&["cat"][..], None), (&["perl", "-e", reads], Some(2))] {
        let pairs = [(); 3].map(|()| UnixStream::pair().unwrap());
        let end = |at: usize| Stdio::from(OwnedFd::from(pairs[at].1.try_clone().unwrap()));
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).stdin(end(0)).stdout(end(1)).stderr(end(2));
        let child = command.spawn().unwrap();
        drop(command);
        let channels = channels(child.id()).unwrap();
        let server = Server { child, channels, stdin: None, stdout: None };
        server.await_verdict(words[0], |verdict| match (verdict, expected) {
            (None, None) => true,
            (Some(AtWork::Thread { wait: Wait::Read(fd), .. }), Some(expected)) => fd == expected,
            (_, _) => false,
        });
    }
}

/// A look is bounded, however much a server has open.
#[test]
fn a_server_with_too_much_open_is_not_known() {
    let script =
        "open($all[$_], '<', '/dev/null') or die for (1 .. 8200); $| = 1; print 'opened'; <STDIN>";
    let many = format!("ulimit -n 8300 && exec perl -e \"{}\"", script.replace('$', "\\$"));
    let mut server = Server::start(&["sh", "-c", &many]);
    let mut opened = [0; 6];
    server.stdout.as_mut().unwrap().read_exact(&mut opened).unwrap();
    let error = look(&server.members(), server.channels).unwrap_err();
    assert!(error.to_string().contains("more than"), "{error}");

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let script = format!(
        "for (1 .. 40) {{ open($all[$_], '>', \"{path}/$_\"); flock($all[$_], 1) or die }} \
         $| = 1; print 'locked'; <STDIN>"
    );
    let mut server = Server::start(&["perl", "-e", &script]);
    server.stdout.as_mut().unwrap().read_exact(&mut opened).unwrap();
    assert_eq!(server.look().tree.processes[0].locks, [FileLock::Other]);
}

/// A server could stop one of its processes to look as if it could not run.
#[test]
fn a_server_is_stopped_if_all_of_its_processes_are() {
    let server = Server::start(&["sh", "-c", "sleep 600 & exec cat"]);
    let two = wait::until(DEADLINE, || Ok(server.members().len() == 2));
    assert!(two.unwrap());
    let members = server.members();
    let wanted = |activity| ToLookAt {
        server: TreeId(1),
        stdio: StdioAtExec::Are(server.channels),
        activity,
        members: members.clone(),
    };
    let seen = |activity| survey(&wanted(activity), &Freezers::default());
    let stop = |pid: Pid| {
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid.0).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    };
    stop(members[1].pid);
    let has_stopped =
        |one: Pid| wait::until(DEADLINE, || Ok(OpenProcess::open(one)?.stat()?.stopped));
    assert!(has_stopped(members[1].pid).unwrap());
    let before = seen(None).activity;
    let one = seen(before);
    assert_eq!(one.activity, before);
    assert!(!one.is_stopped && one.contact == Contact::Connected, "{one:?}");
    assert_eq!(one.quiescence, Quiescence::Unknown);
    stop(members[0].pid);
    assert!(wait::until(DEADLINE, || Ok(seen(None).is_stopped)).unwrap());
}

/// Some programs move the protocol to other descriptors.
#[test]
fn stdio_is_known_by_its_inodes_wherever_it_moves() {
    let script = "read go; exec 6<&0 7>&1 0</dev/null 1>/dev/null;\
        while read line <&6; do echo $line >&7; done";
    let mut server = Server::start(&["sh", "-c", script]);
    server.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    server.await_verdict("it has moved", |verdict| {
        verdict.is_none() && channels(server.child.id()).is_none()
    });
}

#[test]
fn a_connection_is_judged_by_what_the_client_has_closed() {
    let mut pipes = Server::start(&["sleep", "600"]);
    pipes.await_connection(Connection::Connected);
    drop(pipes.stdin.take());
    pipes.await_connection(Connection::Closing);
    drop(pipes.stdout.take());
    pipes.await_connection(Connection::Disconnected);

    let (client, server) = UnixStream::pair().unwrap();
    let mut command = Command::new("sleep");
    let end = |socket: &UnixStream| Stdio::from(OwnedFd::from(socket.try_clone().unwrap()));
    command.arg("600").stdin(end(&server)).stdout(end(&server)).stderr(Stdio::null());
    let child = command.spawn().unwrap();
    drop((command, server));
    let channels = channels(child.id()).unwrap();
    let sockets = Server { child, channels, stdin: None, stdout: None };
    sockets.await_connection(Connection::Connected);
    client.shutdown(Shutdown::Write).unwrap();
    sockets.await_connection(Connection::Closing);
    drop(client);
    sockets.await_connection(Connection::Disconnected);
}

/// The look duplicates descriptors for a moment, and must not keep a pipe open.
#[test]
fn a_look_keeps_nothing_open() {
    let mut server = Server::start(&["cat"]);
    server.await_rest();
    drop(server.stdin.take());
    assert!(server.child.wait().unwrap().success());
    let mut left = Vec::new();
    server.stdout.take().unwrap().read_to_end(&mut left).unwrap();
    assert!(left.is_empty());
}

#[test]
fn a_terminal_a_file_or_a_fifo_says_nothing_about_a_client() {
    for (stdin, stdout) in [("/dev/null", "/dev/null"), ("/etc/hostname", "/dev/null")] {
        let file = |path: &str, writes: bool| {
            fs::File::options().read(true).write(writes).open(path).unwrap()
        };
        let mut command = Command::new("sleep");
        command.arg("600").stdin(file(stdin, false)).stdout(file(stdout, true));
        let mut child = command.spawn().unwrap();
        let channels = channels(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(channels, None, "{stdin} {stdout}");
    }
}
