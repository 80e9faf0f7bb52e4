//! Checks a policy: its files, and whether what it names runs on this host.

use std::path::Path;

use mcp_guard_core::policy::{Policy, Workload};

use super::super::{Exit, Failure, HostOptions, out, run::bad, runtime};
use crate::{
    control::{client, lock},
    engine::{Container, Engines, Speaker},
    host::{
        cgroup::{Cgroup, CgroupSearch},
        layout::Layout,
    },
    policy_files,
};

pub(super) fn check(host: &HostOptions, file: &Path, offline: bool) -> Result<Exit, Failure> {
    let read = policy_files::read(file).map_err(bad)?;
    let files = read.files().join(", ");
    let policy = read.policy;
    let rules = policy.guard.len();
    let plural = if rules == 1 { "" } else { "s" };
    let mut text = format!("good: {rules} rule{plural} in {files}\n");
    for (rule, first) in policy.unreachable() {
        text += &format!(
            "warning: rule {} ({}) never applies: rule {} matches everything before it\n",
            rule.number, rule.origin, first.number
        );
    }
    if !offline {
        text += &compared(host, &policy)?;
    }
    out::answer(&text);
    Ok(Exit::Done)
}

/// Says which rules and which entries for servers match nothing that runs.
fn compared(host: &HostOptions, policy: &Policy) -> Result<String, Failure> {
    let layout = Layout::read()
        .map_err(|error| Failure::could_not(format!("cannot read the cgroup layout: {error}")))?;
    let (containers, mut text) = runtime()?.block_on(running(&host.engines(), &layout));
    let mut matched = vec![false; policy.guard.len()];
    let (named, is_cut) = named(policy, &layout);
    if is_cut {
        text += "warning: there are too many cgroups to look at: not all that a pattern names were \
                 compared; name fewer levels by patterns\n";
    }
    for workload in containers.iter().chain(&named) {
        policy.matching(workload).for_each(|at| matched[at] = true);
    }
    for (at, _) in matched.iter().enumerate().filter(|(_, matched)| !**matched) {
        if let Some(rule) = policy.placed_rule(at) {
            text += &format!(
                "warning: rule {} ({}) matches nothing that runs: {}\n",
                rule.number, rule.origin, rule.matches
            );
        }
    }
    let socket = lock::socket(&host.run_dir);
    let mut patterns = policy.server_patterns().peekable();
    if patterns.peek().is_none() {
        return Ok(text);
    }
    match client::status(&socket) {
        Ok(status) => {
            for (pattern, origin) in patterns {
                let mut all = status.guards.iter().flat_map(|one| one.guard.identities.keys());
                if !all.any(|name| pattern.matches(name)) {
                    text += &format!(
                        "warning: server {:?} ({origin}) matches no server that was seen since the \
                         agent's start\n",
                        pattern.text()
                    );
                }
            }
        }
        Err(error) => {
            text += &format!(
                "note: the entries for servers are not compared with what runs: {error}\n"
            );
        }
    }
    Ok(text)
}

/// Returns the running containers, and a note about each engine that does not answer.
async fn running(engines: &Engines, layout: &Layout) -> (Vec<Workload>, String) {
    let candidates = engines.candidates().await;
    let (mut all, mut notes) = (Vec::new(), String::new());
    for error in candidates.errors {
        notes += &format!("note: containers are not compared with the rules: {error}\n");
    }
    for (_, candidate) in candidates.found {
        // One that does not run has no cgroup.
        if let Ok(Some((by, container))) = engines.inspect(&candidate.id).await
            && let Ok(workload) = workload(layout, &by, &container)
        {
            all.push(workload);
        }
    }
    (all, notes)
}

fn workload(layout: &Layout, by: &Speaker, container: &Container) -> Result<Workload, String> {
    let cgroup = Cgroup::of_process(layout, container.init, Some(&container.id));
    let cgroup = cgroup.map_err(|error| error.to_string())?;
    if by.may_speak_for(&cgroup) {
        Ok(container.workload(&cgroup))
    } else {
        Err(format!("{by} may not speak for {}", cgroup.path()))
    }
}

/// Returns the cgroups that the rules name by path or unit, and whether there are too many to look at all.
fn named(policy: &Policy, layout: &Layout) -> (Vec<Workload>, bool) {
    let mut search = CgroupSearch::new(layout);
    search.rules(policy);
    let is_cut = search.is_cut();
    let exists = |path: &String| Cgroup::open(layout, path).is_ok();
    let found = search.found().into_iter().filter(exists);
    (found.map(|cgroup| Workload { cgroup, ..Workload::default() }).collect(), is_cut)
}
