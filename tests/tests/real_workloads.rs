//! Innocent work of developers and builds, recorded and judged by the default thresholds: the table in
//! docs/detectors.md. It needs their tools, and some packages from npm and PyPI, so each runs only if it is asked for:
//! `cargo test -p mcp-guard-tests --test real_workloads -- --ignored jest_workers`.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]
#![allow(clippy::print_stdout, reason = "the rows of the table are a result")]

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use mcp_guard_core::{policy::Policy, replay::replay, trace::parse};
use mcp_guard_tests::{
    agent::Agent,
    cgroup::FixtureCgroup,
    leak::observing,
    recording::{Decided, Recording, keep},
    wait,
};

/// A look decides each 30 s.
const INTERVAL_NS: u64 = 30_000_000_000;
/// How long what stays is watched.
const AFTERWARDS: Duration = Duration::from_secs(70);

/// Runs a shell script in a folder of its own, after another that prepares it and is not watched.
fn innocent(name: &str, what: &str, prepare: &str, script: &str) {
    let folder = Path::new("/tmp/mcp-guard-work").join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    let shell = |script: &str| {
        let mut shell = Command::new("sh");
        shell.args(["-ec", script]).current_dir(&folder);
        shell.stdin(Stdio::null()).stdout(Stdio::null());
        shell
    };
    assert!(shell(prepare).status().unwrap().success(), "{prepare}");
    let cgroup = FixtureCgroup::new("work").unwrap();
    let mut agent = Agent::start(&observing(&cgroup)).unwrap();
    let file = agent.folder().join("trace");
    let recording = Recording::begin(&mut agent, &cgroup, &file, &[]).unwrap();
    let status = cgroup.spawn(shell(script)).unwrap().wait().unwrap();
    assert!(status.success(), "{status}");
    wait::until(AFTERWARDS, || Ok(cgroup.procs()?.is_empty())).unwrap();
    let trace = recording.stop(&mut agent).unwrap();
    let (header, _) = parse(&trace).unwrap();
    let report = replay(&trace, Policy::default()).unwrap();
    assert_eq!(report.lost, 0);
    let live = Decided::live(&agent, &header).unwrap();
    println!(
        "| {what} | {} | {} | {} | {} | `{}` |",
        report.processes,
        report.execs,
        report.warnings.len(),
        report.actions.len(),
        name.replace('-', "_")
    );
    Decided::assert_same(live, Decided::replayed(&report), INTERVAL_NS);
    assert!(report.actions.is_empty() && report.warnings.len() <= 1, "{report:?}");
    keep(name, ("innocent", what), &trace).unwrap();
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
#[ignore = "installs packages"]
fn npm_install_native() {
    innocent(
        "npm-install-native",
        "`npm install` of packages with native code, which is compiled",
        "npm init -y >/dev/null",
        "npm install --no-audit --no-fund --build-from-source bufferutil utf-8-validate eslint",
    );
}

#[test]
#[ignore = "needs a compiler"]
fn make_j8() {
    innocent(
        "make-j8",
        "`make -j8` of 120 C files",
        "for i in $(seq 120); do \
           printf '#include <stdio.h>\\n#include <stdlib.h>\\nint f%d(void) { return puts(\"x\"); }\\n' $i > f$i.c; \
         done; \
         printf 'all: $(patsubst %%.c,%%.o,$(wildcard *.c))\\n%%.o: %%.c\\n\\tgcc -O2 -c $< -o $@\\n' > Makefile",
        "make -j8",
    );
}

#[test]
#[ignore = "needs a compiler"]
fn configure() {
    innocent(
        "configure",
        "a `configure` of CPython's kind: 150 probes, half of which fail",
        "cat > configure <<'END'\n\
         #!/bin/sh\n\
         for name in $(seq 150); do\n\
           if [ $((name % 2)) = 0 ]; then header=stdio.h; else header=none$name.h; fi\n\
           printf '#include <%s>\\nint main(void) { return 0; }\\n' $header > conftest.c\n\
           if gcc conftest.c -o conftest 2>/dev/null && ./conftest; then result=yes; else result=no; fi\n\
           echo checking for $header... $result | sed s/checking/checked/ >> config.log\n\
           rm -f conftest conftest.c\n\
         done\n\
         END\n\
         chmod +x configure",
        "./configure",
    );
}

#[test]
#[ignore = "installs packages"]
fn jest_workers() {
    innocent(
        "jest-workers",
        "`jest` with 4 workers, 60 files of tests",
        "npm init -y >/dev/null; npm install --no-audit --no-fund jest >/dev/null; \
         for i in $(seq 60); do \
           echo \"test('a', async () => { await new Promise(r => setTimeout(r, 300)); });\" > f$i.test.js; \
         done",
        "npx jest --maxWorkers=4 2>/dev/null",
    );
}

#[test]
#[ignore = "needs git"]
fn git() {
    innocent(
        "git",
        "`git`: 100 commits, a clone, a rebase, `gc`",
        "true",
        "git init -q a; cd a; git config user.email a@b; git config user.name a; \
         for i in $(seq 100); do echo $i > f$i; git add f$i; git commit -qm $i; done; \
         git clone -q . ../b; git checkout -q -b side HEAD~20; echo x > x; git add x; \
         git commit -qm side; git rebase -q master; git gc -q; git fsck",
    );
}

#[test]
#[ignore = "installs packages"]
fn tsc_webpack() {
    innocent(
        "tsc-webpack",
        "`tsc` and `webpack` by `npm run`, five times",
        "npm init -y >/dev/null; \
         npm install --no-audit --no-fund typescript webpack webpack-cli >/dev/null; \
         npm pkg set scripts.build='tsc a.ts --outDir src && webpack --mode production --entry ./src/a.js'; \
         echo 'const a: number = 1; console.log(a);' > a.ts",
        "for i in 1 2 3 4 5; do npm run build; done",
    );
}

#[test]
#[ignore = "installs packages"]
fn pip_install() {
    innocent(
        "pip-install",
        "a virtual environment and `pip install` of a server with its dependencies",
        "true",
        "python3 -m venv venv; venv/bin/pip install --quiet mcp-server-time pytest",
    );
}

#[test]
#[ignore = "installs packages"]
fn pytest_xdist() {
    innocent(
        "pytest-xdist",
        "`pytest -n 4`, 60 tests",
        "python3 -m venv venv; venv/bin/pip install --quiet pytest pytest-xdist; \
         printf 'import time, pytest\\n@pytest.mark.parametrize(\"i\", range(60))\\ndef test(i):\\n    time.sleep(0.3)\\n' > test_a.py",
        "venv/bin/pytest -q -n 4",
    );
}

#[test]
#[ignore = "needs node"]
fn sessions_that_end() {
    innocent(
        "sessions-that-end",
        "24 MCP sessions, one after the other, with 5 s between them: each server is started by `npx`, asked and ended",
        "npm init -y >/dev/null; \
         npm install --no-audit --no-fund @modelcontextprotocol/server-filesystem >/dev/null",
        "for i in $(seq 24); do \
           printf '%s\\n' '{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"initialize\",\"params\":{\"protocolVersion\":\"2025-06-18\",\"capabilities\":{},\"clientInfo\":{\"name\":\"a\",\"version\":\"1\"}}}' \
           | npx mcp-server-filesystem /tmp; \
           sleep 5; \
         done",
    );
}

#[test]
#[ignore = "needs node"]
fn node_cluster() {
    innocent(
        "node-cluster",
        "a `cluster` of node with 8 workers that serves 200 requests",
        "cat > a.js <<'END'\n\
         const cluster = require('cluster'), http = require('http');\n\
         if (cluster.isPrimary) {\n\
           for (let i = 0; i < 8; i++) cluster.fork();\n\
           let left = 200;\n\
           const ask = () => http.get('http://127.0.0.1:18777/', r => { r.resume(); \n\
             r.on('end', () => --left ? setTimeout(ask, 350) : process.exit(0)); })\n\
             .on('error', () => setTimeout(ask, 350));\n\
           setTimeout(ask, 1000);\n\
         } else http.createServer((q, r) => r.end('x')).listen(18777);\n\
         END",
        "node a.js",
    );
}
