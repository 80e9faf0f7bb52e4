//! Resolves the operator's target to a cgroup, and holds it open.

use mcp_guard_core::{
    container::container_in,
    target::{Candidate, NoMatch, Target, choose, is_named},
};

use super::{Failure, HostOptions};
use crate::{
    control::{client, lock, wire::WatchedStatus},
    engine::{self, Candidates},
    guards::Held,
    host::{cgroup::Cgroup, layout::Layout, systemd::Systemd},
};

pub async fn resolve(host: &HostOptions, text: &str) -> Result<Held, Failure> {
    let target = Target::parse(text).map_err(Failure::usage)?;
    let layout = Layout::read()
        .map_err(|error| Failure::could_not(format!("cannot read the cgroup layout: {error}")))?;
    match target {
        Target::Container(name) | Target::Docker(name) => container(host, &layout, &name).await,
        Target::Unit(name) => {
            let systemd = Systemd::connect().await;
            let systemd =
                systemd.ok_or_else(|| Failure::could_not("systemd is not the init system here"))?;
            let path = systemd.map_err(Failure::could_not)?.cgroup_of(&name).await;
            let path = path.map_err(Failure::could_not)?;
            let path =
                path.ok_or_else(|| Failure::could_not(format!("unit {name} is not running")))?;
            let cgroup = Cgroup::open(&layout, &path).map_err(Failure::could_not)?;
            Ok(plain(host, cgroup).await)
        }
        Target::Cgroup(path) => {
            let cgroup = Cgroup::open(&layout, &path).map_err(Failure::could_not)?;
            Ok(plain(host, cgroup).await)
        }
        Target::Pid(pid) => {
            let cgroup = Cgroup::of_process(&layout, pid, None).map_err(Failure::could_not)?;
            Ok(plain(host, cgroup).await)
        }
    }
}

async fn container(host: &HostOptions, layout: &Layout, name: &str) -> Result<Held, Failure> {
    let engines = host.engines();
    let Candidates { found, errors } = engines.candidates().await;
    let all: Vec<Candidate> = found.into_iter().map(|(_, one)| one).collect();
    let chosen = match choose(name, &all) {
        Ok(chosen) => chosen,
        // An engine that does not answer may have the container.
        Err(NoMatch::None) if !errors.is_empty() => {
            let failure = || Failure::could_not(unanswered(&errors));
            return guarded(host, layout, |one| is_named(name, one)).ok_or_else(failure);
        }
        Err(no_match) => return Err(Failure::could_not(unchosen(name, &no_match))),
    };
    let found = match engines.inspect(&chosen.id).await {
        Ok(found) => found,
        Err(error) => {
            let guarded = guarded(host, layout, |one| one.id == chosen.id);
            return guarded.ok_or_else(|| Failure::could_not(error));
        }
    };
    let (by, found) = found
        .ok_or_else(|| Failure::could_not(format!("container {} is not running", chosen.name)))?;
    let cgroup =
        Cgroup::of_process(layout, found.init, Some(&found.id)).map_err(Failure::could_not)?;
    if !by.may_speak_for(&cgroup) {
        return Err(Failure::could_not(format!(
            "{by} says that {} is the container {}, and may not speak for it: this engine is not \
             believed; cgroup:/PATH or pid:N names a target without an engine",
            cgroup.path(),
            chosen.name
        )));
    }
    Ok(Held::new(cgroup, &found.name, Some(found.id), found.paused))
}

fn unanswered(errors: &[engine::Error]) -> String {
    let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
    let errors = errors.join("; ");
    format!("{errors}; cgroup:/PATH or pid:N names a target without an engine")
}

fn unchosen(name: &str, no_match: &NoMatch) -> String {
    match no_match {
        NoMatch::None => format!(
            "no container is called {name:?}; `docker ps` or `podman ps` lists them, and \
             cgroup:/path or pid:N names a target that no engine has"
        ),
        NoMatch::Several(candidates) => {
            let lines: Vec<String> = candidates
                .iter()
                .map(|one| format!("\n  {} {}", one.id.get(..12).unwrap_or(&one.id), one.name))
                .collect();
            format!("{name:?} is ambiguous; it may mean:{}", lines.concat())
        }
    }
}

/// Finds the target among the agent's guards. This needs no engine, which may hang in the very storm that
/// is to be stopped.
fn guarded(
    host: &HostOptions,
    layout: &Layout,
    is_it: impl Fn(&Candidate) -> bool,
) -> Option<Held> {
    if !lock::is_held(&host.run_dir) {
        return None;
    }
    let status = client::status(&lock::socket(&host.run_dir)).ok()?;
    // A guard may also hold a cgroup inside a container.
    let container = |one: WatchedStatus| {
        let id = one.container.clone()?;
        let is_own = container_in(&one.cgroup).is_some_and(|found| found.path == one.cgroup);
        is_own.then(|| (Candidate { id, name: one.guard.name.clone() }, one))
    };
    let mut found = status.guards.into_iter().filter_map(container).filter(|one| is_it(&one.0));
    let ((chosen, one), None) = (found.next()?, found.next()) else { return None };
    let cgroup = Cgroup::open(layout, &one.cgroup).ok()?;
    let is_same = cgroup.id() == one.cgroup_id;
    is_same.then(|| Held::new(cgroup, &chosen.name, Some(chosen.id), one.paused))
}

/// Holds a cgroup that is named without its container. If it is a container's, its engine may have paused it.
async fn plain(host: &HostOptions, cgroup: Cgroup) -> Held {
    let id = container_in(cgroup.path()).map(|found| found.id.to_owned());
    let is_container = id.is_some();
    let name = cgroup.path().to_owned();
    let mut held = Held::new(cgroup, &name, id, false);
    if is_container {
        held.note_pause(&host.engines().paused().await);
    }
    held
}
