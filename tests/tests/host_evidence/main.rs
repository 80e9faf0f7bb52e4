//! Evidence about real processes: whether a client can reach a server, and whether the server waits for its
//! client and for nothing else.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]

mod cases;
mod holders;
mod server;

use std::{
    io::{Read as _, Write as _},
    os::{fd::OwnedFd, unix::net::UnixStream},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use mcp_guard::host::{
    cgroup::Cgroup,
    clock,
    evidence::{look, unreaped},
    layout::Layout,
    process::OpenProcess,
};
use mcp_guard_core::{
    evidence::{
        AtWork, Channel, Connection, Contact, FileLock, PeerIs, Quiescence, StdioAtExec, Wait,
        Waker, at_work,
    },
    id::Pid,
};
use mcp_guard_tests::{
    agent::DEADLINE, cgroup::FixtureCgroup, holds::write_freeze, sleeper::Sleeper, wait, workload,
};

use self::cases::{ALARM, posix_timer, waits_behind};
use self::server::{ECHO, Server, stdio_of};

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
        let alone = look(&server.members()[..1], server.channels()).unwrap();
        let verdict = at_work(&alone.tree);
        let leaves = matches!(verdict, Some(AtWork::Connection { peer: PeerIs::Outside, .. }));
        assert!(leaves, "{verdict:?}");
    }
}

