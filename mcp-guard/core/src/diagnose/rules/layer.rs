//! A limit that stands on another layer than the container's own.

use super::super::{
    code::Code,
    facts::ContainerFacts,
    report::{Certainty::Proved, Finding, Keeper},
    view::View,
};
use crate::limit::Limit;

/// A limit that somebody set where it does not reach this container.
pub(super) fn wrong_layer(view: &View<'_>, container: &ContainerFacts) -> Option<Finding> {
    if let Some(nproc) = container.nproc_ulimit.filter(|nproc| *nproc > 0) {
        return Some(
            Finding::new(
                Code::WrongLayer,
                Proved,
                format!(
                    "the limit was given as ulimit nproc={nproc}, which counts a user's processes \
                     on the whole host and does not bind root"
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
                "TasksMax={tasks_max} stands on the engine's own unit; containers are not below it"
            ),
        )
        .seen("unit of the engine", "TasksMax", tasks_max)
        .seen("engine", "HostConfig.PidsLimit", view.stored_word())
        .repaired(Keeper::ContainerMaker, view.repair_command(None), view.survives())
    })
}
