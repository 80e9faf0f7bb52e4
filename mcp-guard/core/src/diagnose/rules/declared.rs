//! What was asked for, and how far it came: compose file, tool, engine.

use std::time::Duration;

use humantime::format_duration;

use super::super::{
    code::Code,
    facts::{Compose, Container, PODMAN_COMPOSE, Says},
    report::{
        Certainty::{self, Possible, Proved},
        Finding,
    },
    version::version,
    view::{Stored, View, shell_word},
};
use super::no_hole_below;
use crate::limit::Limit;

pub fn cause(view: &View<'_>) -> Option<Finding> {
    let (container, stored) = (view.container()?, view.stored?);
    if stored == Stored::Unlimited(0) && is_docker(view) {
        // Docker keeps no 0 that a container was made with, so no file and no tool is behind it.
        return Some(with_the_kernels_word(explicit(view, stored), view));
    }
    let finding = match (stored, &view.facts.compose) {
        (Stored::Limit(limit), Some(compose)) => against_the_file(view, compose, container, limit),
        (Stored::Limit(_), None) => None,
        (_, Some(compose)) => Some(
            from_compose(view, compose, container)
                .unwrap_or_else(|| unlimited(view, container, stored)),
        ),
        (_, None) => Some(unlimited(view, container, stored)),
    }?;
    Some(with_the_kernels_word(as_sure_as_its_variables(finding, view), view))
}

/// What compose was given wins over every file, and nothing keeps it.
fn as_sure_as_its_variables(mut finding: Finding, view: &View<'_>) -> Finding {
    if !view.filled {
        return finding;
    }
    finding.certainty = Possible;
    finding.seen(
        "a variable is filled in",
        "env files and defaults, as they are now",
        "the shell that ran compose may have had another",
    )
}

