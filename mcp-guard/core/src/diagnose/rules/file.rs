//! Compares the compose file with the engine: which of them changed last, and whether the tool between them
//! passes the limit on.

use std::time::Duration;

use humantime::format_duration;

use super::super::{
    code::Code,
    facts::{Compose, ComposeTool, ContainerFacts, Says},
    report::{
        Certainty::{self, Possible, Proved},
        Finding, Keeper,
    },
    version::version,
    view::{View, shell_word},
};
use super::{layer::wrong_layer, no_hole_below};

/// Makes a finding only possible if the limit comes from a variable: a value in the shell that ran compose
/// overrides every file, and is stored nowhere.
pub(super) fn as_sure_as_its_variables(mut finding: Finding, view: &View<'_>) -> Finding {
    if !view.filled {
        return finding;
    }
    finding.certainty = Possible;
    finding.seen(
        "limit from a variable",
        "current env files and defaults",
        "the shell that ran compose may have had another value",
    )
}

/// Explains from the compose file why the engine has no limit.
pub(super) fn from_compose(
    view: &View<'_>,
    compose: &Compose,
    container: &ContainerFacts,
) -> Option<Finding> {
    match &compose.says {
        Says::Limit { value, key, file, line, .. } => {
            let declared = u64::try_from(*value).ok().filter(|limit| *limit > 0);
            let Some(limit) = declared else {
                let title = format!("{key}: {value} in {file} means no limit");
                return Some(
                    Finding::new(Code::ExplicitUnlimited, Proved, title)
                        .seen("compose file", format!("{file}:{line}"), format!("{key}: {value}"))
                        .by_hand(
                            Keeper::ComposeFile,
                            "set a number above 0 there, then run docker compose up -d",
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
            .seen("engine", "HostConfig.PidsLimit", view.stored_word())
            .repaired(Keeper::ComposeFile, view.repair_command(None), view.survives());
            for place in elsewhere {
                finding = finding.seen("limit of another service or extension", place, "");
            }
            Some(finding)
        }
        Says::Unknown { why } => Some(
            Finding::new(
                Code::NeverDeclared,
                Possible,
                format!(
                    "the engine has no limit, and what the compose files declare is not known: \
                         {why}"
                ),
            )
            .seen("engine", "HostConfig.PidsLimit", view.stored_word())
            .by_hand(Keeper::ComposeFile, compose_config(compose)),
        ),
        Says::NotAsked => None,
    }
}

/// The file has a limit and the engine has none: the tool dropped it, or the container is older.
fn never_arrived(
    view: &View<'_>,
    compose: &Compose,
    container: &ContainerFacts,
    limit: u64,
) -> Finding {
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
                         created without a limit"
                    ),
                ),
                compose,
            )
            .seen("engine", "HostConfig.PidsLimit", view.stored_word())
            .not("fixed by a restart, which reads no file: only `up -d` re-creates the container"),
            compose,
            container,
        )
        .repaired(Keeper::Compose, view.repair_command(Some(limit)), view.survives()),
        age => {
            let certainty = Certainty::Possible;
            let finding = times(
                file_line(
                    Finding::new(
                        Code::ToolDropped,
                        certainty,
                        format!(
                            "the file says {limit} and is not newer than the container, yet the \
                             engine has no limit: the tool that created it dropped the key"
                        ),
                    ),
                    compose,
                )
                .seen("engine", "HostConfig.PidsLimit", view.stored_word()),
                compose,
                container,
            );
            let finding = match age {
                Some(_) => finding
                    .not("MG-P001 (not re-created): the file is not newer than the container"),
                None => finding,
            };
            finding.repaired(Keeper::ComposeTool, view.repair_command(Some(limit)), view.survives())
        }
    }
}

/// Reports a version of the tool that is known to drop the limit.
fn dropped(view: &View<'_>, compose: &Compose, limit: u64, why: &str) -> Finding {
    let version = compose.version.clone().unwrap_or_default();
    let tool = compose.tool;
    let title = format!("{tool} {version} ignored the limit of {limit} in the file: {why}");
    file_line(Finding::new(Code::ToolDropped, Proved, title), compose)
        .seen("engine", "HostConfig.PidsLimit", view.stored_word())
        .seen("created by", format!("version label of {tool}"), version)
        .not("MG-P001 (not re-created): this version never passes the key on")
        .repaired(Keeper::ComposeTool, view.repair_command(Some(limit)), view.survives())
}

