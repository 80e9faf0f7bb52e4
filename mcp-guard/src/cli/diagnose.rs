//! `diagnose`: facts, judged and shown.

use std::{fs, io::IsTerminal as _, path::PathBuf};

use clap::Args;
use mcp_guard_core::{
    container::container_in,
    diagnose::{
        facts::{Facts, SCHEMA},
        judge,
        report::{Report, Verdict},
    },
    target::{Candidate, NoMatch, Target, choose},
};
use serde_json::json;

use super::{Exit, Failure, Host, out, runtime};
use crate::{
    agent::lock,
    control::{client, wire::Status},
    engine::Engine,
    render,
    snapshot::Snapshot,
    wanted::Limits,
};

/// Bytes of a saved snapshot; 65,536 processes fit.
const MAX_FACTS: u64 = 64 << 20;

#[derive(Debug, Args)]
pub struct Arguments {
    /// Container name, id or id prefix; docker:NAME, unit:NAME, cgroup:/path, pid:N.
    #[arg(required_unless_present_any = ["all", "facts"], conflicts_with_all = ["all", "facts"])]
    target: Option<String>,
    /// Every running container and every guarded cgroup, the worst first.
    #[arg(long, conflicts_with_all = ["facts", "save"])]
    all: bool,
    /// Judge a saved snapshot instead of this host.
    #[arg(long, value_name = "FILE")]
    facts: Option<PathBuf>,
    /// Keep what was read, to judge it elsewhere or to report it.
    #[arg(long, value_name = "FILE", conflicts_with = "facts")]
    save: Option<PathBuf>,
    /// JSON instead of text.
    #[arg(long)]
    json: bool,
}

pub fn diagnose(host: &Host, arguments: &Arguments) -> Result<Exit, Failure> {
    if arguments.all {
        return all(host, arguments.json);
    }
    let facts = match (&arguments.facts, &arguments.target) {
        (Some(file), _) => read(file)?,
        (None, target) => {
            let target = target.as_deref().unwrap_or_default();
            runtime()?.block_on(async { one(&snapshot(host).await?, target).await })?
        }
    };
    if let Some(file) = &arguments.save {
        let text = serde_json::to_string_pretty(&facts).map_err(Failure::could_not)?;
        fs::write(file, text)
            .map_err(|error| Failure::could_not(format!("{}: {error}", file.display())))?;
    }
    let report = judge(&facts);
    out::answer(&show(&report, arguments.json)?);
    Ok(exit(&report))
}

fn all(host: &Host, as_json: bool) -> Result<Exit, Failure> {
    let mut reports = runtime()?.block_on(async {
        let snapshot = snapshot(host).await?;
        let mut reports = Vec::new();
        for listed in snapshot.running() {
            // One that vanished meanwhile is no error.
            reports.extend(snapshot.container(&listed.id).await.map(|facts| judge(&facts)));
        }
        for cgroup in guarded_cgroups(host) {
            reports.push(judge(&snapshot.cgroup(&cgroup).await));
        }
        Ok::<_, Failure>(reports)
    })?;
    reports.sort_by_key(|report| {
        let worst = report.findings.first().map(|finding| finding.severity);
        (worst.is_none(), worst, report.target.name.clone())
    });
    let text = if as_json {
        serde_json::to_string(&json!({ "targets": reports })).map_err(Failure::could_not)?
    } else {
        render::table(&reports)
    };
    out::answer(&text);
    let worst = reports.iter().map(exit).max_by_key(|exit| match exit {
        Exit::CouldNot => 2,
        Exit::Wrong => 1,
        Exit::Done | Exit::Usage | Exit::Data => 0,
    });
    Ok(worst.unwrap_or(Exit::Done))
}

/// What an agent guards and no engine knows of; nothing where none runs or answers.
fn guarded_cgroups(host: &Host) -> Vec<String> {
    if !lock::is_held(&host.run_dir) {
        return Vec::new();
    }
    let status: Result<Status, _> = client::call(&lock::socket(&host.run_dir), "Status", json!({}));
    let guards = status.map(|status| status.guards).unwrap_or_default().into_iter();
    guards.filter(|guard| guard.container.is_none()).map(|guard| guard.cgroup).collect()
}

