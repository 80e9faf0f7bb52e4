//! Real MCP servers and a real gateway, compared with `status --servers`. It installs packages from npm and PyPI, so
//! it runs only if it is asked for: `cargo test -p mcp-guard-tests --test real_servers -- --ignored`.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]
#![allow(clippy::print_stdout, reason = "the lists of servers are a result")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use mcp_guard::host::process::OpenProcess;
use mcp_guard_core::{
    audit::Record,
    evidence::Contact,
    id::Pid,
    policy::Policy,
    replay::replay,
    status::ServerStatus,
    trace::{TraceEvent, parse},
};
use mcp_guard_tests::{
    agent::Agent,
    cgroup::FixtureCgroup,
    recording::{Decided, Recording, keep},
    wait,
};
use rustix::process::{Signal, kill_process};

/// A Python server needs a second to load, and the first looks must see it settle.
const PATIENCE: Duration = Duration::from_secs(180);
/// The interval at which a client writes to a server that is in use.
const ASKED_EVERY: Duration = Duration::from_secs(20);
const USED_FOR: Duration = Duration::from_secs(100);

const INITIALIZE: &str = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"test","version":"1"}}}"#;
const INITIALIZED: &str = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
const PING: &str = r#"{"jsonrpc":"2.0","id":2,"method":"ping"}"#;

/// The packages, installed once below `target`.
fn folder() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/real-servers");
    fs::create_dir_all(&folder).unwrap();
    let folder = folder.canonicalize().unwrap();
    let run = |words: &[&str]| run_in(&folder, words);
    if !folder.join("complete").exists() {
        fs::write(folder.join("package.json"), "{}").unwrap();
        run(&[
            "npm",
            "install",
            "--no-audit",
            "--no-fund",
            "supergateway@3.4.3",
            "@modelcontextprotocol/server-everything",
            "@modelcontextprotocol/server-filesystem",
            "@modelcontextprotocol/server-memory",
            "@modelcontextprotocol/server-sequential-thinking",
            "@notionhq/notion-mcp-server",
            "@playwright/mcp",
            "@upstash/context7-mcp",
            "deno",
            "figma-mcp",
            "kubernetes-mcp-server",
            "n8n-mcp",
        ]);
        run(&["python3", "-m", "venv", "venv"]);
        run(&[
            "venv/bin/pip",
            "install",
            "--quiet",
            "uv",
            "mcp-server-time",
            "mcp-server-fetch",
            "mcp-server-git",
        ]);
        fs::write(folder.join("complete"), "").unwrap();
    }
    folder
}

fn run_in(folder: &Path, words: &[&str]) {
    let mut command = Command::new(words[0]);
    let status = command.args(&words[1..]).current_dir(folder).status().unwrap();
    assert!(status.success(), "{words:?}");
}

/// Gateways and one server, installed once. Short paths, because they are in the recorded traces.
fn gateways() -> PathBuf {
    let folder = PathBuf::from("/tmp/mcp-guard-gateways");
    fs::create_dir_all(&folder).unwrap();
    if !folder.join("complete").exists() {
        fs::write(folder.join("package.json"), "{}").unwrap();
        run_in(
            &folder,
            &[
                "npm",
                "install",
                "--no-audit",
                "--no-fund",
                "--ignore-scripts",
                "supergateway@3.4.3",
                "supergateway4@npm:supergateway@4.0.0",
                "@modelcontextprotocol/server-everything",
            ],
        );
        fs::write(folder.join("complete"), "").unwrap();
    }
    folder
}