/// The engine and the file have different limits.
pub(super) fn against_the_file(
    view: &View<'_>,
    compose: &Compose,
    container: &ContainerFacts,
    stored: u64,
) -> Option<Finding> {
    if let Says::Invalid { why } = &compose.says {
        return Some(invalid(view, compose, container, why));
    }
    let file = view.file.filter(|file| *file != stored)?;
    // If the tool drops the file's limit, the engine has its own default instead.
    let finding = match dropped_by(compose) {
        Some(why) => dropped(view, compose, file, why),
        None => other_number(view, compose, container, file, stored),
    };
    Some(no_hole_below(finding, view, file))
}

/// The tool passes the key on, but the file has another number than the engine.
fn other_number(
    view: &View<'_>,
    compose: &Compose,
    container: &ContainerFacts,
    file: u64,
    stored: u64,
) -> Finding {
    let newer = age(compose, container) == Some(Age::FileIsNewer);
    let (code, title) = if newer {
        let title = format!(
            "the file says {file} and changed after the container was created; the engine has \
             {stored}: repair to {file}, or write {stored} into the file"
        );
        (Code::NotRecreated, title)
    } else {
        let title = format!(
            "the engine has {stored}, but the unchanged file says {file}: the container was \
             updated without changing the file"
        );
        (Code::Drift, title)
    };
    // Unless both times are known, it is not known which of them changed.
    let certainty = if age(compose, container).is_some() { Proved } else { Possible };
    let finding = file_line(Finding::new(code, certainty, title), compose).seen(
        "engine",
        "HostConfig.PidsLimit",
        stored,
    );
    let finding = if newer {
        finding
    } else {
        finding.not("MG-P001 (not re-created): the file is older than the container")
    };
    let finding = times(finding, compose, container);
    if view.filled {
        // The container may have exactly the limit that it was created with.
        return finding.by_hand(Keeper::ComposeFile, compose_config(compose));
    }
    finding.repaired(Keeper::ComposeFile, view.repair_command(Some(file)), view.survives())
}

fn invalid(view: &View<'_>, compose: &Compose, container: &ContainerFacts, why: &str) -> Finding {
    let finding = Finding::new(
        Code::ComposeInvalid,
        Proved,
        format!("compose rejects the file, so the old container keeps running: {why}"),
    )
    .seen("compose file", compose.files.join(", "), why)
    .seen("engine", "HostConfig.PidsLimit", view.stored_word());
    let finding = times(finding, compose, container);
    let finding = finding.by_hand(Keeper::ComposeFile, compose_config(compose));
    match view.stored_limit() {
        Some(stored) => no_hole_below(finding, view, stored),
        None => finding,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Age {
    FileIsNewer,
    FileIsOlder,
}

/// Returns which of them is newer. None if a time is missing.
fn age(compose: &Compose, container: &ContainerFacts) -> Option<Age> {
    let (modified, created) = (compose.modified?, container.created?);
    Some(if modified > created { Age::FileIsNewer } else { Age::FileIsOlder })
}

fn times(finding: Finding, compose: &Compose, container: &ContainerFacts) -> Finding {
    let (Some(modified), Some(created)) = (compose.modified, container.created) else {
        return finding;
    };
    let order = if modified > created { "after" } else { "before" };
    let apart = format_duration(Duration::from_secs(modified.abs_diff(created)));
    let when = format!("{apart} {order} the container was created");
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

fn compose_config(compose: &Compose) -> String {
    // The names come from labels, which any image can set, and root may copy the command.
    let option = |file: &String| format!(" -f {}", shell_word(file));
    let files: Vec<String> = compose.files.iter().map(option).collect();
    format!("docker compose{} config", files.concat())
}

/// Returns why this version of the tool drops the key that the file uses. The first tags that read the keys:
/// docker/compose v2.1.1 (72e4519cb) and v2.6.1 (e111b651b), podman-compose v1.4.0 (98f166d).
fn dropped_by(compose: &Compose) -> Option<&'static str> {
    let Says::Limit { key, .. } = &compose.says else { return None };
    let version = version(compose.version.as_deref()?)?;
    if compose.tool == ComposeTool::PodmanCompose {
        let reads = (1, 4, 0);
        return (version < reads).then_some("podman-compose reads limits only since 1.4.0");
    }
    match key.as_str() {
        "pids_limit" if ((2, 0, 0)..(2, 1, 1)).contains(&version) => {
            Some("pids_limit is read only since 2.1.1")
        }
        "deploy.resources.limits.pids" if ((2, 0, 0)..(2, 6, 1)).contains(&version) => {
            Some("deploy.resources.limits.pids is read only since 2.6.1")
        }
        _ => None,
    }
}