fn exit(report: &Report) -> Exit {
    match (report.findings.is_empty(), report.verdict) {
        (true, Verdict::Unknown) => Exit::CouldNot,
        (true, _) => Exit::Done,
        (false, _) => Exit::Wrong,
    }
}

pub async fn snapshot(host: &Host) -> Result<Snapshot, Failure> {
    let limits = Limits::new(&host.state_dir);
    let taken = Snapshot::take(Engine::new(&host.docker), limits).await;
    taken.map_err(|error| Failure::could_not(format!("reading this host: {error}")))
}

pub async fn one(snapshot: &Snapshot, text: &str) -> Result<Facts, Failure> {
    let gone = || Failure::could_not(format!("{text}: it ended while it was looked at"));
    match Target::parse(text).map_err(Failure::usage)? {
        Target::Container(name) | Target::Docker(name) => {
            let id = chosen(snapshot, &name)?;
            snapshot.container(&id).await.ok_or_else(gone)
        }
        Target::Unit(name) => {
            let facts = snapshot.unit(&name).await.map_err(Failure::could_not)?;
            facts.ok_or_else(|| Failure::could_not(format!("no unit {name} runs here")))
        }
        Target::Cgroup(path) => {
            let own = container_in(&path).filter(|found| found.path == path);
            let container = container_of(snapshot, own.map(|found| found.id)).await;
            Ok(match container {
                Some(facts) => facts,
                None => snapshot.cgroup(&path).await,
            })
        }
        Target::Pid(pid) => {
            let none = || Failure::could_not(format!("there is no process {pid}"));
            let path = snapshot.cgroup_of(pid).ok_or_else(none)?;
            let container = container_in(path).map(|found| found.id);
            Ok(match container_of(snapshot, container).await {
                Some(facts) => facts,
                None => snapshot.cgroup(path).await,
            })
        }
    }
}

/// What an engine knows of it says more than its cgroup.
async fn container_of(snapshot: &Snapshot, id: Option<&str>) -> Option<Facts> {
    let known = snapshot.running().iter().find(|one| Some(one.id.as_str()) == id)?;
    snapshot.container(&known.id).await
}

fn chosen(snapshot: &Snapshot, name: &str) -> Result<String, Failure> {
    let candidate =
        |one: &crate::engine::Listed| Candidate { id: one.id.clone(), name: one.name.clone() };
    let all: Vec<Candidate> = snapshot.running().iter().map(candidate).collect();
    match choose(name, &all) {
        Ok(found) => Ok(found.id.clone()),
        Err(NoMatch::None) => {
            // What else could not be read has nothing to do with a name.
            let engine = |what: &str| matches!(what, "engine" | "containers");
            let why = snapshot.unreadable().iter().filter(|one| engine(&one.what));
            let why = why.map(|one| format!("; {}: {}", one.what, one.why));
            Err(Failure::could_not(format!(
                "no running container is called {name:?}{}",
                why.collect::<String>()
            )))
        }
        Err(NoMatch::Several(found)) => {
            let names: Vec<String> =
                found.iter().map(|one| format!("{:.12} {}", one.id, one.name)).collect();
            Err(Failure::could_not(format!("{name:?} may mean {}", names.join(", "))))
        }
    }
}

fn read(file: &PathBuf) -> Result<Facts, Failure> {
    let bad = |why: String| Failure::data(format!("{}: {why}", file.display()));
    let meta = fs::metadata(file).map_err(|error| bad(error.to_string()))?;
    if meta.len() > MAX_FACTS {
        return Err(bad(format!("larger than {MAX_FACTS} bytes")));
    }
    let text = fs::read(file).map_err(|error| bad(error.to_string()))?;
    let facts: Facts = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
    if facts.schema > SCHEMA {
        return Err(bad(format!("made by a newer mcp-guard (schema {})", facts.schema)));
    }
    Ok(facts)
}

fn show(report: &Report, as_json: bool) -> Result<String, Failure> {
    if as_json {
        return serde_json::to_string(report).map_err(Failure::could_not);
    }
    let colour = std::env::var_os("NO_COLOR").is_none() && std::io::stdout().is_terminal();
    Ok(render::report(report, colour))
}
