//! `diagnose --all` on a host with many cgroups.

use crate::numbers::quantile;
use crate::report::Report;
use crate::tell;
use anyhow::{Context, Result, ensure};
use mcp_guard_tests::agent::command;
use mcp_guard_tests::cgroup::FixtureCgroup;
use mcp_guard_tests::sleeper::Sleeper;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Instant;

const CGROUPS: usize = 1000;
/// How many of them are containers of the engine.
const CONTAINERS: usize = 200;
const RUNS: usize = 9;

pub fn measure(report: &mut Report) -> Result<()> {
    tell(&format!("diagnose --all: {CGROUPS} cgroups, {CONTAINERS} of them containers"));
    let parent = FixtureCgroup::new("bench-diagnose")?;
    if parent.pids_dir() == parent.unified_dir() {
        parent.hand_pids_down()?;
    }
    let name = |n: usize| match n {
        n if n < CONTAINERS => format!("{n:064x}"),
        n => format!("plain-{n}"),
    };
    let cgroups = (0..CGROUPS).map(|n| parent.child(&name(n))).collect::<Result<Vec<_>>>()?;
    let mut containers = Vec::new();
    let mut sleepers = Vec::new();
    for (n, cgroup) in cgroups.iter().enumerate().take(CONTAINERS) {
        cgroup.set_pids_max(25)?;
        let sleeper = Sleeper::start(cgroup)?;
        containers.push((name(n), sleeper.pid()));
        sleepers.push(sleeper);
    }
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("engine.sock");
    serve(&socket, &containers)?;
    let mut took = Vec::new();
    for _ in 0..RUNS {
        took.push(one(folder.path(), &socket)?);
    }
    report.section(&format!(
        "diagnose --all: {CGROUPS} cgroups, {CONTAINERS} of them containers, {RUNS} runs"
    ));
    report.add_goal("whole command, p50", quantile(&took, 0.5), "s", 1.0);
    report.add_goal("whole command, max", quantile(&took, 1.0), "s", 1.0);
    Ok(())
}

fn one(folder: &Path, socket: &Path) -> Result<f64> {
    let socket = socket.to_str().context("the path of the socket is not UTF-8")?;
    let began = Instant::now();
    let done = command(folder, socket)?.args(["diagnose", "--all", "--json"]).output()?;
    let took = began.elapsed().as_secs_f64();
    let said: Value =
        serde_json::from_slice(&done.stdout).context("diagnose did not print JSON")?;
    let found = said["targets"].as_array().map_or(0, Vec::len);
    ensure!(found == CONTAINERS, "diagnose reported {found} of {CONTAINERS} containers");
    ensure!(said["targets"][0]["effective_limit"] == 25, "{}", said["targets"][0]);
    Ok(took)
}

/// Serves a fake engine that answers at once, so that only our own time is measured. Runs until the
/// bench ends.
fn serve(socket: &Path, containers: &[(String, u32)]) -> Result<()> {
    let mut answers = BTreeMap::new();
    let list: Vec<Value> = containers
        .iter()
        .map(|(id, _)| json!({ "Id": id, "Names": [format!("/c-{}", &id[56..])], "Image": id }))
        .collect();
    answers.insert("/containers/json?all=true".to_owned(), Value::from(list));
    for (id, pid) in containers {
        let container = json!({
            "Id": id,
            "Name": format!("/c-{}", &id[56..]),
            "Created": "2026-01-01T00:00:00Z",
            "State": { "Pid": pid },
            "HostConfig": { "PidsLimit": 25 },
            "Config": { "Image": id, "Labels": { "a": "b" } },
        });
        answers.insert(format!("/containers/{id}/json"), container);
    }
    let listener = UnixListener::bind(socket)?;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut asked = [0; 2048];
            let length = stream.read(&mut asked).unwrap_or(0);
            let asked = String::from_utf8_lossy(&asked[..length]).into_owned();
            let path = asked.split(' ').nth(1);
            let answer = answers.get(path.unwrap_or_default()).cloned().unwrap_or(json!({}));
            let _ = stream.write_all(format!("HTTP/1.0 200 OK\r\n\r\n{answer}").as_bytes());
        }
    });
    Ok(())
}
