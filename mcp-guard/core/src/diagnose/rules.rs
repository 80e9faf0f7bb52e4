//! The rules, one file per family. Within a family the first that matches names the cause; families
//! stand beside each other, because several causes may be at work at once.

mod above;
mod declared;
mod elsewhere;
mod exceeded;
mod file;
mod host;
mod kernel;
mod layer;

pub use self::host::is_nearly_full;
use super::{
    code::{Code, Severity},
    report::{Finding, Fine, Verdict},
    sizing::Sizing,
    view::View,
};
use crate::limit::Limit;

/// Processes or containers named in the evidence of one finding.
const SHOWN: usize = 5;

/// Critical means that no limit is in force: not so where the engine keeps one, and the kernel has none
/// looser than the number that is compared.
fn no_hole_below(mut finding: Finding, view: &View<'_>, compared: u64) -> Finding {
    let in_force = view.lasting.is_some_and(|kernel| kernel <= Limit::Tasks(compared));
    if view.stored_limit().is_some() && in_force {
        finding.severity = finding.severity.max(Severity::Medium);
    }
    finding
}

/// Everything that is wrong, in the order of the families.
pub fn findings(view: &View<'_>) -> Vec<Finding> {
    // Where the container is not where we look, nothing below would be about it.
    if let Some(finding) = host::elsewhere(view) {
        return vec![finding];
    }
    let mut found = Vec::new();
    found.extend(host::no_controller(view));
    if found.is_empty() {
        // A number in the kernel that nobody else knows of comes first: somebody meant it.
        found.extend(kernel::raw_value_that_will_go(view));
        found.extend(declared::cause(view));
        found.extend(kernel::cause(view));
    }
    found.extend(host::api_too_old(view));
    found.extend(above::cause(view));
    found.extend(exceeded::cause(view));
    found.extend(elsewhere::causes(view));
    found.extend(host::exhausted(view));
    found
}

/// What looks wrong and is not, and signs that point to a finding beside them.
pub fn fine(view: &View<'_>, verdict: Verdict) -> Vec<Fine> {
    let mut fine = Vec::new();
    let facts = view.facts;
    let (threads, processes) = (facts.threads(), facts.members.len() as u64);
    if threads > processes && verdict == Verdict::Enforced {
        let title = format!(
            "{processes} processes have {threads} threads, and the kernel counts threads: \
             pids.current is {}",
            view.current.map_or_else(|| "unknown".to_owned(), |current| current.to_string())
        );
        fine.push(Fine::new(Code::Threads, title));
    }
    if facts.own().is_some_and(|own| own.threaded) {
        let title = "a threaded cgroup: its limit works as any other's".to_owned();
        fine.push(Fine::new(Code::Threaded, title));
    }
    fine.extend(above::meant(view));
    let nested = facts.nested();
    if !nested.is_empty() {
        let inside: usize = nested.values().sum();
        let title = format!(
            "{inside} of {processes} processes are in {} cgroups below, and count here too",
            nested.len()
        );
        fine.push(Fine::new(Code::NestedInside, title));
    }
    if verdict == Verdict::Enforced
        && let Some(effective) = view.effective
    {
        let refused = facts.own().and_then(|own| own.own_denials.or(own.denials)).unwrap_or(0);
        let current = view.current.unwrap_or(0);
        let title = match refused {
            0 => format!("the kernel enforces {effective}; {current} tasks are there"),
            _ => format!(
                "the kernel enforces {effective}; {current} tasks are there, and {refused} forks \
                 were refused so far"
            ),
        };
        fine.push(Fine::new(Code::Enforced, title));
    }
    fine.extend(host::other_hierarchy(view));
    fine.extend(kernel::default_in_force(view));
    if verdict == Verdict::Unknown {
        let title = "no limit was read on the way from its cgroup to the root";
        fine.push(Fine::new(Code::Unknown, title));
    }
    fine
}

/// What stands beside the pids.
pub fn notes(view: &View<'_>, verdict: Verdict, sizing: Option<&Sizing>) -> Vec<String> {
    let mut notes = Vec::new();
    if let (Some(wanted), Some(in_force)) = (view.facts.wanted, view.kernel)
        && in_force != Limit::Tasks(wanted)
    {
        notes.push(format!(
            "a repair to {wanted} is on its way: {in_force} is in force until tasks end"
        ));
    }
    if let Some(clamp) = view.our_clamp() {
        notes.push(format!(
            "mcp-guard's clamp of incident {} holds {}; it found {}; `mcp-guard thaw {}` gives it back",
            clamp.incident,
            clamp.wrote,
            clamp.found,
            view.target_word()
        ));
    }
    let processes = view.facts.members.len();
    let Some(container) = view.container() else { return notes };
    if let Some(health) = &container.health
        && sizing.is_some_and(|sizing| sizing.servers > 1)
    {
        notes.push(format!(
            "the health check says {health:?} of a container with {processes} processes: it does \
             not look at them"
        ));
    }
    let memory = container.memory;
    if memory.max.is_none() && processes > 1 {
        let either = if verdict == Verdict::NotEnforced { " either" } else { "" };
        notes.push(format!("memory has no limit{either}: memory.max is max"));
    }
    if let Some(kills) = memory.kills.filter(|kills| *kills > 0) {
        notes.push(format!("the kernel killed {kills} of its processes for want of memory"));
    }
    if !container.init_process && !view.facts.zombies.is_empty() {
        notes.push("it runs without an init that reaps: `init: true` in compose".to_owned());
    }
    notes
}
