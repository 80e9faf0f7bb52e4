//! More tasks than the limit in force: the kernel checks it at fork, and only there.

use super::super::{
    code::Code,
    facts::Process,
    report::{
        Certainty::{Possible, Proved},
        Finding, Keeper,
    },
    view::View,
};
use super::SHOWN;
use crate::limit::Limit;

pub fn cause(view: &View<'_>) -> Option<Finding> {
    let (current, limit) = match (view.current, view.kernel) {
        (Some(current), Some(Limit::Tasks(limit))) if current > limit => (current, limit),
        _ => return None,
    };
    let finding = if view.born_inside() > limit || view.moved_in.is_empty() {
        lowered(view, current, limit)
    } else {
        moved_in(view, current, limit)
    };
    Some(finding.seen("tasks", view.file_of("pids.current"), current).seen(
        "limit in force",
        view.file_of("pids.max"),
        limit,
    ))
}

fn lowered(view: &View<'_>, current: u64, limit: u64) -> Finding {
    let born = view.born_inside();
    // Without an engine nobody knows which processes were the first.
    let proof = view.container().is_some() && born > limit;
    let finding = Finding::new(
        Code::LoweredBelow,
        if proof { Proved } else { Possible },
        format!(
            "{current} tasks were there before the limit {limit} was: it stops new ones and ends \
             none"
        ),
    )
    .seen("tasks born inside", "threads and zombies, less what came in", born)
    .not(format!(
        "MG-P040, MG-P041 moved in: only {} processes have a parent outside",
        view.facts.roots().len()
    ));
    let command =
        "end what is too much; until then every fork fails, docker exec and health checks too";
    finding.by_hand(Keeper::LimitLowerer, command)
}

fn moved_in(view: &View<'_>, current: u64, limit: u64) -> Finding {
    let execs = view.container().map(|container| container.execs.as_slice()).unwrap_or_default();
    let (by_exec, by_hand): (Vec<&Process>, Vec<&Process>) =
        view.moved_in.iter().partition(|process| execs.contains(&process.pid));
    let excess = current - limit;
    let exec = by_exec.len() >= by_hand.len() && !by_exec.is_empty();
    let (code, who, whose) = if exec {
        (Code::ExecMigration, &by_exec, "docker exec")
    } else {
        (Code::ExternalMigration, &by_hand, "a write to cgroup.procs")
    };
    // Outside of a container the first process looks as one that came in.
    let enough = u64::try_from(who.len()).unwrap_or(u64::MAX) >= excess;
    let certainty = if enough && view.container().is_some() { Proved } else { Possible };
    let count = match who.len() {
        1 => "a process".to_owned(),
        count => format!("{count} processes"),
    };
    let title =
        format!("{count} came in by {whose}, which is not checked against the limit {limit}");
    let mut finding = Finding::new(code, certainty, title);
    for process in who.iter().take(SHOWN) {
        finding = finding.seen(
            "came in",
            format!("process {}, parent {}", process.pid, process.parent),
            process.argv.join(" "),
        );
    }
    let finding = finding.not(format!(
        "MG-P042 a limit younger than its tasks: only {} tasks were born inside",
        view.born_inside()
    ));
    if exec {
        finding.by_hand(Keeper::ExecCaller, "end them; killing the client does not")
    } else {
        finding.by_hand(Keeper::ProcessMover, "end them, or move them back")
    }
}
