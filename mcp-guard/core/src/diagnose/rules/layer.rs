//! Limits that were set on another layer than the container's own.

use super::super::{
    code::Code,
    facts::ContainerFacts,
    report::{Certainty::Proved, Finding, Keeper},
    view::View,
};
use crate::limit::Limit;

/// Reports a limit that was set where it does not affect this container.
pub(super) fn wrong_layer(view: &View<'_>, container: &ContainerFacts) -> Option<Finding> {
    if let Some(nproc) = container.nproc_ulimit.filter(|nproc| *nproc > 0) {
        return Some(
            Finding::new(
                Code::WrongLayer,
                Proved,
                format!(
                    "the limit was set as ulimit nproc={nproc}, which counts a user's processes on \
                     the whole host and does not apply to root"
                ),
            )
            .seen("ulimit", "HostConfig.Ulimits", format!("nproc={nproc}"))
            .seen("engine", "HostConfig.PidsLimit", view.stored_word())
            .repaired(
                Keeper::ContainerMaker,
                view.repair_command(None),
                view.survives(),
            ),
        );
    }
    let tasks_max = view.facts.engine.as_ref()?.own_tasks_max?;
    (tasks_max != Limit::Max).then(|| {
        Finding::new(
            Code::WrongLayer,
            Proved,
            format!(
                "TasksMax={tasks_max} is set on the engine's own unit, but containers are not \
                 below that unit"
            ),
        )
        .seen("engine's own unit", "TasksMax", tasks_max)
        .seen("engine", "HostConfig.PidsLimit", view.stored_word())
        .repaired(Keeper::ContainerMaker, view.repair_command(None), view.survives())
    })
}
