//! What was asked for, and how far it came: the engine, other layers, and the file behind them.

use super::super::{
    code::Code,
    facts::{ContainerFacts, EngineKind},
    report::{Certainty::Proved, Finding, Keeper},
    view::{StoredLimit, View},
};
use super::{
    file::{against_the_file, as_sure_as_its_variables, from_compose},
    layer::wrong_layer,
};

pub fn cause(view: &View<'_>) -> Option<Finding> {
    let (container, stored) = (view.container()?, view.stored?);
    if stored == StoredLimit::Unlimited(0) && is_docker(view) {
        // Docker keeps no 0 that a container was made with, so no file and no tool is behind it.
        return Some(with_the_kernels_word(explicit(view, stored), view));
    }
    let finding = match (stored, &view.compose) {
        (StoredLimit::Limit(limit), Some(compose)) => {
            against_the_file(view, compose, container, limit)
        }
        (StoredLimit::Limit(_), None) => None,
        (_, Some(compose)) => Some(
            from_compose(view, compose, container)
                .unwrap_or_else(|| unlimited(view, container, stored)),
        ),
        (_, None) => Some(unlimited(view, container, stored)),
    }?;
    Some(with_the_kernels_word(as_sure_as_its_variables(finding, view), view))
}

fn is_docker(view: &View<'_>) -> bool {
    view.facts.engine.as_ref().is_some_and(|engine| engine.kind == EngineKind::Docker)
}

/// Whatever the cause, this is what it comes to.
fn with_the_kernels_word(finding: Finding, view: &View<'_>) -> Finding {
    let Some(kernel) = view.kernel else { return finding };
    let finding = finding.seen("limit in force", view.file_of("pids.max"), kernel);
    let default = view.unit().and_then(|unit| unit.default_tasks_max);
    match (view.stored_limit(), default) {
        (None, Some(default)) if Some(default) == view.lasting => finding.seen(
            "systemd's default, which is in force for want of another (MG-P034)",
            "DefaultTasksMax",
            default,
        ),
        _ => finding,
    }
}

/// No compose file is behind the container, or none that says anything.
fn unlimited(view: &View<'_>, container: &ContainerFacts, stored: StoredLimit) -> Finding {
    if container.swarm_service.is_some() {
        let service = container.swarm_service.as_deref().unwrap_or_default();
        return Finding::new(Code::Swarm, Proved, "the swarm service has no PID limit")
            .seen("swarm service", "label com.docker.swarm.service.id", service)
            .seen("engine", "HostConfig.PidsLimit", view.stored_word())
            .by_hand(Keeper::Swarm, "docker service update --limit-pids N SERVICE");
    }
    if let Some(finding) = wrong_layer(view, container) {
        return finding;
    }
    explicit(view, stored)
}

/// Somebody said so, by a number that means none or by no number.
fn explicit(view: &View<'_>, stored: StoredLimit) -> Finding {
    let title = match stored {
        StoredLimit::Null => {
            "the container was made without a PID limit: the engine keeps null, also where 0 or -1 \
             was given"
        }
        StoredLimit::Unlimited(0) => {
            "an update set the limit to 0 or -1: the engine keeps 0, which means none, also after \
             a restart"
        }
        StoredLimit::Unlimited(_) => "the limit was given as -1, which means none",
        StoredLimit::Limit(_) => "the engine keeps a limit",
    };
    Finding::new(Code::ExplicitUnlimited, Proved, title)
        .seen("engine", "HostConfig.PidsLimit", view.stored_word())
        .repaired(Keeper::ContainerMaker, view.repair_command(view.declared()), view.survives())
}
