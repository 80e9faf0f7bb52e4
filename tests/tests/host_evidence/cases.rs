//! Work that looks like rest, and rest that looks like work: one row for each case, on real processes.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener},
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use mcp_guard_core::evidence::{Contact, Quiescence, ServerSeen, StdioAtExec};
use mcp_guard_tests::{agent::DEADLINE, wait};

use crate::server::{ECHO, Server, stdio_of};

/// The expected reading of a case.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Told {
    NoStdio,
    Quiescent,
    /// Connected, and part of the reason why it is not quiescent.
    NotQuiescent(&'static str),
    Closing,
    /// Disconnected, and at work or not.
    Disconnected {
        is_busy: bool,
    },
}

impl Told {
    fn is(self, seen: &ServerSeen) -> bool {
        let expected = match self {
            Self::NoStdio => Contact::NoStdio,
            Self::Quiescent | Self::NotQuiescent(_) => Contact::Connected,
            Self::Closing => Contact::Closing,
            Self::Disconnected { .. } => Contact::Disconnected,
        };
        let is_told = match (self, &seen.quiescence) {
            (Self::Quiescent, rest) => *rest == Quiescence::Quiescent,
            (Self::NotQuiescent(why), Quiescence::AtWork(work)) => work.to_string().contains(why),
            (Self::NotQuiescent(_), Quiescence::Unknown | Quiescence::Quiescent) => false,
            (Self::Disconnected { is_busy }, _) => seen.is_busy == Some(is_busy),
            (Self::NoStdio | Self::Closing, rest) => *rest == Quiescence::Unknown,
        };
        seen.contact == expected && is_told
    }
}

const AT_WORK: Told = Told::Disconnected { is_busy: true };
const ABANDONED: Told = Told::Disconnected { is_busy: false };

/// Its input has ended, and its client reads.
fn ended(mut server: Server) -> Server {
    drop(server.stdin.take());
    server
}

/// Nobody is at the other ends.
fn left(mut server: Server) -> Server {
    drop((server.stdin.take(), server.stdout.take()));
    server
}

fn sleeps() -> Server {
    Server::start(&["sleep", "600"])
}

/// A program with one socket as its stdin and stdout, and the other end.
fn with_socket(words: &[&str]) -> (Server, UnixStream) {
    let (client, server) = UnixStream::pair().unwrap();
    let end = || Stdio::from(OwnedFd::from(server.try_clone().unwrap()));
    (Server::with(words, end(), end()), client)
}

/// A program of perl that runs `then` with a connection to somebody who never answers (`$up`).
fn asks(then: &str) -> Server {
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = upstream.local_addr().unwrap().port();
    let script = format!(
        "use IO::Socket::INET; my $up = IO::Socket::INET->new(PeerAddr => '127.0.0.1:{port}') or die; {then}"
    );
    let server = Server::start(&["perl", "-e", &script]);
    let (accepted, _) = upstream.accept().unwrap();
    server.keeping((upstream, accepted))
}

/// A row for a socket in the file system.
fn asks_a_local_service(then: &str) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let upstream = UnixListener::bind(&path).unwrap();
    let script = format!(
        "use IO::Socket::UNIX; my $up = IO::Socket::UNIX->new(Peer => '{}') or die; {then}",
        path.to_str().unwrap()
    );
    let server = Server::start(&["perl", "-e", &script]);
    let (accepted, _) = upstream.accept().unwrap();
    server.keeping((folder, accepted))
}

const RECEIVES: &str = "$up->recv(my $reply, 1)";

/// A script of node that runs `then` with `ready()` and the port of somebody who never answers.
fn node_asks(then: &str) -> Server {
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = upstream.local_addr().unwrap().port();
    let ready = "const ready = () => require('fs').writeSync(1, 'ready\\n');";
    Server::node(&format!("{ECHO} const port = {port}; {ready} {then}")).keeping(upstream)
}