/// Node gives its children three sockets. Nothing comes from stderr, unless somebody waits for it.
#[test]
fn a_socket_as_stderr_gives_no_work_unless_somebody_waits_for_it() {
    let reads = "use Socket; sysread(STDERR, my $x, 1)";
    // It may be in the place of stdout, too.
    let moves = "read go; exec 6<&0 7>&1 0</dev/null 1>&2; read line <&6";
    for (words, expected) in
        [(&["cat"][..], None), (&["sh", "-c", moves], None), (&["perl", "-e", reads], Some(2))]
    {
        let pairs = [(); 3].map(|()| UnixStream::pair().unwrap());
        let end = |at: usize| Stdio::from(OwnedFd::from(pairs[at].1.try_clone().unwrap()));
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).stdin(end(0)).stdout(end(1)).stderr(end(2));
        let server = Server::spawn(command);
        if words[0] == "sh" {
            // Its stdio was read before it moves it.
            (&pairs[0].0).write_all(b"go\n").unwrap();
        }
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
    let error = look(&server.members(), server.channels()).unwrap_err();
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

/// The kernel goes through all sockets of a namespace for the peer of each.
#[test]
fn a_look_that_would_cost_much_is_given_up() {
    let script = "use Socket; $| = 1;\
        sub pairs {\
            map { socketpair(my $one, my $other, AF_UNIX, SOCK_STREAM, 0) or die; ($one, $other) } 1 .. $_[0]\
        }\
        for (1 .. 4) {\
            my @others = pairs(4000);\
            fork or sleep 600;\
        }\
        my @own = pairs(4000);\
        print \"ready\n\";\
        sleep 600;";
    let shell = format!("ulimit -n 8100 && exec perl -e '{script}'");
    let mut server = Server::start(&["unshare", "-n", "sh", "-c", &shell]).once_ready();
    server.alone = Some(server.pid());
    drop((server.stdin.take(), server.stdout.take()));
    let before = clock::thread_cpu_time();
    let seen = server.survey(None);
    let cost = clock::thread_cpu_time() - before;
    assert!(cost < Duration::from_millis(500), "{cost:?}");
    assert_eq!((seen.contact, seen.is_busy), (Contact::Disconnected, None));
    assert!(seen.activity.is_some());
}

/// Another process has very many sockets in the network namespace of a server.
#[test]
fn the_sockets_of_others_do_not_hide_those_of_a_server() {
    const CROWD: &str = "use Socket; $| = 1; my @all;\
        for (1 .. 8000) { socketpair(my $a, my $b, AF_UNIX, SOCK_STREAM, 0) or die; push @all, $a, $b }\
        print \"ready\n\"; sleep 600";
    const OWN: &str = "use Socket; $| = 1; socketpair(my $a, my $b, AF_UNIX, SOCK_STREAM, 0) or die;\
        print \"ready\n\"; <STDIN>";
    let shell = format!("ulimit -n 16100 && exec perl -e '{CROWD}'");
    let first = Server::start(&["unshare", "-n", "sh", "-c", &shell]).once_ready();
    let network = format!("--net=/proc/{}/ns/net", first.pid());
    let more = ["nsenter", &network, "sh", "-c", &shell];
    let _crowd = [first, Server::start(&more).once_ready(), Server::start(&more).once_ready()];
    let server = Server::start(&["nsenter", &network, "perl", "-e", OWN]).once_ready();
    server.await_rest();
    let before = clock::thread_cpu_time();
    let look = look(&server.members(), server.channels());
    let cost = clock::thread_cpu_time() - before;
    assert_eq!(at_work(&look.unwrap().tree), None, "{cost:?}");
    assert!(cost < Duration::from_millis(40), "{cost:?}");
}

/// The kernel lists its threads without the first one, and charges for all.
#[test]
fn a_process_whose_first_thread_has_ended_is_no_zombie() {
    let cgroup = FixtureCgroup::new("leaderless").unwrap();
    // On a hybrid host, the limit of a cgroup is found by a process in it.
    let _other = Sleeper::start(&cgroup).unwrap();
    let opened = Cgroup::open(&Layout::read().unwrap(), cgroup.path()).unwrap();
    let count = || unreaped(&opened.charged().unwrap(), true).unwrap().zombies;
    let leaderless = [(); 8].map(|()| {
        let program = Command::new(workload("leaderless").unwrap());
        let mut sleeper = Sleeper::spawn(&cgroup, program).unwrap();
        assert!(sleeper.line().unwrap().contains("has ended"));
        sleeper
    });
    assert_eq!(count(), 0);
    let script = "fork or exit for 1 .. 6; $| = 1; print \"forked\n\"; sleep 600";
    let mut command = Command::new("perl");
    command.args(["-e", script]);
    let mut parent = Sleeper::spawn(&cgroup, command).unwrap();
    assert_eq!(parent.line().unwrap(), "forked");
    assert!(wait::until(DEADLINE, || Ok(count() == 6)).unwrap(), "{}", count());
    drop((parent, leaderless));
}

/// A server could stop one of its processes to look as if it could not run.
#[test]
fn a_server_is_stopped_if_all_of_its_processes_are() {
    let server = Server::start(&["sh", "-c", "sleep 600 & exec cat"]);
    let two = wait::until(DEADLINE, || Ok(server.members().len() == 2));
    assert!(two.unwrap());
    let members = server.members();
    let seen = |activity| server.survey(activity);
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

#[test]
fn the_timers_of_a_frozen_server_are_seen() {
    let cgroup = FixtureCgroup::new("timers").unwrap();
    for arms in [posix_timer(), ALARM.to_owned()] {
        let server = waits_behind(&[], &arms);
        let list = cgroup.unified_dir().join("cgroup.procs");
        std::fs::write(list, server.pid().to_string()).unwrap();
        write_freeze(&cgroup, "1").unwrap();
        cgroup.wait_until("frozen", DEADLINE, || cgroup.is_frozen().unwrap()).unwrap();
        assert_eq!(server.look().tree.processes[0].wakers, [Waker::Timer], "{arms}");
        drop(server);
        write_freeze(&cgroup, "0").unwrap();
    }
}

/// Some programs move the protocol to other descriptors.
#[test]
fn stdio_is_known_by_its_inodes_wherever_it_moves() {
    let script = "read go; exec 6<&0 7>&1 0</dev/null 1>/dev/null;\
        while read line <&6; do echo $line >&7; done";
    let mut server = Server::start(&["sh", "-c", script]);
    server.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    server.await_verdict("it has moved", |verdict| {
        verdict.is_none() && stdio_of(server.child.id()) == StdioAtExec::Other
    });
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

/// It works for much less than a clock tick at a time, reads and writes nothing, and leaves its first thread alone.
#[test]
fn the_work_of_each_thread_is_that_of_the_server() {
    let script = "const { Worker } = require('worker_threads');\
        const works = 'const cell = new Int32Array(new SharedArrayBuffer(4));\
            for (;;) { Atomics.wait(cell, 0, 0, 50); for (let i = 0; i < 1e4; i++); }';\
        new Worker(works, { eval: true }).on('online', () => console.log('ready'));\
        process.stdin.resume();";
    let server = Server::node(script);
    for _ in 0..8 {
        let before = server.survey(None).activity;
        thread::sleep(Duration::from_millis(200));
        assert_ne!(server.survey(None).activity, before);
    }
}

/// A job may do all of its work in children that live shortly.
#[test]
fn the_work_of_children_that_have_ended_is_that_of_the_server() {
    let spin =
        "perl -e 'do { 1 for 1 .. 10000 } while (times)[0] < 0.3'; echo ready; exec sleep 600";
    let server = Server::start(&["sh", "-c", spin]).once_ready();
    let activity = server.survey(None).activity.unwrap();
    assert!(activity.cpu >= 30, "{activity:?}");
}
