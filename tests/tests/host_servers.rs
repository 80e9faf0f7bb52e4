//! Single servers, as `status --servers` lists them: whether each is used, and whether its client can reach it.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use mcp_guard_core::{
    audit::Record,
    evidence::Contact,
    id::Pid,
    incident::Detector,
    status::{ClientStatus, ServerStatus},
};
use mcp_guard_tests::{agent::Agent, cgroup::FixtureCgroup};
use rustix::process::{Pid as RawPid, Signal, kill_process};

/// Moves its stdio a second after its start, as the Python SDK of MCP does.
const MOVES: &str = r#"
use POSIX qw(dup2);
select(undef, undef, undef, 1);
dup2(0, 6); dup2(1, 7);
open(my $null, "+<", "/dev/null");
dup2(fileno($null), 0); dup2(fileno($null), 1);
POSIX::write(7, "moved\n", 6);
open(my $in, "<&=", 6);
while (sysread($in, my $bytes, 100)) { POSIX::write(7, $bytes, length $bytes) }
"#;

/// Starts a server with sockets as its stdio, as node does, and says its pid.
const GATEWAY: &str = r#"
use Socket;
socketpair(my $client, my $server, AF_UNIX, SOCK_STREAM, PF_UNSPEC) or die;
my $pid = fork // die;
if (!$pid) {
    open(STDIN, "<&", $server); open(STDOUT, ">&", $server);
    exec "sleep", "601";
}
close $server;
syswrite STDOUT, "$pid\n";
sleep 1 while 1;
"#;

/// Starts a server with pipes, and forks a worker that has the other ends too and belongs to a login session. Says the
/// pid of each.
const FORKING_GATEWAY: &str = r#"
$| = 1;
pipe(my $in, my $to) or die;
pipe(my $from, my $out) or die;
my $server = fork // die;
if (!$server) {
    open(STDIN, "<&", $in); open(STDOUT, ">&", $out);
    close $_ for $to, $from;
    exec "sleep", "601";
}
my $worker = fork // die;
if (!$worker) {
    open(my $login, ">", "/proc/self/loginuid") or die;
    syswrite $login, "0";
    sleep 1 while 1;
}
print "$server\n$worker\n";
sleep 1 while 1;
"#;

/// Answers each line, and does something of its own every half hour.
const HAS_TIMER: &str = r#"
while (1) {
    vec(my $read = "", 0, 1) = 1;
    select($read, undef, undef, 1800) or next;
    sysread(STDIN, my $bytes, 100) or exit;
    syswrite(STDOUT, $bytes);
}
"#;

/// A program with pipes. Killed and reaped on drop.
struct Server {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(cgroup: &FixtureCgroup, words: &[&str]) -> Self {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = cgroup.spawn(command).unwrap();
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        Self { child, stdin, stdout }
    }

    /// Sends a line, and waits for the same line.
    fn ask(&mut self) {
        self.stdin.as_mut().unwrap().write_all(b"hello\n").unwrap();
        let mut answer = [0; 6];
        self.stdout.as_mut().unwrap().read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"hello\n");
    }

    fn pid(&self) -> Pid {
        Pid(self.child.id())
    }
}

struct Scene {
    cgroup: FixtureCgroup,
    agent: Agent,
}

impl Scene {
    fn new(what: &str) -> Self {
        let cgroup = FixtureCgroup::new(what).unwrap();
        let agent = Agent::start(&policy(&cgroup)).unwrap();
        Self { cgroup, agent }
    }

    fn servers(&self) -> Vec<ServerStatus> {
        let listed = self.agent.servers(&[]).unwrap();
        listed.guards.into_iter().flat_map(|guard| guard.servers).collect()
    }

