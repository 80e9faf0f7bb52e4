//! Servers of real launchers that outlive their clients are ended with the default thresholds. The packages
//! are made here and need others from npm and PyPI, so the test runs only if it is asked for:
//! `cargo test -p mcp-guard-tests --test real_reap -- --ignored`.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]
#![allow(clippy::print_stdout, reason = "the record of the end is a result")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use mcp_guard_core::{
    audit::Record,
    incident::Outcome,
    server_order::{OrderedServer, ServerResult},
};
use mcp_guard_tests::{agent::Agent, cgroup::FixtureCgroup, wait};

/// Two minutes, a few looks, and what a slow host needs.
const PATIENCE: Duration = Duration::from_secs(420);
const INITIALIZE: &str = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"test","version":"1"}}}"#;
const PING: &str = r#"{"jsonrpc":"2.0","id":2,"method":"ping"}"#;

/// A server that a timer keeps alive after the end of its input.
const NODE: &str = r#"#!/usr/bin/env node
import { McpServer } from "@modelcontextprotocol/sdk/server/mcp.js";
import { StdioServerTransport } from "@modelcontextprotocol/sdk/server/stdio.js";
setInterval(() => {}, 10_000);
await new McpServer({ name: "keepalive", version: "1.0.0" }).connect(new StdioServerTransport());
"#;
const NODE_PACKAGE: &str = r#"{"name":"keepalive-mcp","version":"1.0.0","type":"module",
"bin":{"keepalive-mcp":"index.mjs"},"dependencies":{"@modelcontextprotocol/sdk":"^1.20.0"}}"#;

/// A server that waits for a thread of its own after the end of its input.
const PYTHON: &str = "import threading, time
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
import anyio

def tick():
    while True:
        time.sleep(5)

async def serve():
    server = Server('hang')
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())

def main():
    threading.Thread(target=tick).start()
    anyio.run(serve)
";
const PYTHON_PACKAGE: &str = "[project]\nname = \"hang-mcp\"\nversion = \"1.0.0\"\ndependencies = [\"mcp<2\"]\n\
    [project.scripts]\nhang-mcp = \"hang_mcp:main\"\n[build-system]\nrequires = [\"hatchling\"]\n\
    build-backend = \"hatchling.build\"\n";

/// Both packages, installed once.
fn folder() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/real-reap");
    fs::create_dir_all(folder.join("keepalive-mcp")).unwrap();
    fs::create_dir_all(folder.join("hang-mcp/hang_mcp")).unwrap();
    let folder = folder.canonicalize().unwrap();
    for (file, text) in [
        ("package.json", "{}"),
        ("keepalive-mcp/package.json", NODE_PACKAGE),
        ("keepalive-mcp/index.mjs", NODE),
        ("hang-mcp/pyproject.toml", PYTHON_PACKAGE),
        ("hang-mcp/hang_mcp/__init__.py", PYTHON),
    ] {
        fs::write(folder.join(file), text).unwrap();
    }
    let run = |words: &[&str]| {
        let mut command = Command::new(words[0]);
        assert!(command.args(&words[1..]).current_dir(&folder).status().unwrap().success());
    };
    run(&["npm", "install", "--no-audit", "--no-fund", "--install-links", "./keepalive-mcp"]);
    run(&["python3", "-m", "venv", "venv"]);
    run(&["venv/bin/pip", "install", "--quiet", "uv"]);
    folder
}

struct Client {
    child: Child,
    answers: Option<BufReader<ChildStdout>>,
}

impl Client {
    fn start(cgroup: &FixtureCgroup, folder: &Path, words: &[&str]) -> Self {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).current_dir(folder);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = cgroup.spawn(command).unwrap();
        let answers = child.stdout.take().map(BufReader::new);
        let mut client = Self { child, answers };
        client.ask(INITIALIZE);
        client
    }

    fn ask(&mut self, request: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{request}").unwrap();
        let mut answer = String::new();
        self.answers.as_mut().unwrap().read_line(&mut answer).unwrap();
        assert!(answer.contains("\"result\""), "{answer}");
    }

    /// Goes without a word, as a client that is killed.
    fn go(&mut self) {
        drop(self.child.stdin.take());
        drop(self.answers.take());
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "installs packages"]
fn servers_that_outlive_their_client_are_ended_and_others_answer() {
    let folder = folder();
    let cgroup = FixtureCgroup::new("real-reap").unwrap();
    let policy = format!(
        "mode = \"enforce\"\n[respond]\nservers = \"reap\"\n[[guard]]\ncgroup = \"{}\"\n",
        cgroup.path()
    );
    let mut agent = Agent::start(&policy).unwrap();
    let npx = ["npx", "-y", "keepalive-mcp"];
    let uvx = ["venv/bin/uvx", "--from", "./hang-mcp", "hang-mcp"];
    let start = |words: &[&str]| Client::start(&cgroup, &folder, words);
    let mut left = [start(&npx), start(&uvx)];
    let mut stay = [start(&npx), start(&uvx)];
    left.iter_mut().for_each(Client::go);
    let gone = wait::until(PATIENCE, || {
        agent.status()?;
        Ok(left.iter_mut().all(|one| one.child.try_wait().is_ok_and(|ended| ended.is_some())))
    });
    assert!(gone.unwrap(), "{:?}\n{:?}", agent.audit(), agent.servers(&[]));
    let ended = |record| {
        let Record::Reap { outcome: Some(Outcome::Done), servers, detail, .. } = record else {
            return Vec::new();
        };
        println!("{detail}: {servers:?}");
        servers
    };
    agent
        .wait_until("both are in the log", |agent| {
            Ok(agent.audit()?.into_iter().flat_map(ended).filter(|one| one.end.is_some()).count()
                >= 2)
        })
        .unwrap();
    let mut ended: Vec<OrderedServer> =
        agent.audit().unwrap().into_iter().flat_map(ended).collect();
    ended.sort_by(|a, b| a.identity.cmp(&b.identity));
    let [hang, keepalive] = &ended[..] else { panic!("{ended:?}") };
    assert_eq!((&*hang.identity, &*keepalive.identity), ("./hang-mcp", "keepalive-mcp"));
    assert!(ended.iter().all(|one| {
        matches!(one.end, Some(ServerResult::Ended | ServerResult::Killed))
            && one.memory > Some(1 << 20)
    }));
    stay.iter_mut().for_each(|one| one.ask(PING));
}
