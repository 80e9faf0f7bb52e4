//! The rules, one file per family. Within a family the first match names the cause. Several families may
//! match, because several causes can act at once.

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
    facts::Clamp,
    report::{Finding, Fine, Verdict},
    sizing::Sizing,
    view::View,
};
use crate::limit::Limit;

/// Maximum number of processes or containers named in the evidence of one finding.
const SHOWN: usize = 5;

/// Lowers the severity to medium if the engine stores a limit and the kernel enforces `compared` or less:
/// critical means that no limit is in force.
fn no_hole_below(mut finding: Finding, view: &View<'_>, compared: u64) -> Finding {
    let in_force = view.lasting.is_some_and(|kernel| kernel <= Limit::Tasks(compared));
    if view.stored_limit().is_some() && in_force {
        finding.severity = finding.severity.max(Severity::Medium);
    }
    finding
}

/// Returns all findings, in the order of the families.
pub fn findings(view: &View<'_>) -> Vec<Finding> {
    // If the container is on another kernel or in another cgroup, no other rule applies to it.
    if let Some(finding) = host::elsewhere(view) {
        return vec![finding];
    }
    let mut found = Vec::new();
    found.extend(host::no_controller(view));
    if found.is_empty() {
        // A limit that only the kernel has comes first: it was set on purpose.
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

/// Returns states that look wrong but are not, and signs that accompany a finding.
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
        let title = "this cgroup is threaded: its limit works as in any other cgroup".to_owned();
        fine.push(Fine::new(Code::Threaded, title));
    }
    fine.extend(above::meant(view));
    let nested = facts.nested();
    if !nested.is_empty() {
        let inside: usize = nested.values().sum();
        let title = format!(
            "{inside} of {processes} processes are in {} cgroups below this one and count here too",
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
            0 => format!("the kernel enforces a limit of {effective}; {current} tasks exist"),
            _ => format!(
                "the kernel enforces a limit of {effective}; {current} tasks exist, and {refused} \
                 forks have been refused so far"
            ),
        };
        fine.push(Fine::new(Code::Enforced, title));
    }
    fine.extend(host::other_hierarchy(view));
    fine.extend(kernel::default_in_force(view));
    if verdict == Verdict::Unknown {
        let title = "no limit could be read in its cgroup or in any cgroup above it";
        fine.push(Fine::new(Code::Unknown, title));
    }
    fine
}

/// Returns remarks that are not findings.
pub fn notes(view: &View<'_>, verdict: Verdict, sizing: Option<&Sizing>) -> Vec<String> {
    let mut notes = Vec::new();
    if let (Some(wanted), Some(in_force)) = (view.facts.wanted, view.kernel)
        && in_force != Limit::Tasks(wanted)
    {
        notes.push(format!(
            "a repair to {wanted} is in progress: {in_force} is in force until enough tasks have \
             ended"
        ));
    }
    if let Some(clamp) = view.our_clamp() {
        let Clamp { wrote, incident, found, beside_freeze } = clamp;
        let thaw = format!("`mcp-guard thaw {}`", view.target_word());
        notes.push(if *beside_freeze {
            format!(
                "mcp-guard has lowered the limit to {wrote} while it freezes the target for \
                 incident {incident}; it was {found}; {thaw} ends the freeze"
            )
        } else {
            format!(
                "mcp-guard has clamped the limit to {wrote} for incident {incident}; it was \
                 {found}; {thaw} releases the clamp"
            )
        });
    }
    let processes = view.facts.members.len();
    let Some(container) = view.container() else { return notes };
    if let Some(health) = &container.health
        && sizing.is_some_and(|sizing| sizing.servers > 1)
    {
        notes.push(format!(
            "the health check reports {health:?}, but it does not check the {processes} processes \
             in the container"
        ));
    }
    let memory = container.memory;
    if memory.max.is_none() && processes > 1 {
        let either = if verdict == Verdict::NotEnforced { " either" } else { "" };
        notes.push(format!("memory has no limit{either}: memory.max is max"));
    }
    if let Some(kills) = memory.kills.filter(|kills| *kills > 0) {
        notes.push(format!("the kernel killed {kills} of its processes because memory ran out"));
    }
    if !container.init_process && !view.facts.zombies.is_empty() {
        notes.push(
            "the container has no init process that reaps dead processes: set `init: true` in the \
             compose file"
                .to_owned(),
        );
    }
    notes
}