    /// Waits until the server of a process is listed like this.
    fn await_server(&mut self, pid: Pid, what: &str, mut is_it: impl FnMut(&ServerStatus) -> bool) {
        let cgroup = &self.cgroup;
        let mut last = None;
        let reached = self.agent.wait_until(what, |agent| {
            let listed = agent.servers(&[cgroup.path()])?.guards.remove(0);
            last = listed.servers.into_iter().find(|server| server.pid == pid);
            Ok(last.as_ref().is_some_and(&mut is_it))
        });
        assert!(reached.is_ok(), "{what}: {last:?} {reached:?}");
    }

    fn await_idle(&mut self, pid: Pid) {
        self.await_server(pid, "it is idle", |server| server.idle_seconds >= Some(2));
    }

    /// Waits until its idle time stands still while it gets older.
    fn await_no_more_idle(&mut self, pid: Pid) {
        let mut stands = None;
        self.await_server(pid, "its idle time stands still", |server| {
            let ServerStatus { idle_seconds, age_seconds, .. } = server;
            match stands {
                Some((idle, since)) if idle == *idle_seconds => *age_seconds >= since + 5,
                Some(_) | None => {
                    stands = Some((*idle_seconds, *age_seconds));
                    false
                }
            }
        });
    }

    fn await_contact(&mut self, pid: Pid, contact: Contact) {
        self.await_server(pid, &contact.to_string(), |server| server.contact == contact);
    }
}

fn policy(cgroup: &FixtureCgroup) -> String {
    format!("[evidence]\nevery = \"1s\"\n[[guard]]\ncgroup = \"{}\"\n", cgroup.path())
}

