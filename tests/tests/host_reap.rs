//! Single servers are ended if nobody can reach them, and nothing else is: real processes, each of another kind.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]

use std::{
    collections::BTreeMap,
    fs,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use mcp_guard_core::{
    audit::Record,
    id::{Incident, Pid},
    incident::{Detector, Outcome},
    policy::Mode,
    server_order::{OrderedServer, ServerResult},
    status::ServerStatus,
};
use mcp_guard_tests::{agent::Agent, cgroup::FixtureCgroup, wait};

/// Two looks, the two minutes that a policy may shorten to one, and the waits of an order.
const PATIENCE: Duration = Duration::from_secs(180);

/// The servers, by the names of their scripts. Each writes a byte once it is as it should be.
const SCRIPTS: [(&str, &str); 9] = [
    ("named-reader", "syswrite STDOUT, 'x'; sysread STDIN, $b, 1; sleep 600 while 1"),
    ("named-deaf", "syswrite STDOUT, 'x'; sleep 600 while 1"),
    ("named-timer", "syswrite STDOUT, 'x'; select(undef, undef, undef, 0.5) while 1"),
    ("named-stubborn", "$SIG{TERM} = 'IGNORE'; syswrite STDOUT, 'x'; sleep 600 while 1"),
    // Waits for one reply, and would do its work with it.
    (
        "named-waiting",
        "use IO::Socket; $s = IO::Socket::INET->new(\"127.0.0.1:$ARGV[0]\"); syswrite STDOUT, 'x'; \
         sysread $s, $b, 1; sleep 600 while 1",
    ),
    (
        "named-writing",
        "syswrite STDOUT, 'x'; while (1) { open F, '>', $ARGV[0]; print F 'x'; close F; sleep 1 }",
    ),
    (
        "named-parent",
        "syswrite STDOUT, 'x' if !($c = fork); exec 'sleep', 600 if !$c; sleep 600 while 1",
    ),
    (
        "named-session",
        "use POSIX; if (!fork) { POSIX::setsid(); syswrite STDOUT, 'x'; sleep 600 while 1 } sleep 600 while 1",
    ),
    ("other", "syswrite STDOUT, 'x'; sleep 600 while 1"),
];

/// How a client leaves its server.
#[derive(Clone, Copy, PartialEq)]
enum Client {
    Stays,
    /// Has sent all, and waits for the result.
    Waits,
    Gone,
}

struct Server {
    child: Child,
    is_reaped: bool,
}

impl Server {
    fn start(
        cgroup: &FixtureCgroup,
        folder: &Path,
        name: &str,
        argument: &str,
        client: Client,
    ) -> Self {
        let mut command = Command::new("perl");
        command.arg(folder.join(format!("{name}.pl"))).arg(argument);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = cgroup.spawn(command).unwrap();
        let mut byte = [0];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut byte).unwrap();
        if client != Client::Stays {
            drop(child.stdin.take());
        }
        if client == Client::Gone {
            drop(child.stdout.take());
        }
        Self { child, is_reaped: false }
    }

    fn lives(&mut self) -> bool {
        self.is_reaped |= self.child.try_wait().unwrap().is_some();
        !self.is_reaped
    }

    fn pid(&self) -> Pid {
        Pid(self.child.id())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.is_reaped {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn scripts() -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("mcp-guard-test-").tempdir().unwrap();
    for (name, text) in SCRIPTS {
        fs::write(folder.path().join(format!("{name}.pl")), text).unwrap();
    }
    folder
}

/// `rules`: guards, and their modes.
fn policy(servers: &str, rules: &[(&FixtureCgroup, &str)]) -> String {
    let rule = |(cgroup, mode): &(&FixtureCgroup, &str)| {
        let path = cgroup.path();
        format!("[[guard]]\ncgroup = \"{path}\"\nmode = \"{mode}\"\nhighest = \"record\"\n")
    };
    let rules: String = rules.iter().map(rule).collect();
    format!(
        "[evidence]\nevery = \"1s\"\n[respond]\nservers = \"{servers}\"\n[detect.disconnected]\n\
         act_age = \"30s\"\nservers = [\"*/named-*\"]\n{rules}"
    )
}

/// A line of the log about an order.
struct Reap {
    incident: Incident,
    mode: Mode,
    detector: Option<Detector>,
    outcome: Option<Outcome>,
    servers: Vec<OrderedServer>,
}

fn reaps(agent: &Agent) -> Vec<Reap> {
    let records = agent.audit().unwrap().into_iter();
    let reap = |record| {
        let Record::Reap { incident, mode, cause, outcome, servers, .. } = record else {
            return None;
        };
        Some(Reap { incident, mode, detector: cause.detector, outcome, servers })
    };
    records.filter_map(reap).collect()
}

/// Waits until the log says what came of each of these servers, and returns it.
fn await_results(agent: &mut Agent, pids: &[Pid]) -> BTreeMap<Pid, OrderedServer> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let ended = reaps(agent).into_iter().filter(|reap| reap.outcome.is_some());
        let all: BTreeMap<Pid, OrderedServer> =
            ended.flat_map(|reap| reap.servers).map(|one| (one.pid, one)).collect();
        if pids.iter().all(|pid| all.contains_key(pid)) {
            return all;
        }
        assert!(Instant::now() < deadline, "{:?}\n{}", agent.audit(), agent.log());
        // Its status fails once the agent has ended.
        agent.status().unwrap();
        thread::sleep(Duration::from_millis(200));
    }
}

