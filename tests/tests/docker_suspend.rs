//! Suspended servers of a container: its engine does all that it does otherwise, and nothing of ours is left behind.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]
#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "a test looks for one record and ignores the rest"
)]

use std::{
    fs,
    time::{Duration, Instant},
};

use mcp_guard_core::{
    audit::Record, incident::Outcome, server_order::ResumedBy, status::ServerStatus,
};
use mcp_guard_tests::{
    agent::Agent,
    docker::{Container, Place, node_image, output, socket, wait_until},
};

/// The gateway starts these servers, and asks them for its clients. It ends by SIGTERM once all of them have.
const SERVERS: usize = 3;
const GATEWAY: &str = r#"
const { spawn } = require('child_process'), fs = require('fs'), net = require('net');
const server = 'process.stdin.pipe(process.stdout); process.on("SIGTERM", () => process.exit(0))';
fs.writeFileSync('/tmp/server.js', server);
const plain = 'const fs = require("fs"), b = Buffer.alloc(99); for (;;) fs.writeSync(1, b, 0, fs.readSync(0, b) || process.exit())';
fs.writeFileSync('/tmp/plain.js', plain);
const words = process.argv.slice(1), stdio = ['pipe', 'pipe', 'inherit'];
const all = [0, 1, 2].map(() => spawn(words[0], words.slice(1), { stdio }));
let left = all.length;
for (const one of all) one.on('exit', () => { if (--left == 0) { console.log('clean end'); process.exit(0) } });
process.on('SIGTERM', () => all.forEach((one) => one.kill('SIGTERM')));
const answer = (client, data) => {
  const server = all[Number(data)];
  server.stdout.once('data', (line) => client.end(line));
  server.stdin.write('answer\n');
};
const listener = net.createServer((client) => client.once('data', (data) => answer(client, data)));
listener.listen('\0gateway', () => console.log('ready'));
"#;
const CLIENT: &str = "require('net').connect('\\0gateway', function () { this.write(process.argv[1]) }) \
                      .pipe(process.stdout)";
/// A server that waits for its client from the start, and one that handles SIGTERM. The event loop of node waits for
/// nothing else only after a minute.
const PLAIN: [&str; 2] = ["node", "/tmp/plain.js"];
const HANDLES_SIGTERM: [&str; 2] = ["node", "/tmp/server.js"];
/// How long an engine may take for what takes it a moment, in a slow guest too. Its own patience is longer.
const SOON: Duration = Duration::from_secs(40);
const STOPS_AFTER: &str = "120";

struct Gateway {
    container: Container,
    agent: Agent,
    place: Place,
}

impl Gateway {
    fn start(what: &str, server: &[&str]) -> Self {
        let program = [&["node", "--eval", GATEWAY], server].concat();
        let options = ["--memory", "512m"];
        let container = Container::run(what, &node_image().unwrap(), &options, &program).unwrap();
        let ready = || Ok(output(&["logs", &container.name])?.contains("ready"));
        wait_until("the gateway listens", ready).unwrap();
        let place = container.cgroup().unwrap();
        let policy = format!(
            "[evidence]\nevery = \"1s\"\n[[guard]]\nname = \"{}\"\nhighest = \"record\"\n",
            container.name
        );
        let agent = Agent::start_with(&policy, &socket().unwrap(), &[]).unwrap();
        Self { container, agent, place }
    }

    fn servers(&self) -> Vec<ServerStatus> {
        // After a restart, the new cgroup is guarded a moment later.
        let listed = self.agent.servers(&[&self.place.path]).ok();
        let mut guards = listed.map(|servers| servers.guards).unwrap_or_default();
        let all = guards.pop().map(|guard| guard.servers).unwrap_or_default();
        // The gateway itself is no server of a client.
        all.into_iter().filter(|one| one.identity != "node").collect()
    }