fn script(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn each_server_is_listed_with_whether_its_client_can_reach_it() {
    let mut scene = Scene::new("contact");
    let start = |words: &[&str]| Server::start(&scene.cgroup, words);
    // Copies are looked at however young they are.
    let [mut first, mut second] = [start(&["cat"]), start(&["cat"])];
    let [mut third, fourth] = [start(&["sleep", "600"]), start(&["sleep", "600"])];
    let mut null = Command::new("sleep");
    null.arg("600").stdin(Stdio::null());
    let child = scene.cgroup.spawn(null).unwrap();
    let null = Server { child, stdin: None, stdout: None };
    for (server, contact) in [
        (&first, Contact::Connected),
        (&second, Contact::Connected),
        (&third, Contact::Connected),
        (&fourth, Contact::Connected),
        (&null, Contact::NoStdio),
    ] {
        scene.await_contact(server.pid(), contact);
    }
    first.ask();
    second.ask();
    drop(third.stdin.take());
    scene.await_contact(third.pid(), Contact::Closing);
    drop(third.stdout.take());
    scene.await_contact(third.pid(), Contact::Disconnected);
    scene.await_contact(fourth.pid(), Contact::Connected);
    // The looks keep no pipe open: an end of file still ends a server.
    drop(first.stdin.take());
    assert!(first.child.wait().unwrap().success());
}

#[test]
fn a_server_that_waits_for_its_client_alone_is_quiescent() {
    let folder = tempfile::tempdir().unwrap();
    let mut scene = Scene::new("quiescent");
    let timer = script(folder.path(), "timer.pl", HAS_TIMER);
    let start = |words: &[&str]| Server::start(&scene.cgroup, words);
    let [mut asked, quiet] = [start(&["cat"]), start(&["cat"])];
    let [timed, _other] = [start(&["perl", &timer]), start(&["perl", &timer])];
    let (asked_pid, cgroup) = (asked.pid(), scene.cgroup.path().to_owned());
    scene.await_server(quiet.pid(), "quiescent", |one| one.quiescent == Some(true));
    scene.await_server(asked_pid, "quiescent too", |one| one.quiescent == Some(true));
    scene.await_server(timed.pid(), "its timer is seen", |one| {
        one.quiescent == Some(false)
            && one.at_work.as_deref().is_some_and(|why| why.contains("waits in select"))
    });
    let text = scene.agent.cli(&["status", "--servers"]).unwrap();
    let text = String::from_utf8(text.stdout).unwrap();
    for part in ["connected, quiescent", "connected, not quiescent", "waits in select"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // One that is asked is not known to be quiescent, however shortly it works.
    scene
        .agent
        .wait_until("it is used", |agent| {
            asked.ask();
            let listed = agent.servers(&[&cgroup])?.guards.remove(0).servers;
            let one = listed.into_iter().find(|server| server.pid == asked_pid);
            Ok(one.is_some_and(|one| one.quiescent.is_none() && one.contact == Contact::Connected))
        })
        .unwrap();
    scene.await_server(asked_pid, "quiescent again", |one| one.quiescent == Some(true));
}

/// A server without copies is looked at when it is half a minute old, long after it has moved its stdio.
#[test]
fn stdio_that_is_moved_was_read_at_the_exec() {
    let folder = tempfile::tempdir().unwrap();
    let mut scene = Scene::new("moves");
    let moves = script(folder.path(), "moves.pl", MOVES);
    let mut server = Server::start(&scene.cgroup, &["perl", &moves]);
    let mut said = [0; 6];
    server.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    let fd = fs::read_link(format!("/proc/{}/fd/0", server.pid())).unwrap();
    assert_eq!(fd.to_str(), Some("/dev/null"));
    scene.await_contact(server.pid(), Contact::Connected);
    server.ask();
    drop(server.stdin.take());
    assert!(server.child.wait().unwrap().success());
}

#[test]
fn a_server_is_idle_until_its_client_asks_it() {
    let mut scene = Scene::new("idle");
    let start = || Server::start(&scene.cgroup, &["cat"]);
    let (mut asked, left_alone) = (start(), start());
    let is_idle = |server: &ServerStatus| server.idle_seconds.is_some_and(|idle| idle >= 4);
    // It is asked before each look at the list.
    let cgroup = scene.cgroup.path().to_owned();
    let (one, other) = (asked.pid(), left_alone.pid());
    scene
        .agent
        .wait_until("the other is idle", |agent| {
            asked.ask();
            let listed = agent.servers(&[&cgroup])?.guards.remove(0).servers;
            let of = |pid: Pid| listed.iter().find(|server| server.pid == pid);
            assert!(!of(one).is_some_and(is_idle), "{listed:?}");
            Ok(of(other).is_some_and(is_idle))
        })
        .unwrap();
    scene.await_server(one, "idle too", is_idle);
    assert!(scene.servers().iter().all(|server| server.memory_bytes.is_some()));
}

/// Frozen with the cgroup above it, as a slice is by hand; and stopped by a signal.
#[test]
fn a_server_that_cannot_run_is_not_idle() {
    let outer = FixtureCgroup::new("stopped").unwrap();
    let cgroup = outer.child("inner").unwrap();
    let agent = Agent::start(&policy(&cgroup)).unwrap();
    let mut scene = Scene { cgroup, agent };
    let start = || Server::start(&scene.cgroup, &["cat"]);
    let (mut first, second) = (start(), start());
    scene.await_idle(first.pid());
    fs::write(outer.unified_dir().join("cgroup.freeze"), "1").unwrap();
    scene.await_no_more_idle(first.pid());
    fs::write(outer.unified_dir().join("cgroup.freeze"), "0").unwrap();
    scene.await_idle(first.pid());
    scene.await_idle(second.pid());
    kill_process(pid_of(&second), Signal::STOP).unwrap();
    scene.await_no_more_idle(second.pid());
    kill_process(pid_of(&second), Signal::CONT).unwrap();
    scene.await_idle(second.pid());
    first.ask();
}

fn pid_of(server: &Server) -> RawPid {
    RawPid::from_child(&server.child)
}

#[test]
fn a_server_outlives_its_client() {
    let folder = tempfile::tempdir().unwrap();
    let mut scene = Scene::new("orphan");
    let gateway = script(folder.path(), "gateway.pl", GATEWAY);
    let mut gateways = [(); 2].map(|()| Server::start(&scene.cgroup, &["perl", &gateway]));
    let servers = gateways.each_mut().map(|gateway| {
        let mut said = String::new();
        BufReader::new(gateway.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
        Pid(said.trim().parse().unwrap())
    });
    let [mut first, second] = gateways;
    for (server, gateway) in servers.iter().zip([&first, &second]) {
        let name = gateway_name(folder.path());
        scene.await_server(*server, "its client is known", |server| {
            server.contact == Contact::Connected
                && server.orphaned == Some(false)
                && is_held_by(server, gateway.pid(), Some(&name))
        });
    }
    first.child.kill().unwrap();
    first.child.wait().unwrap();
    scene.await_server(servers[0], "it is left", |server| {
        server.contact == Contact::Disconnected
            && server.orphaned == Some(true)
            && server.client.is_none()
    });
    scene.await_server(servers[1], "the other is not", |server| server.orphaned == Some(false));
    let text = scene.agent.cli(&["status", "--servers", "--server", "sleep"]).unwrap();
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("disconnected, orphaned") && text.contains("  gone\n"), "{text}");
    assert!(text.contains(&format!("pid {}\n", second.pid())), "{text}");
    let misspelt = scene.agent.cli(&["status", "--servers", "--server", "slep"]).unwrap();
    assert_eq!(misspelt.status.code(), Some(2), "{misspelt:?}");
    let said = String::from_utf8(misspelt.stderr).unwrap();
    assert!(said.contains("no live server is called \"slep\""), "{said}");
}

/// Whether this process is known to be at the other end.
fn is_held_by(server: &ServerStatus, pid: Pid, name: Option<&str>) -> bool {
    let is_it = |client: &ClientStatus| {
        client.holds_stdio
            && client.pid == pid
            && (name.is_none() || client.name.as_deref() == name)
    };
    server.client.as_ref().is_some_and(is_it)
}

/// Starts a program in the cgroup, with this stdin and stdout.
fn start_with(cgroup: &FixtureCgroup, words: &[&str], stdin: Stdio, stdout: Stdio) -> Server {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).stdin(stdin).stdout(stdout);
    Server { child: cgroup.spawn(command).unwrap(), stdin: None, stdout: None }
}

/// Starts a program outside of all guards.
fn outside(words: &[&str], stdin: Stdio, stdout: Stdio) -> Server {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).stdin(stdin).stdout(stdout);
    let mut child = command.spawn().unwrap();
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    Server { child, stdin, stdout }
}

