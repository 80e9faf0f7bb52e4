//! Why a declared limit did not reach the engine, or why none was declared.

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
        // Docker does not store a 0 given at creation, so this one comes from an update, not from a file.
        return Some(with_limit_in_force(explicit(view, stored), view));
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
    Some(with_limit_in_force(as_sure_as_its_variables(finding, view), view))
}

fn is_docker(view: &View<'_>) -> bool {
    view.facts.engine.as_ref().is_some_and(|engine| engine.kind == EngineKind::Docker)
}

/// Adds the limit that the kernel enforces to the evidence.
fn with_limit_in_force(finding: Finding, view: &View<'_>) -> Finding {
    let Some(kernel) = view.kernel else { return finding };
    let finding = finding.seen("limit in force", view.file_of("pids.max"), kernel);
    let default = view.unit().and_then(|unit| unit.default_tasks_max);
    match (view.stored_limit(), default) {
        (None, Some(default)) if Some(default) == view.lasting => finding.seen(
            "systemd's default, in force because no other limit is set (MG-P034)",
            "DefaultTasksMax",
            default,
        ),
        _ => finding,
    }
}

/// Reports a container without a limit, if no compose file explains why.
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

/// Reports a container that was created or updated without a limit, or with a number that means none.
fn explicit(view: &View<'_>, stored: StoredLimit) -> Finding {
    let title = match stored {
        StoredLimit::Null => {
            "the container was created without a PID limit; the engine stores null, even if 0 or \
             -1 was given"
        }
        StoredLimit::Unlimited(0) => {
            "an update set the limit to 0 or -1; the engine stores 0, which means no limit and \
             survives a restart"
        }
        StoredLimit::Unlimited(_) => "the limit was set to -1, which means no limit",
        StoredLimit::Limit(_) => "the engine stores a limit",
    };
    Finding::new(Code::ExplicitUnlimited, Proved, title)
        .seen("engine", "HostConfig.PidsLimit", view.stored_word())
        .repaired(Keeper::ContainerMaker, view.repair_command(view.declared()), view.survives())
}