    /// Suspends all servers.
    fn suspend(&self) {
        let is_ready =
            |one: &ServerStatus| one.quiescent == Some(true) && one.idle_seconds >= Some(1);
        wait_until("the servers are quiescent", || {
            Ok(self.servers().iter().filter(|one| is_ready(one)).count() == SERVERS)
        })
        .unwrap();
        let words = ["suspend", &self.container.name, "--idle", "1s", "--keep", "0"];
        let done = self.agent.cli(&words).unwrap();
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        assert!(done.status.success() && said.contains("3 servers suspended"), "{said}");
        assert_eq!(self.children(), SERVERS, "{said}");
    }

    /// Counts the cgroups of single servers.
    fn children(&self) -> usize {
        let entries = fs::read_dir(&self.place.unified).into_iter().flatten().flatten();
        entries.filter(|one| one.file_name().to_string_lossy().starts_with("mcp-guard-")).count()
    }

    fn ask(&self, server: usize) {
        let server = server.to_string();
        let answer = soon(&["exec", &self.container.name, "node", "--eval", CLIENT, &server]);
        assert_eq!(answer, "answer");
    }

    /// Returns why each server runs again that is back in its cgroup. One that could not go back at once has a record
    /// of that, too.
    fn resumed(&self) -> Vec<ResumedBy> {
        let by = |record| match record {
            Record::Resume { by, outcome: Outcome::Done, .. } => Some(by),
            _ => None,
        };
        self.agent.audit().unwrap().into_iter().filter_map(by).collect()
    }

    fn await_none_asleep(&self) {
        wait_until("nothing of ours is left", || Ok(self.children() == 0)).unwrap();
        wait_until("all are awake", || {
            Ok(self.servers().iter().all(|one| one.suspended_seconds.is_none()))
        })
        .unwrap();
    }
}

/// Runs a command of the engine that must not wait for a suspended server.
fn soon(words: &[&str]) -> String {
    let began = Instant::now();
    let said = output(words).unwrap();
    assert!(began.elapsed() < SOON, "{words:?} took {:?}", began.elapsed());
    said
}

#[test]
fn the_engine_works_while_servers_are_suspended() {
    let gateway = Gateway::start("suspend-work", &PLAIN);
    let name = gateway.container.name.as_str();
    gateway.suspend();
    soon(&["exec", name, "true"]);
    soon(&["top", name]);
    soon(&["logs", name]);
    soon(&["update", "--pids-limit", "200", name]);
    soon(&["pause", name]);
    soon(&["unpause", name]);
    assert_eq!(gateway.children(), SERVERS);
    for server in 0..SERVERS {
        gateway.ask(server);
    }
    gateway.await_none_asleep();
    assert_eq!(gateway.resumed(), [ResumedBy::Request; SERVERS]);
    for server in gateway.servers() {
        let places = fs::read_to_string(format!("/proc/{}/cgroup", server.pid)).unwrap();
        let own = format!("0::{}", gateway.place.path);
        assert!(places.lines().any(|line| line == own), "{places}");
    }
}

#[test]
fn a_container_with_suspended_servers_stops_in_its_usual_time() {
    let gateway = Gateway::start("suspend-stop", &HANDLES_SIGTERM);
    let name = gateway.container.name.as_str();
    gateway.suspend();
    soon(&["stop", "--time", STOPS_AFTER, name]);
    assert_eq!(gateway.container.inspect(".State.ExitCode").unwrap(), "0");
    assert!(output(&["logs", name]).unwrap().contains("clean end"));
    assert_eq!(gateway.children(), 0);
    wait_until("the agent has noted it", || Ok(gateway.resumed().len() == SERVERS)).unwrap();
}

#[test]
fn a_container_with_suspended_servers_is_restarted_and_removed() {
    let gateway = Gateway::start("suspend-remove", &PLAIN);
    let name = gateway.container.name.as_str();
    gateway.suspend();
    soon(&["restart", "--time", STOPS_AFTER, name]);
    let ready = || Ok(output(&["logs", name])?.matches("ready").count() == 2);
    wait_until("the gateway listens again", ready).unwrap();
    let place = gateway.container.cgroup().unwrap();
    let gateway = Gateway { place, ..gateway };
    gateway.suspend();
    soon(&["rm", "--force", &gateway.container.name]);
    assert!(!gateway.place.exists());
    wait_until("the agent has noted it", || Ok(gateway.resumed().len() == 2 * SERVERS)).unwrap();
}