/// The client has not started the server, and is not in its cgroup.
#[test]
fn the_client_is_the_process_at_the_other_end() {
    let mut scene = Scene::new("client");
    let this = Pid(std::process::id());
    // By pipes, and by a socket, in the network namespace of the host and in another one.
    let piped = Server::start(&scene.cgroup, &["cat"]);
    let alone = ["unshare", "-n", "cat"];
    let mut clients = Vec::new();
    let mut with_socket = |words: &[&str]| {
        let (client, server) = UnixStream::pair().unwrap();
        clients.push(client);
        let end = || Stdio::from(OwnedFd::from(server.try_clone().unwrap()));
        start_with(&scene.cgroup, words, end(), end())
    };
    let [socket, other] = [with_socket(&alone[2..]), with_socket(&alone)];
    for server in [&piped, &socket, &other] {
        scene.await_server(server.pid(), "this test is its client", |server| {
            server.contact == Contact::Connected && is_held_by(server, this, None)
        });
    }
    // Each end of this server is with another process. The one that writes is the client.
    let mut reads = outside(&["sh", "-c", "read a; exec sleep 600"], Stdio::piped(), Stdio::null());
    let mut writes = outside(&["sleep", "602"], Stdio::null(), Stdio::piped());
    let stdin = writes.stdout.take().unwrap().into();
    let stdout = reads.stdin.take().unwrap().into();
    let between = start_with(&scene.cgroup, &["sleep", "603"], stdin, stdout);
    scene.await_server(between.pid(), "the one that writes", |server| {
        is_held_by(server, writes.pid(), Some("sleep"))
    });
    drop(writes);
    scene.await_server(between.pid(), "the one that reads", |server| {
        server.contact == Contact::Closing && is_held_by(server, reads.pid(), Some("sh"))
    });
}