fn waits_for_a_lock() -> Server {
    let file = tempfile::NamedTempFile::new().unwrap();
    let holder = Command::new("flock")
        .args(["--no-fork", file.path().to_str().unwrap()])
        .args(["sh", "-c", "echo locked; exec sleep 600"])
        .stdout(Stdio::piped())
        .spawn();
    let mut holder = holder.unwrap();
    holder.stdout.as_mut().unwrap().read_exact(&mut [0; 7]).unwrap();
    let holder = Running(holder);
    let server = Server::start(&["flock", file.path().to_str().unwrap(), "cat"]);
    server.keeping((file, holder))
}

/// Killed and reaped on drop.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Its client is gone, but a process that the client has forked has the other ends.
fn held_by_a_worker() -> Server {
    let mut server = sleeps();
    let (stdin, stdout) = (server.stdin.take().unwrap(), server.stdout.take().unwrap());
    let mut worker = Command::new("sleep");
    worker.arg("600").stdin(stdout).stdout(stdin).stderr(Stdio::null());
    server.keeping(Running(worker.spawn().unwrap()))
}

fn fifo(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    path
}

/// A program of perl that opens a pipe with a name in this way (`FIFO` is its path), and waits for its client.
fn opens_a_fifo(in_folder: &str, open: &str) -> Server {
    let folder = tempfile::tempdir_in(in_folder).unwrap();
    let path = fifo(folder.path(), "pipe");
    let open = open.replace("FIFO", path.to_str().unwrap());
    let script = format!("$| = 1; {open} or die; print \"ready\\n\"; <STDIN>");
    Server::start(&["perl", "-e", &script]).once_ready().keeping(folder)
}

/// Moves the connection of [`asks`] to the place of stderr, and then runs `then`.
fn as_stderr(then: &str) -> String {
    format!("use POSIX (); POSIX::dup2(fileno($up), 2) or die; POSIX::close(fileno($up)); {then}")
}

/// Others can open both ends by their names at any time.
fn with_fifos() -> Server {
    let folder = tempfile::tempdir().unwrap();
    let fifo = |name: &str| {
        let path = fifo(folder.path(), name);
        File::options().read(true).write(true).open(&path).unwrap();
        // Opened for both ends, so that neither open waits for the other end.
        let both = File::options().read(true).write(true).open(&path).unwrap();
        (both, path)
    };
    let [(input, reads), (output, writes)] = ["in", "out"].map(fifo);
    let stdin = File::open(reads).unwrap();
    let stdout = File::options().write(true).open(writes).unwrap();
    let server = Server::with(&["sleep", "600"], stdin.into(), stdout.into());
    drop((input, output));
    server.keeping(folder)
}

/// Reads one member of a tree as if it were a server of its own.
fn member(mut tree: Server, of: &str) -> Server {
    let mut found = None;
    let reached = wait::until(DEADLINE, || {
        let has_name = |pid: u32| {
            let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            comm.trim() == of
        };
        found = tree.members().into_iter().map(|one| one.pid).find(|pid| has_name(pid.0));
        Ok(found.is_some())
    });
    assert!(reached.unwrap(), "{of}");
    (tree.alone, tree.stdio) = (found, stdio_of(found.unwrap().0));
    tree
}

fn blocked() -> Server {
    Server::start(&["head", "-c", "300000", "/dev/zero"])
}

/// A program of perl that runs `open` for a descriptor `$fd`, watches that in an epoll set, and waits for its client.
fn watches(open: &str) -> Server {
    let [create, add] = [libc::SYS_epoll_create1, libc::SYS_epoll_ctl];
    let script = format!(
        "$| = 1; {open}; my $set = syscall({create}, 0);\
         syscall({add}, $set, 1, $fd, pack('L8', 1, (0) x 7)) == 0 or die; print \"ready\n\"; <STDIN>"
    );
    Server::start(&["perl", "-e", &script]).once_ready()
}

fn watches_eventfd(flags: i32) -> Server {
    watches(&format!("my $fd = syscall({}, 0, {flags})", libc::SYS_eventfd2))
}

const PID_NAMESPACE: &[&str] = &["unshare", "-pf", "--kill-child"];
pub const ALARM: &str = "$SIG{ALRM} = sub {}; alarm 600";
const HAS_TIMER: Told = Told::NotQuiescent("has a timer");