fn is_docker(view: &View<'_>) -> bool {
    view.facts.engine.as_ref().is_some_and(|engine| engine.kind == "docker")
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

/// The engine has no limit, and a compose file is behind the container.
fn from_compose(view: &View<'_>, compose: &Compose, container: &Container) -> Option<Finding> {
    match &compose.says {
        Says::Limit { value, key, file, line, .. } => {
            let declared = u64::try_from(*value).ok().filter(|limit| *limit > 0);
            let Some(limit) = declared else {
                let title = format!("{key}: {value} in {file} means no limit");
                return Some(
                    Finding::new(Code::ExplicitUnlimited, Proved, title)
                        .seen("compose file", format!("{file}:{line}"), format!("{key}: {value}"))
                        .by_hand(
                            "compose file",
                            "put a number above 0 there, then docker compose up -d",
                        ),
                );
            };
            Some(never_arrived(view, compose, container, limit))
        }
        Says::Invalid { why } => Some(invalid(view, compose, container, why)),
        // A limit on another service is a better lead than one on another layer.
        Says::Nothing { elsewhere } => {
            let of_another_kind = wrong_layer(view, container).filter(|_| elsewhere.is_empty());
            if of_another_kind.is_some() {
                return of_another_kind;
            }
            let mut finding = Finding::new(
                Code::NeverDeclared,
                Proved,
                format!(
                    "the compose files declare no PID limit for the service {:?}",
                    compose.service
                ),
            )
            .seen("engine", "HostConfig.PidsLimit", stored_word(view))
            .repaired("compose file", view.repair_command(None), view.survives());
            for place in elsewhere {
                finding = finding.seen("a limit that is not this service's", place, "");
            }
            Some(finding)
        }
        Says::Unknown { why } => Some(
            Finding::new(
                Code::NeverDeclared,
                Possible,
                format!("the engine has no limit; what the compose files say is not known: {why}"),
            )
            .seen("engine", "HostConfig.PidsLimit", stored_word(view))
            .by_hand("compose file", compose_config(compose)),
        ),
        Says::NotAsked => None,
    }
}

/// The file has a limit, the engine has none: the tool dropped it, or never saw it.
fn never_arrived(view: &View<'_>, compose: &Compose, container: &Container, limit: u64) -> Finding {
    if let Some(why) = dropped_by(compose) {
        return dropped(view, compose, limit, why);
    }
    match age(compose, container) {
        Some(Age::FileIsNewer) => times(
            file_line(
                Finding::new(
                    Code::NotRecreated,
                    Proved,
                    format!(
                        "the file says {limit}, but the container is older than the file and was \
                         made without a limit"
                    ),
                ),
                compose,
            )
            .seen("engine", "HostConfig.PidsLimit", stored_word(view))
            .not("mended by a restart: it reads no file, only `up -d` makes the container anew"),
            compose,
            container,
        )
        .repaired("compose", view.repair_command(Some(limit)), view.survives()),
        age => {
            let certainty = Certainty::Possible;
            let finding = times(
                file_line(
                    Finding::new(
                        Code::ToolDropped,
                        certainty,
                        format!(
                            "the file says {limit} and is not newer than the container, yet the \
                             engine has no limit: the tool that made it dropped the key"
                        ),
                    ),
                    compose,
                )
                .seen("engine", "HostConfig.PidsLimit", stored_word(view)),
                compose,
                container,
            );
            let finding = match age {
                Some(_) => finding.not("MG-P001 not made anew: the file was there before"),
                None => finding,
            };
            finding.repaired("compose tool", view.repair_command(Some(limit)), view.survives())
        }
    }
}

/// A version that is known to pass no limit on.
fn dropped(view: &View<'_>, compose: &Compose, limit: u64, why: &str) -> Finding {
    let version = compose.version.clone().unwrap_or_default();
    let tool = &compose.tool;
    let title = format!("{tool} {version} ignored the limit {limit} of the file: {why}");
    file_line(Finding::new(Code::ToolDropped, Proved, title), compose)
        .seen("engine", "HostConfig.PidsLimit", stored_word(view))
        .seen("made by", format!("label with the version of {tool}"), version)
        .not("MG-P001 not made anew: this version never passes the key on")
        .repaired("compose tool", view.repair_command(Some(limit)), view.survives())
}

/// The engine has a limit, and the file another.
fn against_the_file(
    view: &View<'_>,
    compose: &Compose,
    container: &Container,
    stored: u64,
) -> Option<Finding> {
    if let Says::Invalid { why } = &compose.says {
        return Some(invalid(view, compose, container, why));
    }
    let file = view.file.filter(|file| *file != stored)?;
    // The engine's own default then stands where the file's number should.
    let finding = match dropped_by(compose) {
        Some(why) => dropped(view, compose, file, why),
        None => other_number(view, compose, container, file, stored),
    };
    Some(no_hole_below(finding, view, file))
}

/// The tool reads the key, and the file has another number than the engine.
fn other_number(
    view: &View<'_>,
    compose: &Compose,
    container: &Container,
    file: u64,
    stored: u64,
) -> Finding {
    let newer = age(compose, container) == Some(Age::FileIsNewer);
    let (code, title) = if newer {
        let title = format!(
            "the file says {file} and changed after the container was made; the engine has \
             {stored}: repair to {file}, or write {stored} into the file"
        );
        (Code::NotRecreated, title)
    } else {
        let title = format!(
            "the engine has {stored} and the unchanged file says {file}: somebody updated the \
             container behind the file"
        );
        (Code::Drift, title)
    };
    // Without both times it cannot be told which of them moved.
    let certainty = if age(compose, container).is_some() { Proved } else { Possible };
    let finding = file_line(Finding::new(code, certainty, title), compose).seen(
        "engine",
        "HostConfig.PidsLimit",
        stored,
    );
    let finding = if newer {
        finding
    } else {
        finding.not("MG-P001 not made anew: the file is older than the container")
    };
    let finding = times(finding, compose, container);
    if view.filled {
        // The container may well have what its maker gave it.
        return finding.by_hand("compose file", compose_config(compose));
    }
    finding.repaired("compose file", view.repair_command(Some(file)), view.survives())
}

fn invalid(view: &View<'_>, compose: &Compose, container: &Container, why: &str) -> Finding {
    let finding = Finding::new(
        Code::ComposeInvalid,
        Proved,
        format!("compose refuses the file, so the old container runs on: {why}"),
    )
    .seen("compose file", compose.files.join(", "), why)
    .seen("engine", "HostConfig.PidsLimit", stored_word(view));
    let finding = times(finding, compose, container);
    let finding = finding.by_hand("compose file", compose_config(compose));
    match view.stored_limit() {
        Some(stored) => no_hole_below(finding, view, stored),
        None => finding,
    }
}

/// No compose file is behind the container, or none that says anything.
fn unlimited(view: &View<'_>, container: &Container, stored: Stored) -> Finding {
    if container.swarm_service.is_some() {
        let service = container.swarm_service.as_deref().unwrap_or_default();
        return Finding::new(Code::Swarm, Proved, "the swarm service has no PID limit")
            .seen("swarm service", "label com.docker.swarm.service.id", service)
            .seen("engine", "HostConfig.PidsLimit", stored_word(view))
            .by_hand("swarm", "docker service update --limit-pids N SERVICE");
    }
    if let Some(finding) = wrong_layer(view, container) {
        return finding;
    }
    explicit(view, stored)
}

/// Somebody said so, by a number that means none or by no number.
fn explicit(view: &View<'_>, stored: Stored) -> Finding {
    let title = match stored {
        Stored::Null => {
            "the container was made without a PID limit: the engine keeps null, also where 0 or -1 \
             was given"
        }
        Stored::Unlimited(0) => {
            "an update set the limit to 0 or -1: the engine keeps 0, which means none, also after \
             a restart"
        }
        Stored::Unlimited(_) => "the limit was given as -1, which means none",
        Stored::Limit(_) => "the engine keeps a limit",
    };
    Finding::new(Code::ExplicitUnlimited, Proved, title)
        .seen("engine", "HostConfig.PidsLimit", stored_word(view))
        .repaired("whoever made it", view.repair_command(view.declared()), view.survives())
}

/// A limit that somebody set where it does not reach this container.
fn wrong_layer(view: &View<'_>, container: &Container) -> Option<Finding> {
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
            .seen("engine", "HostConfig.PidsLimit", stored_word(view))
            .repaired("whoever made it", view.repair_command(None), view.survives()),
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
        .seen("engine", "HostConfig.PidsLimit", stored_word(view))
        .repaired("whoever made it", view.repair_command(None), view.survives())
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Age {
    FileIsNewer,
    FileIsOlder,
}

/// Which came later. None where a time is missing.
fn age(compose: &Compose, container: &Container) -> Option<Age> {
    let (modified, created) = (compose.modified?, container.created?);
    Some(if modified > created { Age::FileIsNewer } else { Age::FileIsOlder })
}

fn times(finding: Finding, compose: &Compose, container: &Container) -> Finding {
    let (Some(modified), Some(created)) = (compose.modified, container.created) else {
        return finding;
    };
    let order = if modified > created { "after" } else { "before" };
    let apart = format_duration(Duration::from_secs(modified.abs_diff(created)));
    let when = format!("{apart} {order} the container was made");
    finding.seen("file changed", "mtime, Created", when)
}

fn file_line(finding: Finding, compose: &Compose) -> Finding {
    match &compose.says {
        Says::Limit { value, key, file, line, .. } => {
            finding.seen("compose file", format!("{file}:{line}"), format!("{key}: {value}"))
        }
        Says::Nothing { .. } | Says::Invalid { .. } | Says::Unknown { .. } | Says::NotAsked => {
            finding
        }
    }
}

fn stored_word(view: &View<'_>) -> String {
    match view.stored {
        None => "unknown".to_owned(),
        Some(Stored::Null) => "null".to_owned(),
        Some(Stored::Unlimited(value)) => value.to_string(),
        Some(Stored::Limit(limit)) => limit.to_string(),
    }
}

fn compose_config(compose: &Compose) -> String {
    // A label of any image names them, and root copies the command.
    let option = |file: &String| format!(" -f {}", shell_word(file));
    let files: Vec<String> = compose.files.iter().map(option).collect();
    format!("docker compose{} config", files.concat())
}

/// Why this version of the tool drops the key that the file uses. First tags that read them: docker/compose
/// v2.1.1 (72e4519cb) and v2.6.1 (e111b651b), podman-compose v1.4.0 (98f166d).
fn dropped_by(compose: &Compose) -> Option<&'static str> {
    let Says::Limit { key, .. } = &compose.says else { return None };
    let version = version(compose.version.as_deref()?)?;
    if compose.tool == PODMAN_COMPOSE {
        let reads = (1, 4, 0);
        return (version < reads).then_some("podman-compose reads limits from 1.4.0 on");
    }
    match key.as_str() {
        "pids_limit" if ((2, 0, 0)..(2, 1, 1)).contains(&version) => {
            Some("pids_limit is read from 2.1.1 on")
        }
        "deploy.resources.limits.pids" if ((2, 0, 0)..(2, 6, 1)).contains(&version) => {
            Some("deploy.resources.limits.pids is read from 2.6.1 on")
        }
        _ => None,
    }
}