/// The client started the server, and its command line does not say what it runs.
#[test]
fn a_client_without_an_identity_has_the_name_of_its_program() {
    let mut scene = Scene::new("nameless");
    let mut gateway = Server::start(&scene.cgroup, &["perl", "-e", GATEWAY]);
    let mut said = BufReader::new(gateway.stdout.take().unwrap()).lines();
    let server = Pid(said.next().unwrap().unwrap().parse().unwrap());
    scene.await_server(server, "the client has a name", |server| {
        is_held_by(server, gateway.pid(), Some("perl"))
    });
}

/// The client is killed, and has left a worker, which it has forked and which belongs to a session.
#[test]
fn a_process_that_a_client_has_left_is_told_as_the_holder() {
    let folder = tempfile::tempdir().unwrap();
    let mut scene = Scene::new("holder");
    let path = script(folder.path(), "gateway.pl", FORKING_GATEWAY);
    let mut gateway = Server::start(&scene.cgroup, &["perl", &path]);
    let mut said = BufReader::new(gateway.stdout.take().unwrap()).lines();
    let mut pid = || Pid(said.next().unwrap().unwrap().parse().unwrap());
    let (server, worker) = (pid(), pid());
    scene.await_server(server, "the client is the gateway", |server| {
        is_held_by(server, gateway.pid(), Some(&path))
    });
    gateway.child.kill().unwrap();
    gateway.child.wait().unwrap();
    let mut session = None;
    scene.await_server(server, "the worker holds it", |server| {
        session = server.client.as_ref().and_then(|client| client.session.clone());
        server.contact == Contact::Connected
            && server.orphaned == Some(true)
            && is_held_by(server, worker, Some(&path))
    });
    let number = fs::read_to_string(format!("/proc/{worker}/sessionid")).unwrap();
    assert_eq!(session, Some(number.clone()));
    let text = scene.agent.cli(&["status", "--servers", "--server", "sleep"]).unwrap();
    let text = String::from_utf8(text.stdout).unwrap();
    let held = format!(
        "connected, orphaned                 held by {path}, pid {worker}, session {number}\n"
    );
    assert!(text.contains(&held), "{text}");
    kill_process(RawPid::from_raw(i32::try_from(worker.0).unwrap()).unwrap(), Signal::KILL)
        .unwrap();
    scene.await_server(server, "nobody holds it", |server| {
        server.contact == Contact::Disconnected && server.client.is_none()
    });
}

fn gateway_name(folder: &Path) -> String {
    folder.join("gateway.pl").to_str().unwrap().to_owned()
}

/// Does not reap its children until it is told to.
const REAPS_LATE: &str = r#"
for (1 .. 25) { fork // die or exit }
$| = 1;
<STDIN>;
1 while wait > 0;
print "reaped\n";
<STDIN>;
"#;

#[test]
fn zombies_that_stay_are_told_with_their_parent() {
    let mut scene = Scene::new("zombies");
    let mut parent = Server::start(&scene.cgroup, &["perl", "-e", REAPS_LATE]);
    let mut said = BufReader::new(parent.stdout.take().unwrap()).lines();
    let pid = parent.pid();
    scene
        .agent
        .wait_until("they are told", |agent| {
            let is_it = |record: &Record| {
                matches!(record, Record::Warning { cause, .. } if cause.detector == Some(Detector::Zombies))
            };
            let Some(Record::Warning { cause, .. }) = agent.audit()?.into_iter().find(is_it) else {
                return Ok(false);
            };
            // It may still have made some.
            assert!((20..=25).contains(&cause.numbers["zombies"]), "{cause:?}");
            let advice = format!("process {pid} (perl) does not reap its children");
            assert_eq!(cause.advice, Some(advice));
            Ok(true)
        })
        .unwrap();
    parent.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    assert_eq!(said.find(|line| line.as_ref().unwrap() == "reaped").unwrap().unwrap(), "reaped");
}