/// Sets a timer of timer_create(2), whose signal would end the program.
pub fn posix_timer() -> String {
    let [create, set] = [libc::SYS_timer_create, libc::SYS_timer_settime];
    format!(
        "my $timer = pack('l', 0); syscall({create}, 1, 0, $timer) == 0 or die;\
         my $time = pack('q4', 0, 0, 600, 0);\
         syscall({set}, unpack('l', $timer), 0, $time, 0) == 0 or die"
    )
}

/// A program of perl that does something, behind other words, and then waits for its client.
pub fn waits_behind(words: &[&str], does: &str) -> Server {
    let script = format!("{does}; $| = 1; print \"ready\n\"; <STDIN>");
    Server::start(&[words, &["perl", "-e", &script]].concat()).once_ready()
}

const RUNS_ANOTHER: Told = Told::NotQuiescent("has started another program, which runs");

/// A job that has started a program, and sleeps.
fn job_that_calls() -> Server {
    let job = "sleep 601 </dev/null >/dev/null & exec sleep 600";
    let mut server = Server::start(&["sh", "-c", job]);
    server.alone = Some(server.pid());
    server
}

/// A server that has started a program for a call, for so many seconds. It also waits for its client.
fn calls(seconds: &str) -> Server {
    let does = format!("fork or exec 'sh', '-c', 'exec sleep {seconds} </dev/null >/dev/null'");
    let mut server = waits_behind(&[], &does);
    server.alone = Some(server.pid());
    server
}

