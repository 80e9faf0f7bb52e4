//! `policy`: checks, shows and explains the policy, and has the agent read it again.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Subcommand};
use mcp_guard_core::{
    Core,
    effect::{Action, Effect, Input, Order},
    id::GuardId,
    incident::Cause,
    policy::{Policy, Response, Workload},
    refusal::refusal,
    registry::Observed,
};

use super::{
    Exit, Failure, HostOptions,
    diagnose::DEFAULT_POLICY,
    out,
    resolve::resolve,
    run::{bad, read_policy},
    runtime,
};
use crate::{
    control::{client, lock, wire::ReloadPolicy},
    engine::{Container, Engines, Speaker},
    guards::Held,
    host::{
        cgroup::{Cgroup, CgroupSearch},
        clock, facts,
        layout::Layout,
        observer::Observer,
    },
    policy_files,
    render::{self, Decision, ExplainedTarget},
};

/// The only guard of the core that judges a target.
const TARGET: GuardId = GuardId(0);

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    verb: PolicyVerb,
}

#[derive(Debug, Subcommand)]
enum PolicyVerb {
    /// Check a policy: its files, and whether each rule matches something that runs on this host.
    Check {
        /// Policy file; the files in the folder beside it are checked too.
        #[arg(value_name = "FILE", default_value = DEFAULT_POLICY)]
        file: PathBuf,
        /// Check the files alone, for another host.
        #[arg(long)]
        offline: bool,
    },
    /// Show the policy that the files make together, with the origin of each value.
    Show {
        /// Policy file.
        #[arg(long, value_name = "FILE", default_value = DEFAULT_POLICY)]
        policy: PathBuf,
    },
    /// Explain which rule applies to a target, where each value comes from, and what would be done
    /// about what runs there now.
    Explain {
        /// Container name, id or id prefix; docker:NAME, unit:NAME, cgroup:/path or pid:N.
        target: String,
        /// Policy file.
        #[arg(long, value_name = "FILE", default_value = DEFAULT_POLICY)]
        policy: PathBuf,
        /// Print JSON instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Have the agent read its policy again. A bad policy changes nothing.
    Reload,
}

pub fn policy(host: &HostOptions, arguments: &Arguments) -> Result<Exit, Failure> {
    match &arguments.verb {
        PolicyVerb::Check { file, offline } => check(host, file, *offline),
        PolicyVerb::Show { policy } => {
            out::answer(&read_policy(policy)?.show());
            Ok(Exit::Done)
        }
        PolicyVerb::Explain { target, policy, json } => explain(host, target, policy, *json),
        PolicyVerb::Reload => reload(host),
    }
}

fn reload(host: &HostOptions) -> Result<Exit, Failure> {
    let answer = client::call(&lock::socket(&host.run_dir), &ReloadPolicy {});
    let answer = answer.map_err(Failure::could_not)?;
    if let Some(error) = answer.error {
        return Err(Failure::data(format!("{error}\nthe old policy stays in force")));
    }
    let mut text = format!("read {}\n", answer.files.join(", "));
    answer.changes.iter().for_each(|change| text += &format!("  {change}\n"));
    if answer.changes.is_empty() {
        text += "nothing has changed\n";
    }
    out::answer(&text);
    Ok(Exit::Done)
}

fn check(host: &HostOptions, file: &Path, offline: bool) -> Result<Exit, Failure> {
    let read = policy_files::read(file).map_err(bad)?;
    let policy = read.policy;
    let rules = policy.guard.len();
    let plural = if rules == 1 { "" } else { "s" };
    let mut text = format!("good: {rules} rule{plural} in {}\n", read.files.join(", "));
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

fn explain(host: &HostOptions, target: &str, file: &Path, json: bool) -> Result<Exit, Failure> {
    let policy = read_policy(file)?;
    let (held, workload) = runtime()?.block_on(async {
        let held = resolve(host, target).await?;
        let workload = described(host, &held).await?;
        Ok::<_, Failure>((held, workload))
    })?;
    let processes = processes(&held)?;
    let explained = judged(policy, &held, workload, processes);
    let text = if json {
        serde_json::to_string(&explained).map_err(Failure::could_not)?
    } else {
        render::explained(&explained)
    };
    out::answer(&text);
    Ok(if explained.policy.is_guarded { Exit::Done } else { Exit::Wrong })
}

/// Describes a target as the agent would.
async fn described(host: &HostOptions, held: &Held) -> Result<Workload, Failure> {
    let plain = Workload { cgroup: held.cgroup.path().to_owned(), ..Workload::default() };
    let Some(id) = &held.container else { return Ok(plain) };
    match host.engines().inspect(id).await {
        Ok(Some((by, container))) if by.may_speak_for(&held.cgroup) => {
            Ok(container.workload(&held.cgroup))
        }
        Ok(_) => Ok(plain),
        Err(error) => Err(Failure::could_not(format!(
            "container {}: its engine does not describe it: {error}",
            held.subject.name
        ))),
    }
}

fn processes(held: &Held) -> Result<Vec<Observed>, Failure> {
    let members = held.cgroup.members(|_| true).map_err(Failure::could_not)?;
    let pids = members.map_or_else(Vec::new, |members| members.processes);
    Ok(Observer::start().observe(pids))
}

/// Has a core judge what runs in the target now.
fn judged(
    mut policy: Policy,
    held: &Held,
    workload: Workload,
    processes: Vec<Observed>,
) -> ExplainedTarget {
    // Detector D waits for a first look, which does not come here.
    policy.evidence.every = Duration::from_secs(1);
    let (now, terms) = (clock::now(), policy.terms(&workload));
    let mut core = Core::new(policy);
    let mut effects = Vec::new();
    if let Some(terms) = terms {
        let refusal = facts::gather(&held.cgroup).ok().as_ref().and_then(refusal);
        let (guard, name) = (TARGET, held.subject.name.clone());
        let workload = Some(Box::new(workload.clone()));
        core.step(now, Input::Guarded { guard, name, terms, workload, refusal }, &mut effects);
        core.step(now, Input::Baseline { guard, processes: processes.clone() }, &mut effects);
        for second in 1..=2 {
            core.step(now.after(Duration::from_secs(second)), Input::Tick, &mut effects);
        }
    }
    let servers: Vec<(String, usize)> = core.guard(TARGET).map_or_else(Vec::new, |guard| {
        guard.registry.identities().map(|(name, one)| (name.to_owned(), one.live())).collect()
    });
    let names = servers.iter().map(|(name, _)| name.as_str());
    ExplainedTarget {
        name: if workload.name.is_empty() {
            held.subject.name.clone()
        } else {
            workload.name.clone()
        },
        cgroup: held.subject.cgroup.clone(),
        image: Some(workload.image.clone()).filter(|image| !image.is_empty()),
        policy: core.policy().explain(&workload, names),
        processes: processes.len(),
        decisions: effects.iter().filter_map(decision).collect(),
        servers_live: servers,
    }
}

fn decision(effect: &Effect) -> Option<Decision> {
    let Effect::Act(Order { action, .. }) = effect else { return None };
    let (response, cause, refused): (Option<Response>, &Cause, _) = match action {
        Action::Warn { cause } => (None, cause, None),
        Action::Contain(contain) => (Some(contain.response), &contain.cause, None),
        Action::Refuse { response, cause, refusal, .. } => {
            (Some(*response), cause, Some(refusal.to_string()))
        }
        Action::RefusalBegins { .. }
        | Action::RefusalEnds
        | Action::Renew { .. }
        | Action::Loosen { .. }
        | Action::Release { .. }
        | Action::Disown { .. }
        | Action::WriteLimit { .. }
        | Action::GiveUpLimit { .. }
        | Action::LeaveLimit { .. } => return None,
    };
    let code = cause.detector.map_or_else(String::new, |detector| format!("{detector:?}"));
    let identity = cause.identity.as_ref().map_or_else(String::new, |name| format!(" {name}"));
    let numbers = cause.numbers.iter().map(|(name, value)| (name.clone(), *value)).collect();
    Some(Decision { response, cause: code + &identity, numbers, refused })
}