/// Each order is announced before it is carried out, and its outcome follows.
fn assert_announced(agent: &Agent) {
    let mut announced = BTreeMap::new();
    for Reap { incident, mode, detector, outcome, .. } in reaps(agent) {
        assert_eq!(detector, Some(Detector::Disconnected));
        match outcome {
            None => assert!(announced.insert(incident, mode).is_none()),
            Some(outcome) => {
                let mode = announced.remove(&incident);
                assert_eq!(outcome == Outcome::WouldDo, mode == Some(Mode::Observe), "{outcome:?}");
            }
        }
    }
    assert!(announced.is_empty(), "an order without an outcome");
}

#[test]
fn what_nobody_can_reach_is_ended_and_nothing_that_may_work_is() {
    let [cgroup, observed] =
        ["reap", "reap-observed"].map(|what| FixtureCgroup::new(what).unwrap());
    let folder = scripts();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let file = folder.path().join("result").display().to_string();
    let rules = [(&cgroup, "enforce"), (&observed, "observe")];
    let mut agent = Agent::start(&policy("reap", &rules)).unwrap();
    let mut spared_by_mode =
        Server::start(&observed, folder.path(), "named-deaf", "", Client::Gone);
    let start = |name, argument: &str, client| {
        Server::start(&cgroup, folder.path(), name, argument, client)
    };
    let mut ended = [
        (start("named-deaf", "", Client::Gone), ServerResult::Ended),
        (start("named-timer", "", Client::Gone), ServerResult::Ended),
        (start("named-stubborn", "", Client::Gone), ServerResult::Killed),
    ];
    let mut spared = [(start("named-session", "", Client::Gone), "has a session of its own")];
    let mut left = [
        start("named-deaf", "", Client::Stays),
        start("named-deaf", "", Client::Waits),
        start("named-waiting", &port, Client::Gone),
        start("named-writing", &file, Client::Gone),
        start("named-parent", "", Client::Gone),
        start("other", "", Client::Gone),
    ];
    let servers = ended.iter().map(|(one, _)| one).chain(spared.iter().map(|(one, _)| one));
    let pids: Vec<Pid> = servers.chain([&spared_by_mode]).map(Server::pid).collect();
    let all = await_results(&mut agent, &pids);
    let would = &all[&spared_by_mode.pid()];
    assert!(would.end == Some(ServerResult::WouldEnd) && spared_by_mode.lives(), "{would:?}");
    for (server, end) in &mut ended {
        let one = &all[&server.pid()];
        assert_eq!(one.end, Some(*end), "{one:?}");
        assert!(one.memory > Some(100_000) && !server.lives(), "{one:?}");
    }
    for (server, why) in &mut spared {
        let one = &all[&server.pid()];
        assert_eq!(one.end, Some(ServerResult::Spared), "{one:?}");
        assert!(one.detail.as_ref().unwrap().contains(*why) && server.lives(), "{one:?}");
    }
    for server in &mut left {
        assert!(!all.contains_key(&server.pid()) && server.lives(), "{all:?}");
    }
    assert_announced(&agent);
}

#[test]
fn an_operator_ends_servers_by_hand() {
    let cgroup = FixtureCgroup::new("reap-by-hand").unwrap();
    let folder = scripts();
    let agent = Agent::start(&policy("record", &[(&cgroup, "observe")])).unwrap();
    let start = |name, client| Server::start(&cgroup, folder.path(), name, "", client);
    let mut gone = start("other", Client::Gone);
    let mut idle = [(); 3].map(|()| start("named-reader", Client::Stays));
    let target = format!("cgroup:{}", cgroup.path());
    let identity = folder.path().join("named-reader.pl").display().to_string();
    let pids: Vec<Pid> = idle.iter().map(Server::pid).collect();
    let is_listed = |is_it: &dyn Fn(&ServerStatus) -> bool| {
        wait::until(PATIENCE, || {
            let listed = agent.servers(&[cgroup.path()])?.guards.remove(0).servers;
            Ok(listed.iter().filter(|one| is_it(one)).count() >= 1)
        })
        .unwrap()
    };
    for pid in pids {
        assert!(is_listed(&|one| one.pid == pid && one.quiescent == Some(true)));
    }
    assert!(is_listed(&|one| one.pid == gone.pid() && one.contact_seconds >= Some(60)));
    let run = |words: &[&str]| {
        let mut all = vec!["reap", &target];
        all.extend(words);
        let output = agent.cli(&all).unwrap();
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        (output.status.code(), text)
    };
    let (code, text) = run(&["--dry-run"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("1 server would be ended") && text.contains("other.pl, pid"), "{text}");
    assert!(gone.lives());
    let (code, text) = run(&[]);
    assert_eq!(code, Some(64), "no terminal: {text}");
    assert!(text.contains("--yes") && gone.lives(), "{text}");
    let (code, text) = run(&["--yes"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("1 server ended: 1 process,") && !gone.lives(), "{text}");
    let (code, text) = run(&["--yes"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("no server to end"), "{text}");

    let (code, text) = run(&["--idle", "1s", "--yes"]);
    assert_eq!(code, Some(64), "which servers? {text}");
    let (code, text) = run(&["--server", &identity, "--idle", "1s", "--keep", "2", "--yes"]);
    assert_eq!(code, Some(0), "{text}");
    let live: Vec<bool> = idle.iter_mut().map(Server::lives).collect();
    assert_eq!(live, [false, true, true], "the oldest goes: {text}");

    let other = FixtureCgroup::new("reap-unknown").unwrap();
    let output = agent.cli(&["reap", &format!("cgroup:{}", other.path()), "--yes"]).unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("no rule of the policy names this container"), "{text}");
}