/// The name of the case, its processes, and the expected reading.
type Row = (&'static str, fn() -> Server, Told);

/// In this order: what has no client at the other end of its stdin, what is in the middle of a request, and where
/// stdio is not what it seems.
const CASES: [Row; 53] = [
    ("`docker run -i IMAGE </dev/null`", || ended(sleeps()), Told::Closing),
    (
        "`echo job | docker exec -i`, and the client waits for the result",
        || {
            let mut job =
                Server::start(&["sh", "-c", "read job; echo ready; sleep 600; echo result"]);
            job.stdin.as_mut().unwrap().write_all(b"job\n").unwrap();
            ended(job.once_ready())
        },
        Told::Closing,
    ),
    (
        "the same by a socket",
        || {
            let (server, client) = with_socket(&["sleep", "600"]);
            client.shutdown(Shutdown::Write).unwrap();
            server.keeping(client)
        },
        Told::Closing,
    ),
    ("a server that only waits, without a client", || left(sleeps()), ABANDONED),
    ("the same by a socket", || with_socket(&["sleep", "600"]).0, ABANDONED),
    ("a `psql` that waits for its reply", || left(asks(RECEIVES)), AT_WORK),
    ("the same by a local socket", || left(asks_a_local_service(RECEIVES)), AT_WORK),
    ("a job that sleeps between two requests", || left(asks("sleep 600")), AT_WORK),
    (
        "a `psql` that waits for its reply in the place of stderr",
        || left(asks(&as_stderr("sysread(STDERR, $reply, 1)"))),
        AT_WORK,
    ),
    (
        "a job that sleeps, with its connection in the place of stderr",
        || left(asks(&as_stderr("sleep 600"))),
        AT_WORK,
    ),
    ("a job that waits for a lock", || left(waits_for_a_lock()), AT_WORK),
    (
        "a job that a tool has detached",
        || {
            let job = "setsid sleep 600 </dev/null >/dev/null & exec cat";
            member(Server::start(&["sh", "-c", job]), "sleep")
        },
        Told::NoStdio,
    ),
    ("a server at rest", || Server::start(&["cat"]), Told::Quiescent),
    ("the same in node", || Server::node(&format!("{ECHO} console.log('ready')")), Told::Quiescent),
    (
        "the same by a socket",
        || {
            let (server, client) = with_socket(&["cat"]);
            server.keeping(client)
        },
        Told::Quiescent,
    ),
    (
        "a request that has not been read",
        || {
            let mut server = sleeps();
            server.stdin.as_mut().unwrap().write_all(b"x").unwrap();
            server
        },
        Told::NotQuiescent("has not read all of its stdin"),
    ),
    (
        "a request that waits for something slow",
        || asks(RECEIVES),
        Told::NotQuiescent("connection to the outside"),
    ),
    (
        "the same by a local socket",
        || asks_a_local_service(RECEIVES),
        Told::NotQuiescent("connection to the outside"),
    ),
    (
        "the same in node, whose timer has gone off",
        || node_asks("require('http').get({ port }).on('socket', s => s.on('connect', ready));"),
        Told::NotQuiescent("connection to the outside"),
    ),
    (
        "a relay, which waits for its client too",
        || node_asks("process.stdin.pipe(require('net').connect(port, ready));"),
        Told::NotQuiescent("connection to the outside"),
    ),
    (
        "a server of others",
        || node_asks("require('net').createServer().listen(0, '127.0.0.1', ready);"),
        Told::NotQuiescent("accepts connections"),
    ),
    (
        "a connection in the place of stderr, beside a wait for its client",
        || asks(&as_stderr("<STDIN>")),
        Told::NotQuiescent("connection to the outside"),
    ),
    (
        "a pipe with a name, which anybody may write to",
        || opens_a_fifo("/tmp", "open(my $fifo, '+<', 'FIFO')"),
        Told::NotQuiescent("reads from a pipe with a name"),
    ),
    (
        "the same in the place of stderr",
        || opens_a_fifo("/tmp", "open(STDERR, '+<', 'FIFO')"),
        Told::NotQuiescent("reads from a pipe with a name"),
    ),
    (
        "the same below /dev",
        || opens_a_fifo("/dev/shm", "open(my $fifo, '+<', 'FIFO')"),
        Told::NotQuiescent("reads from a pipe with a name"),
    ),
    (
        "a log that is a pipe with a name",
        || {
            let open = "open($both, '+<', 'FIFO') && open(STDERR, '>', 'FIFO') && close($both)";
            opens_a_fifo("/tmp", open)
        },
        Told::Quiescent,
    ),
    (
        "the master of a terminal, whose program may write to it",
        || {
            let script =
                "$| = 1; open(my $master, '+<', '/dev/ptmx') or die; print \"ready\n\"; <STDIN>";
            Server::start(&["perl", "-e", script]).once_ready()
        },
        Told::NotQuiescent("woken by something"),
    ),
    (
        "devices that wake nobody",
        || {
            let script =
                "exec 5</dev/zero 6</dev/full 7</dev/random 8</dev/urandom; echo ready; exec cat";
            Server::start(&["sh", "-c", script]).once_ready()
        },
        Told::Quiescent,
    ),
    (
        "an eventfd that another process may have inherited",
        || watches_eventfd(0),
        Told::NotQuiescent("woken by something"),
    ),
    ("an eventfd of its own", || watches_eventfd(libc::EFD_CLOEXEC), Told::Quiescent),
    (
        "a message queue, which anybody may write to",
        || {
            let [open, unlink] = [libc::SYS_mq_open, libc::SYS_mq_unlink];
            let flags = libc::O_RDWR | libc::O_CREAT;
            watches(&format!(
                "my $name = \"mcp-guard-test-$$\"; my $fd = syscall({open}, $name, {flags}, 0600, 0);\
                 syscall({unlink}, $name)"
            ))
        },
        Told::NotQuiescent("woken by something"),
    ),
    ("an answer that nobody reads", blocked, Told::NotQuiescent("its output is not read")),
    (
        "a timer that ends the server if it is not asked",
        || node_asks("setTimeout(() => process.exit(3), 1e9); ready();"),
        Told::NotQuiescent("in epoll with a timeout"),
    ),
    ("a timer that sends a signal", || waits_behind(&[], &posix_timer()), HAS_TIMER),
    ("the same in a pid namespace", || waits_behind(PID_NAMESPACE, &posix_timer()), HAS_TIMER),
    ("an alarm", || waits_behind(&[], ALARM), HAS_TIMER),
    ("the same in a pid namespace", || waits_behind(PID_NAMESPACE, ALARM), HAS_TIMER),
    (
        "a program that handles all signals, as those in Go do",
        || waits_behind(&[], "$SIG{$_} = sub {} for qw(ALRM VTALRM PROF)"),
        Told::Quiescent,
    ),
    ("a sleep", sleeps, Told::NotQuiescent("in nanosleep with a timeout")),
    (
        "a wait that cannot be read",
        || {
            let script = "vec($r, 0, 1) = 1; select($r, undef, undef, undef)";
            Server::start(&["perl", "-e", script])
        },
        Told::NotQuiescent("in select"),
    ),
    (
        "a wait for a message of its own",
        || {
            let script = "use Socket; socketpair($a, $b, 1, 1, 0); $i = 'x'; recv($a, $i, 1, 0)";
            Server::start(&["perl", "-e", script])
        },
        Told::NotQuiescent("none of its threads waits for its stdin"),
    ),
    (
        "the same with a timeout",
        || {
            // SO_RCVTIMEO of SOL_SOCKET.
            let script = "use Socket; socketpair($a, $b, 1, 1, 0);\
                setsockopt($a, 1, 20, pack('qq', 600, 0)); $i = 'x'; recv($a, $i, 1, 0)";
            Server::start(&["perl", "-e", script])
        },
        Told::NotQuiescent("in recv with a timeout"),
    ),
    ("a call that runs another program", || calls("600"), RUNS_ANOTHER),
    ("the same without a client", || left(job_that_calls()), AT_WORK),
    ("a call whose program has ended and is not reaped", || calls("0"), Told::Quiescent),
    (
        "a lock that another server may wait for",
        || {
            let file = tempfile::NamedTempFile::new().unwrap();
            let server = Server::start(&["flock", file.path().to_str().unwrap(), "cat"]);
            server.keeping(file)
        },
        Told::NotQuiescent("holds a lock"),
    ),
    ("named pipes without a writer and a reader", with_fifos, Told::NoStdio),
    (
        "a file, and /dev/null",
        || {
            let null = File::options().write(true).open("/dev/null").unwrap();
            Server::with(
                &["sleep", "600"],
                File::open("/etc/hostname").unwrap().into(),
                null.into(),
            )
        },
        Told::NoStdio,
    ),
    (
        "a terminal",
        || member(Server::start(&["script", "-qc", "sleep 600", "/dev/null"]), "sleep"),
        Told::NoStdio,
    ),
    (
        "a chain of programs",
        || Server::start(&["sh", "-c", "cat | tee /dev/null"]),
        Told::Quiescent,
    ),
    (
        "a chain without a client, whose inner pipes have both ends",
        || left(Server::start(&["sh", "-c", "sleep 600 | sleep 601"])),
        ABANDONED,
    ),
    (
        "the last program of such a chain",
        || member(left(Server::start(&["sh", "-c", "cat /dev/zero | sleep 601"])), "sleep"),
        Told::NotQuiescent("its stdin"),
    ),
    (
        "a client that is gone, and has left the other ends to a worker",
        held_by_a_worker,
        Told::NotQuiescent("in nanosleep with a timeout"),
    ),
];

#[test]
fn each_case_is_told_apart() {
    let mut wrong = Vec::new();
    for (case, start, expected) in CASES {
        let server = start();
        let mut last = ServerSeen::default();
        // Two looks that find the same, as a server that is silent gives them.
        let reached = wait::until(DEADLINE, || {
            let before = last.activity;
            last = server.survey(before);
            Ok(last.activity == before && before.is_some() && expected.is(&last))
        });
        if !reached.unwrap() {
            wrong.push(format!("{case}: {expected:?}, and not {last:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The worker is the last that can write.
#[test]
fn a_server_is_left_when_the_last_holder_of_its_stdin_is_gone() {
    let mut server = held_by_a_worker();
    let contact = |server: &Server| server.survey(None).contact;
    assert_eq!(contact(&server), Contact::Connected);
    server.kept.clear();
    let reached = wait::until(DEADLINE, || Ok(contact(&server) == Contact::Disconnected));
    assert!(reached.unwrap(), "{:?}", contact(&server));
    assert!(matches!(server.stdio, StdioAtExec::Are(_)));
}