/// Adds gateways in Python to the folder of the others.
fn python_gateways() -> PathBuf {
    let folder = gateways();
    if !folder.join("venv/complete").exists() {
        run_in(&folder, &["python3", "-m", "venv", "venv"]);
        run_in(
            &folder,
            &[
                "venv/bin/pip",
                "install",
                "--quiet",
                "mcp-contextforge-gateway==1.0.7.post20260921",
                "mcp-streamablehttp-proxy==0.2.0",
            ],
        );
        // ContextForge does not start without secrets, although it uses none here.
        let secrets = ["JWT_SECRET_KEY", "AUTH_ENCRYPTION_SECRET"];
        let secrets = secrets.map(|name| format!("{name}=Not-a-secret-but-long-enough-{name}\n"));
        fs::write(folder.join(".env"), secrets.concat()).unwrap();
        fs::write(folder.join("venv/complete"), "").unwrap();
    }
    folder
}

/// How each kind of server is started, and the identity that it has.
const SERVERS: [(&str, &str); 4] = [
    ("npx -y @modelcontextprotocol/server-everything", "@modelcontextprotocol/server-everything"),
    (
        "node node_modules/@modelcontextprotocol/server-filesystem/dist/index.js /tmp",
        "@modelcontextprotocol/server-filesystem",
    ),
    ("venv/bin/python -m mcp_server_time", "mcp_server_time"),
    (
        "venv/bin/uv run --offline --no-project --python venv/bin/python -m mcp_server_time",
        "mcp_server_time",
    ),
];

/// A server with pipes, and this test as its client. Killed and reaped on drop, with its descendants.
struct Piped {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Drop for Piped {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Piped {
    fn start(cgroup: &FixtureCgroup, folder: &Path, line: &str) -> Self {
        let mut words = line.split(' ');
        let mut command = Command::new(words.next().unwrap());
        command.args(words).current_dir(folder);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = cgroup.spawn(command).unwrap();
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().unwrap());
        let mut server = Self { child, stdin, stdout: BufReader::new(stdout) };
        server.ask(INITIALIZE);
        server.write(INITIALIZED);
        server
    }

    fn write(&mut self, line: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Sends a request, and reads until its answer.
    fn ask(&mut self, request: &str) {
        self.write(request);
        let mut answer = String::new();
        while !answer.contains("\"result\"") {
            answer.clear();
            assert!(self.stdout.read_line(&mut answer).unwrap() > 0, "it ended: {request}");
        }
    }

    fn pid(&self) -> Pid {
        Pid(self.child.id())
    }
}

/// A real gateway with one server. Killed and reaped on drop.
struct Gateway(Child);

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Gateway {
    fn start(cgroup: &FixtureCgroup, folder: &Path, line: &str, port: u16) -> Self {
        let mut command = Command::new("node");
        command.args(["node_modules/supergateway/dist/index.js", "--stdio", line]);
        command.args(["--port", &port.to_string(), "--logLevel", "none"]).current_dir(folder);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(cgroup.spawn(command).unwrap())
    }

    fn pid(&self) -> Pid {
        Pid(self.0.id())
    }
}

struct Scene {
    folder: PathBuf,
    cgroup: FixtureCgroup,
    agent: Agent,
}

impl Scene {
    fn new(what: &str) -> Self {
        let cgroup = FixtureCgroup::new(what).unwrap();
        let policy =
            format!("[evidence]\nevery = \"5s\"\n[[guard]]\ncgroup = \"{}\"\n", cgroup.path());
        let agent = Agent::start(&policy).unwrap();
        Self { folder: folder(), cgroup, agent }
    }

    fn servers(&self) -> Vec<ServerStatus> {
        let listed = self.agent.servers(&[]).unwrap();
        listed.guards.into_iter().flat_map(|guard| guard.servers).collect()
    }

    /// Waits until a list has this.
    fn await_list(&self, what: &str, mut is_it: impl FnMut(&[ServerStatus]) -> bool) {
        let mut last = Vec::new();
        let reached = wait::until(PATIENCE, || {
            last = self.servers();
            Ok(is_it(&last))
        });
        assert!(reached.unwrap(), "{what}: {last:#?}");
    }

