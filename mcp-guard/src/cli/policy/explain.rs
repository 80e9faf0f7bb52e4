//! Explains the policy of one target, and has a core judge what runs there now.

use std::{path::Path, time::Duration};

use mcp_guard_core::{
    Core,
    audit::Subject,
    effect::{Action, Effect, Input, Order},
    id::GuardId,
    policy::{Policy, Workload},
    refusal::{Refusal, refusal},
    registry::Observed,
};

use super::{
    super::{Exit, Failure, HostOptions, out, resolve::resolve, runtime},
    shown::{self, Chosen},
};
use crate::{
    guards::Held,
    host::{clock, facts, observer::Observer},
    render::{self, Decision, ExplainedTarget, ShownPolicy},
};

/// The only guard of the core that judges a target.
const TARGET: GuardId = GuardId(0);

pub(super) fn explain(
    host: &HostOptions,
    target: &str,
    file: Option<&Path>,
    json: bool,
) -> Result<Exit, Failure> {
    let Chosen { policy, about } = shown::choose(host, file)?;
    let (held, workload) = runtime()?.block_on(async {
        let held = resolve(host, target).await?;
        let workload = described(host, &held).await?;
        Ok::<_, Failure>((held, workload))
    })?;
    let processes = processes(&held)?;
    let forbidden = facts::gather(&held.cgroup).map(|facts| refusal(&facts));
    let forbidden = forbidden.map_err(|error| error.to_string());
    let explained = judged((policy, about), &held.subject, workload, processes, forbidden);
    let text = if json {
        serde_json::to_string(&explained).map_err(Failure::could_not)?
    } else {
        render::explained(&explained)
    };
    out::answer(&text);
    let is_whole = explained.policy.is_guarded && explained.forbidden_unknown.is_none();
    Ok(if is_whole { Exit::Done } else { Exit::Wrong })
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

/// Has a core judge what runs in the target now. `forbidden`: whether a bystander rule forbids acting on it, or why
/// that is not known.
fn judged(
    (mut policy, source): (Policy, ShownPolicy),
    subject: &Subject,
    workload: Workload,
    processes: Vec<Observed>,
    forbidden: Result<Option<Refusal>, String>,
) -> ExplainedTarget {
    let (refusal, forbidden_unknown) = match forbidden {
        Ok(refusal) => (refusal, None),
        Err(error) => (None, Some(error)),
    };
    // Detector D waits for a first look, which does not come here.
    policy.evidence.every = Duration::from_secs(1);
    let (now, terms) = (clock::now(), policy.terms(&workload));
    let mut core = Core::new(policy);
    let mut effects = Vec::new();
    if let Some(terms) = terms {
        let (guard, name) = (TARGET, subject.name.clone());
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
        name: if workload.name.is_empty() { subject.name.clone() } else { workload.name.clone() },
        cgroup: subject.cgroup.clone(),
        image: Some(workload.image.clone()).filter(|image| !image.is_empty()),
        source,
        policy: core.policy().explain(&workload, names),
        forbidden_unknown,
        processes: processes.len(),
        decisions: effects.iter().filter_map(decision).collect(),
        servers_live: servers,
    }
}

fn decision(effect: &Effect) -> Option<Decision> {
    let Effect::Act(Order { action, .. }) = effect else { return None };
    let (response, cause, refused) = match action {
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
        // Nobody has looked at a server.
        | Action::Suspend(_)
        | Action::Resume { .. }
        | Action::Reap(_)
        | Action::GiveUpServers { .. }
        | Action::LeaveLimit { .. } => return None,
    };
    Some(Decision { response, cause: cause.clone(), refused })
}

#[cfg(test)]
mod tests {
    use mcp_guard_core::id::CgroupId;

    use super::*;
    use crate::render::PolicyFrom;

    /// A refusal that could not be looked for is not taken for none.
    #[test]
    fn facts_that_cannot_be_read_are_reported() {
        let subject =
            Subject { name: "web".to_owned(), cgroup: "/web".to_owned(), cgroup_id: CgroupId(7) };
        let about = ShownPolicy { from: PolicyFrom::Files, differs: None, note: None };
        let forbidden = |forbidden: Result<Option<Refusal>, String>| {
            let chosen = (Policy::default(), about.clone());
            judged(chosen, &subject, Workload::default(), Vec::new(), forbidden)
        };
        assert_eq!(forbidden(Ok(None)).forbidden_unknown, None);
        let unknown = forbidden(Err("Permission denied".to_owned()));
        let said = render::explained(&unknown);
        assert!(said.contains("NOT KNOWN whether anything forbids acting on it"), "{said}");
        assert!(said.contains("could not be read: Permission denied\n"), "{said}");
    }
}
