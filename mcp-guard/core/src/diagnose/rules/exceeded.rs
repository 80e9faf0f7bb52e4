//! More tasks than the limit in force allows: the kernel checks it only at fork.

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
    // Without an engine it is not known which processes were the first.
    let proof = view.container().is_some() && born > limit;
    let finding = Finding::new(
        Code::LoweredBelow,
        if proof { Proved } else { Possible },
        format!(
            "{current} tasks were running when the limit of {limit} was set: a limit refuses new \
             tasks, but ends none"
        ),
    )
    .seen("tasks created inside", "threads and zombies, without those moved in", born)
    .not(format!(
        "MG-P040 or MG-P041 (moved in): only {} processes have a parent outside",
        view.facts.roots().len()
    ));
    let command = "end the excess processes; until then every fork fails, also in docker exec and \
                   health checks";
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
    // Without a container, the first process looks as if it had been moved in.
    let enough = u64::try_from(who.len()).unwrap_or(u64::MAX) >= excess;
    let certainty = if enough && view.container().is_some() { Proved } else { Possible };
    let count = match who.len() {
        1 => "a process".to_owned(),
        count => format!("{count} processes"),
    };
    let title = format!(
        "{count} came in through {whose}, which is not checked against the limit of {limit}"
    );
    let mut finding = Finding::new(code, certainty, title);
    for process in who.iter().take(SHOWN) {
        finding = finding.seen(
            "moved in",
            format!("process {}, parent {}", process.pid, process.parent),
            process.command_line(),
        );
    }
    let finding = finding.not(format!(
        "MG-P042 (a limit set below the running tasks): only {} tasks were created inside",
        view.born_inside()
    ));
    if exec {
        finding.by_hand(
            Keeper::ExecCaller,
            "end these processes; killing the docker exec client does not end them",
        )
    } else {
        finding.by_hand(
            Keeper::ProcessMover,
            "end these processes, or move them back to the cgroup they came from",
        )
    }
}