    fn show(&self, what: &str) {
        let shown = self.agent.cli(&["status", "--servers"]).unwrap();
        println!("{what}:\n{}", String::from_utf8_lossy(&shown.stdout));
    }
}

/// The state of a server a minute after its last request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum AtRest {
    Quiescent,
    /// Part of the reason why not.
    AtWork(&'static str),
    /// Its timers run so often that it is never idle.
    NeverIdle,
}

/// Real servers of several runtimes.
const KINDS: [(&str, AtRest); 17] = [
    ("node_modules/.bin/mcp-server-everything", AtRest::Quiescent),
    ("node_modules/.bin/mcp-server-filesystem /tmp", AtRest::Quiescent),
    ("node_modules/.bin/mcp-server-memory", AtRest::Quiescent),
    ("node_modules/.bin/mcp-server-sequential-thinking", AtRest::Quiescent),
    ("node_modules/.bin/figma-mcp", AtRest::Quiescent),
    ("node_modules/.bin/playwright-mcp", AtRest::Quiescent),
    ("node_modules/.bin/context7-mcp", AtRest::Quiescent),
    ("node_modules/.bin/notion-mcp-server", AtRest::Quiescent),
    ("node_modules/.bin/n8n-mcp", AtRest::NeverIdle),
    ("venv/bin/mcp-server-time", AtRest::Quiescent),
    ("venv/bin/mcp-server-fetch", AtRest::Quiescent),
    ("venv/bin/mcp-server-git", AtRest::Quiescent),
    ("venv/bin/uvx mcp-server-time", AtRest::Quiescent),
    (
        "node_modules/@deno/linux-x64-glibc/deno run -A \
         node_modules/@modelcontextprotocol/server-memory/dist/index.js",
        AtRest::Quiescent,
    ),
    // Go. It watches its configuration. A script of node starts the program, and is one server with it.
    (
        "node_modules/.bin/kubernetes-mcp-server --kubeconfig kubeconfig",
        AtRest::AtWork("watches files"),
    ),
    (
        "node_modules/kubernetes-mcp-server-linux-amd64/bin/kubernetes-mcp-server-linux-amd64 \
         --kubeconfig kubeconfig",
        AtRest::AtWork("watches files"),
    ),
    ("java Answer.java", AtRest::NeverIdle),
];

/// Names a cluster that does not exist.
const KUBECONFIG: &str = "
apiVersion: v1
kind: Config
clusters: [{name: a, cluster: {server: \"http://127.0.0.1:9\"}}]
contexts: [{name: a, context: {cluster: a, user: a}}]
current-context: a
users: [{name: a, user: {}}]
";

/// Answers each line. No Java server of MCP is in the registries of npm and PyPI, and its runtime decides.
const ANSWER: &str = r#"
public class Answer {
    public static void main(String[] words) throws java.io.IOException {
        var lines = new java.io.BufferedReader(new java.io.InputStreamReader(System.in));
        while (lines.readLine() != null) {
            System.out.println("{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}");
        }
    }
}
"#;

fn of(servers: &[ServerStatus], pid: Pid) -> Option<&ServerStatus> {
    servers.iter().find(|server| server.pid == pid)
}

fn is_idle(server: &ServerStatus) -> bool {
    server.idle_seconds.is_some_and(|idle| idle >= 60)
}

/// The client is this test, so the stdio are pipes.
#[test]
#[ignore = "installs packages"]
fn servers_with_pipes() {
    let scene = Scene::new("real-pipes");
    let start = |line: &str| Piped::start(&scene.cgroup, &scene.folder, line);
    let mut used: Vec<Piped> = SERVERS.iter().map(|(line, _)| start(line)).collect();
    let mut idle: Vec<Piped> = SERVERS.iter().map(|(line, _)| start(line)).collect();
    scene.await_list("all are connected, under their names", |servers| {
        let is_known = |(one, (_, identity)): (&Piped, &(&str, &str))| {
            of(servers, one.pid()).is_some_and(|found| {
                found.contact == Contact::Connected && found.identity == *identity
            })
        };
        used.iter().zip(&SERVERS).all(is_known) && idle.iter().zip(&SERVERS).all(is_known)
    });
    // A server that is asked every 20 s is never idle.
    let (began, mut next) = (Instant::now(), Instant::now());
    while began.elapsed() < USED_FOR {
        if Instant::now() >= next {
            used.iter_mut().for_each(|one| one.ask(PING));
            next += ASKED_EVERY;
        }
        let servers = scene.servers();
        for one in &used {
            let found = of(&servers, one.pid()).unwrap();
            assert!(!is_idle(found), "{found:?}");
        }
        thread::sleep(Duration::from_secs(1));
    }
    scene.await_list("the others are idle", |servers| {
        used.iter_mut().for_each(|one| one.ask(PING));
        idle.iter().all(|one| of(servers, one.pid()).is_some_and(is_idle))
    });
    scene.show("used and idle, with pipes");
    // Without its client's end, each either ends or is closing.
    idle.iter_mut().for_each(|one| drop(one.stdin.take()));
    scene.await_list("they end, or are closing", |servers| {
        idle.iter_mut().all(|one| match one.child.try_wait().unwrap() {
            Some(_) => of(servers, one.pid()).is_none(),
            None => of(servers, one.pid()).is_some_and(|found| found.contact == Contact::Closing),
        })
    });
    scene.show("their stdin was closed");
}

/// Returns what is known of the quiescence of a server.
fn rest_of(servers: &[ServerStatus], pid: Pid) -> String {
    let one = of(servers, pid).unwrap();
    match (one.quiescent, &one.at_work) {
        (Some(true), None) => "quiescent".to_owned(),
        (Some(false), Some(why)) => why.clone(),
        (_, _) => format!("idle for {:?} s", one.idle_seconds),
    }
}

/// Prints a table of real servers: whether each is quiescent at rest, and with answers that nobody reads.
#[test]
#[ignore = "installs packages"]
fn each_kind_is_quiescent_at_rest_or_has_a_reason() {
    let scene = Scene::new("real-quiescence");
    fs::write(scene.folder.join("kubeconfig"), KUBECONFIG).unwrap();
    fs::write(scene.folder.join("Answer.java"), ANSWER).unwrap();
    let mut all: Vec<Piped> =
        KINDS.iter().map(|(line, _)| Piped::start(&scene.cgroup, &scene.folder, line)).collect();
    let mut last = Vec::new();
    let reached = wait::until(PATIENCE, || {
        let servers = scene.servers();
        last = all.iter().map(|one| rest_of(&servers, one.pid())).collect::<Vec<String>>();
        Ok(last.iter().zip(&KINDS).all(|(rest, (_, expected))| match expected {
            AtRest::Quiescent => rest == "quiescent",
            AtRest::AtWork(why) => rest.contains(why),
            AtRest::NeverIdle => rest != "quiescent",
        }))
    });
    for (rest, (line, _)) in last.iter().zip(&KINDS) {
        println!("at rest | {line} | {rest}");
    }
    assert!(reached.unwrap());
    // The list of tools is larger than a sixtieth of a pipe, and a pipe takes a thousand requests.
    let list = r#"{"jsonrpc":"2.0","id":9,"method":"tools/list"}"#;
    all.iter_mut().for_each(|one| (0..1000).for_each(|_| one.write(list)));
    // Some of node keep a timer of V8 that runs every eight seconds, and are not idle.
    scene.await_list("most are blocked, and none is quiescent", |servers| {
        last = all.iter().map(|one| rest_of(servers, one.pid())).collect();
        let blocked = last.iter().filter(|rest| rest.contains("output is not read"));
        blocked.count() * 2 >= KINDS.len() && !last.iter().any(|rest| rest == "quiescent")
    });
    for (rest, (line, _)) in last.iter().zip(&KINDS) {
        println!("answers that nobody reads | {line} | {rest}");
    }
}

/// Servers that are in the middle of a request, or are connected to something else.
#[test]
#[ignore = "installs packages"]
fn a_server_in_a_request_is_at_work() {
    let scene = Scene::new("real-request");
    // It accepts connections, and never answers.
    let slow = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("http://{}/", slow.local_addr().unwrap());
    let start = |line: &str| Piped::start(&scene.cgroup, &scene.folder, line);
    let call = |tool: &str, arguments: &str| {
        format!(
            r#"{{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{{"name":"{tool}","arguments":{arguments}}}}}"#
        )
    };
    let mut sleeps = start("node_modules/.bin/mcp-server-everything");
    sleeps.write(&call("trigger-long-running-operation", r#"{"duration":900,"steps":2}"#));
    // A gateway that serves others, and one that relays to it.
    let port = 18_190;
    let server = "node_modules/.bin/mcp-server-memory";
    let _gateway = Gateway::start(&scene.cgroup, &scene.folder, server, port);
    let begun = wait::until(PATIENCE, || Ok(TcpStream::connect(("127.0.0.1", port)).is_ok()));
    assert!(begun.unwrap());
    let relays =
        start(&format!("node_modules/.bin/supergateway --sse http://127.0.0.1:{port}/sse"));
    let mut fetches = start("venv/bin/mcp-server-fetch --ignore-robots-txt --allow-private-ips");
    // It gives up after half a minute, and a server is not looked at sooner.
    scene.await_list("it is at rest", |servers| {
        of(servers, fetches.pid()).is_some_and(|one| one.quiescent == Some(true))
    });
    fetches.write(&call("fetch", &format!(r#"{{"url":"{url}"}}"#)));
    for (what, server, reason) in [
        ("a fetch that is not answered", &fetches, "connection to the outside"),
        ("a tool with a timer", &sleeps, "timeout"),
    ] {
        let mut last = String::new();
        let reached = wait::until(PATIENCE, || {
            last = rest_of(&scene.servers(), server.pid());
            Ok(last.contains(reason))
        });
        assert!(reached.unwrap(), "{what}: {last}");
        println!("{what} | {last}");
    }
    // A relay has timers too, so it is hardly ever idle.
    for _ in 0..60 {
        let last = rest_of(&scene.servers(), relays.pid());
        assert_ne!(last, "quiescent");
        thread::sleep(Duration::from_secs(1));
    }
    println!("a relay | {}", rest_of(&scene.servers(), relays.pid()));
    scene.show("in a request");
}

/// The client is supergateway, so the stdio are sockets.
#[test]
#[ignore = "installs packages"]
fn servers_of_a_gateway_that_is_killed() {
    let scene = Scene::new("real-gateway");
    let mut gateways: Vec<Gateway> = (0..)
        .zip(&SERVERS)
        .map(|(at, (line, _))| Gateway::start(&scene.cgroup, &scene.folder, line, 18_100 + at))
        .collect();
    let started_by = |servers: &[ServerStatus], gateway: Pid| {
        let is_its =
            |one: &&ServerStatus| one.client.as_ref().is_some_and(|client| client.pid == gateway);
        servers.iter().find(is_its).cloned()
    };
    let mut found = Vec::new();
    scene.await_list("each gateway has its server", |servers| {
        found = gateways.iter().filter_map(|gateway| started_by(servers, gateway.pid())).collect();
        let is_known = |(one, (_, identity)): (&ServerStatus, &(&str, &str))| {
            one.contact == Contact::Connected
                && one.orphaned == Some(false)
                && one.identity == *identity
        };
        found.len() == SERVERS.len() && found.iter().zip(&SERVERS).all(is_known)
    });
    for one in &found {
        let name = one.client.as_ref().and_then(|client| client.name.as_deref());
        assert_eq!(name, Some("supergateway"), "{one:?}");
    }
    scene.show("of a gateway");
    // A server that hangs outlives its client. The others end by themselves.
    let members: Vec<u32> =
        scene.cgroup.procs().unwrap().into_iter().map(|pid| pid as u32).collect();
    let is_gateway = |pid: u32| gateways.iter().any(|gateway| gateway.pid() == Pid(pid));
    let hung: Vec<u32> = members.into_iter().filter(|pid| !is_gateway(*pid)).collect();
    hung.iter().for_each(|pid| signal(*pid, Signal::STOP));
    gateways.iter_mut().for_each(|gateway| {
        gateway.0.kill().unwrap();
        gateway.0.wait().unwrap();
    });
    scene.await_list("all are disconnected orphans", |servers| {
        found.iter().all(|one| {
            of(servers, one.pid).is_some_and(|one| {
                one.contact == Contact::Disconnected
                    && one.orphaned == Some(true)
                    && one.client.is_none()
            })
        })
    });
    scene.show("the gateway was killed, and the servers hang");
    hung.iter().for_each(|pid| signal(*pid, Signal::CONT));
    scene.await_list("what still lives is disconnected", |servers| {
        found.iter().all(|one| match of(servers, one.pid) {
            Some(server) => server.contact == Contact::Disconnected,
            None => OpenProcess::open(one.pid).is_err(),
        })
    });
    thread::sleep(Duration::from_secs(15));
    scene.show("the servers go on");
}

/// A gateway whose servers stay when their clients have gone.
struct Leak {
    /// The name of its trace.
    name: &'static str,
    /// How it is started on `PORT`. `SERVER` is the command of the server, as one word.
    gateway: &'static str,
    visit: fn(u16),
}

const SERVER: &str = "npx -y @modelcontextprotocol/server-everything";

/// Each keeps a server of each request or of each session.
const LEAKS: [Leak; 3] = [
    Leak {
        name: "live-supergateway3-stateless",
        gateway: "node node_modules/supergateway/dist/index.js --outputTransport streamableHttp \
                  --logLevel none --port PORT --stdio SERVER",
        visit,
    },
    Leak {
        name: "live-supergateway3-stateful",
        gateway: "node node_modules/supergateway/dist/index.js --outputTransport streamableHttp \
                  --stateful --logLevel none --port PORT --stdio SERVER",
        visit,
    },
    Leak {
        name: "live-supergateway4-stateful",
        gateway: "node node_modules/supergateway4/dist/index.js --outputTransport streamableHttp \
                  --stateful --logLevel none --port PORT --stdio SERVER",
        visit,
    },
];

/// Each ends `npx` only, and keeps the pipes of the server below it, so the server never sees the end of its input.
const PYTHON_LEAKS: [Leak; 2] = [
    // It starts the server again for each client with a key of its own.
    Leak {
        name: "live-contextforge-translate",
        gateway: "venv/bin/python -m mcpgateway.translate --expose-sse --expose-streamable-http \
                  --enable-dynamic-env --header-to-env X-Api-Key=API_KEY --port PORT --stdio SERVER",
        visit: visit_by_sse,
    },
    // Each minute it ends the sessions that have expired.
    Leak {
        name: "live-streamablehttp-proxy",
        gateway: "venv/bin/mcp-streamablehttp-proxy --timeout 30 --port PORT \
                  npx -y @modelcontextprotocol/server-everything",
        visit,
    },
];

/// How many clients come and go.
const CLIENTS: usize = 14;
const CLIENTS_EVERY: Duration = Duration::from_secs(3);
/// A look decides each 5 s.
const INTERVAL_NS: u64 = 5_000_000_000;

/// Sends a request. Returns the lines of the answer.
fn request(port: u16, line: &str, body: &str) -> impl Iterator<Item = String> + use<> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    write!(
        stream,
        "{line} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n\
         Accept: application/json, text/event-stream\r\nX-Api-Key: a\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    BufReader::new(stream).lines().map(Result::unwrap)
}

/// Begins a session, takes the answer, and goes without a word.
fn visit(port: u16) {
    let mut answer = request(port, "POST /mcp", INITIALIZE);
    assert!(answer.any(|line| line.contains("\"result\"")));
}

/// Visits with the older transport: what is posted is answered in a stream.
fn visit_by_sse(port: u16) {
    let mut stream = request(port, "GET /sse", "");
    let place = stream.find_map(|line| line.find("/message").map(|at| line[at..].to_owned()));
    let _posted = request(port, &format!("POST {}", place.unwrap()), INITIALIZE);
    assert!(stream.any(|line| line.contains("\"result\"")));
}

fn start_gateway(cgroup: &FixtureCgroup, folder: &Path, line: &str, port: u16) -> Gateway {
    let port = port.to_string();
    let mut words = line.split(' ').map(|word| match word {
        "PORT" => port.as_str(),
        "SERVER" => SERVER,
        word => word,
    });
    let mut command = Command::new(words.next().unwrap());
    command.args(words).current_dir(folder);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Gateway(cgroup.spawn(command).unwrap())
}

/// Records a leak, replays the trace with the same policy, and compares the decisions and their times.
fn record_and_judge_again(folder: &Path, port: u16, leak: &Leak) {
    let name = leak.name;
    let cgroup = FixtureCgroup::new("real-leak").unwrap();
    let policy = format!("[evidence]\nevery = \"5s\"\n[[guard]]\ncgroup = \"{}\"\n", cgroup.path());
    let mut agent = Agent::start(&policy).unwrap();
    let file = agent.folder().join("trace");
    let recording = Recording::begin(&mut agent, &cgroup, &file, &[]).unwrap();
    let gateway = start_gateway(&cgroup, folder, leak.gateway, port);
    let is_up = || Ok(TcpStream::connect(("127.0.0.1", port)).is_ok());
    assert!(wait::until(PATIENCE, is_up).unwrap(), "{name}");
    for _ in 0..CLIENTS {
        (leak.visit)(port);
        thread::sleep(CLIENTS_EVERY);
    }
    let acted = wait::until(PATIENCE, || {
        Ok(agent.audit()?.iter().any(|record| matches!(record, Record::Outcome { .. })))
    });
    assert!(acted.unwrap(), "{name}: {:?}", agent.servers(&[]));
    let trace = recording.stop(&mut agent).unwrap();
    drop(gateway);
    let (header, events) = parse(&trace).unwrap();
    let end = events.last().map_or(0, TraceEvent::time);
    let report = replay(&trace, Policy::parse(&policy).unwrap()).unwrap();
    let mut live = Decided::live(&agent, &header).unwrap();
    live.retain(|one| one.t <= end);
    println!("{name}: {live:?}\n{:?}", report.identities);
    keep(name, ("leak", leak.gateway), &trace).unwrap();
    Decided::assert_same(live, Decided::replayed(&report), INTERVAL_NS);
}

/// A trace of each leak, replayed with the same policy, gives what the agent decided, at the same times.
#[test]
#[ignore = "installs packages"]
fn a_recorded_leak_of_a_real_gateway_is_judged_again_as_it_was_live() {
    let folder = gateways();
    (18_200..).zip(&LEAKS).for_each(|(port, leak)| record_and_judge_again(&folder, port, leak));
}

#[test]
#[ignore = "installs packages"]
fn a_recorded_leak_of_a_python_gateway_is_judged_again_as_it_was_live() {
    let folder = python_gateways();
    let leaks = (18_210..).zip(&PYTHON_LEAKS);
    leaks.for_each(|(port, leak)| record_and_judge_again(&folder, port, leak));
}

fn signal(pid: u32, signal: Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let _ = kill_process(pid, signal);
}
