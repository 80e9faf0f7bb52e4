//! The host and the engine: whether there is a pids controller, and whether it is the container's.

use super::super::{
    code::Code,
    facts::{CgroupDriver, Cgroups, ContainerCgroups, EngineFacts, Level, OciLimit, SubjectKind},
    report::{
        Certainty::{Possible, Proved},
        Finding, Fine, Keeper,
    },
    version::version,
    view::{View, shell_word},
};
use crate::container::container_in;

/// The first version of the engine's API that accepts a limit in an update. Older ones answer 200 and ignore
/// it (moby `if version < 1.40 { PidsLimit = nil }`).
const UPDATE_SINCE: (u32, u32, u32) = (1, 40, 0);
/// Percentage of a limit from which on a fork may fail at any moment.
const NEARLY_FULL: u64 = 95;

/// Reports a container that is not on this kernel, or not in the cgroup that we see.
pub fn elsewhere(view: &View<'_>) -> Option<Finding> {
    let engine = view.facts.engine.as_ref()?;
    let container = view.container()?;
    let kernel = &view.facts.host.kernel;
    if !engine.kernel.is_empty() && engine.kernel != *kernel {
        let code = if engine.operating_system.contains("Desktop") {
            Code::DesktopVm
        } else {
            Code::OtherDaemon
        };
        return Some(
            Finding::new(
                code,
                Proved,
                format!(
                    "the engine runs on another kernel ({}) than this host ({kernel})",
                    engine.kernel
                ),
            )
            .seen("engine", "info.KernelVersion", &engine.kernel)
            .seen("this host", "uname -r", kernel)
            .by_hand(Keeper::Context, "run mcp-guard on the host of the engine"),
        );
    }
    if ["runsc", "kata"].iter().any(|sandbox| container.runtime.contains(sandbox)) {
        return Some(
            Finding::new(
                Code::Sandbox,
                Proved,
                format!("the runtime {} runs the container on its own kernel", container.runtime),
            )
            .seen("runtime", "HostConfig.Runtime", &container.runtime)
            .by_hand(Keeper::Runtime, "limit the processes inside the guest"),
        );
    }
    if container.cgroups == ContainerCgroups::Disabled {
        return Some(
            Finding::new(
                Code::CgroupsDisabled,
                Proved,
                "the container was created with --cgroups=disabled: the limit that inspect shows \
                 is not in force",
            )
            .seen("cgroups", "HostConfig.Cgroups", "disabled")
            .seen("its processes are in", "/proc/PID/cgroup", &view.facts.target.cgroup)
            .by_hand(Keeper::ContainerConfig, "re-create it without --cgroups=disabled"),
        );
    }
    let path = &view.facts.target.cgroup;
    let names_it = container_in(path).is_some_and(|found| found.id == container.id);
    (!path.is_empty() && !names_it).then(|| {
        Finding::new(
            Code::OtherDaemon,
            Possible,
            "the container's first process, as the engine reports it, is not in a cgroup of the \
             container",
        )
        .seen("first process", "State.Pid", container.init)
        .seen("its cgroup", "/proc/PID/cgroup", path)
        .by_hand(Keeper::Context, "check which engine answers: docker context show, DOCKER_HOST")
    })
}

/// Reports that no pids controller enforces a limit here.
pub fn no_controller(view: &View<'_>) -> Option<Finding> {
    let host = &view.facts.host;
    let disabled = host.boot_words.iter().any(|word| word.contains("pids"));
    if host.pids_enabled == Some(false) || (host.pids_enabled.is_none() && disabled) {
        return Some(
            Finding::new(
                Code::ControllerDisabled,
                Proved,
                "this kernel runs without the pids controller",
            )
            .seen("controller", "/proc/cgroups", "pids, enabled 0")
            .seen("boot", "/proc/cmdline", host.boot_words.join(" "))
            .by_hand(
                Keeper::Host,
                "remove cgroup_disable=pids from the kernel command line, reboot, and re-create \
                 the containers: the engine dropped their limits",
            ),
        );
    }
    rootless(view).or_else(|| not_handed_down(view)).or_else(|| engine_has_none(view))
}

/// Reports a controller that is not built in, or not mounted. Only the engine can tell.
fn engine_has_none(view: &View<'_>) -> Option<Finding> {
    let engine = view.facts.engine.as_ref()?;
    let no_file = view.own()?.max.is_none();
    (engine.pids_limit == Some(false) && no_file).then(|| {
        Finding::new(
            Code::ControllerDisabled,
            Proved,
            "the engine finds no pids controller on this host, and the cgroup has no pids.max",
        )
        .seen("engine", "info.PidsLimit", false)
        .seen("kernel", view.file_of("pids.max"), "no such file")
        .by_hand(Keeper::Host, "mount the pids controller, or boot a kernel that has it")
    })
}

fn rootless(view: &View<'_>) -> Option<Finding> {
    let engine = view.facts.engine.as_ref().filter(|engine| engine.rootless)?;
    let container = view.container()?;
    let stripped = container.oci_limit == Some(OciLimit::Absent) && view.stored_limit().is_some();
    (engine.cgroup_driver == CgroupDriver::None || stripped).then(|| {
        Finding::new(
            Code::Rootless,
            Proved,
            "the rootless engine cannot use the pids controller and drops the limit",
        )
        .seen("engine", "info.CgroupDriver", engine.cgroup_driver)
        .by_hand(
            Keeper::Host,
            "delegate pids to user@.service (Delegate=cpu cpuset io memory pids), log in again, \
             restart the engine and the container",
        )
    })
}

/// In version 2, a cgroup has the files only if every level above enables the controller for its children.
fn not_handed_down(view: &View<'_>) -> Option<Finding> {
    let own = view.own()?;
    if own.max.is_some() || view.facts.chain.len() < 2 {
        return None;
    }
    let breaks =
        |level: &&Level| level.has_pids == Some(true) && level.hands_pids_down == Some(false);
    let breaker = view.facts.chain.iter().skip(1).find(breaks)?;
    let unit = shell_word(breaker.path.rsplit('/').next().unwrap_or_default());
    Some(
        Finding::new(
            Code::NotDelegated,
            Proved,
            format!(
                "{} does not enable the pids controller for its children: no limit applies below \
                 it",
                breaker.path
            ),
        )
        .seen("available here", format!("{}/cgroup.controllers", breaker.path), "with pids")
        .seen("enabled below", format!("{}/cgroup.subtree_control", breaker.path), "without pids")
        .by_hand(
            Keeper::Systemd,
            format!(
                "look for DisableControllers= in systemctl cat {unit}, remove it, and run \
                 systemctl daemon-reload"
            ),
        ),
    )
}

/// On a hybrid host both trees have cgroups of the same path, and only one of the two can have a limit. An
/// operator who names a container does not name a tree, so only a path is reported.
pub fn other_hierarchy(view: &View<'_>) -> Option<Fine> {
    let is_named_by_path = view.facts.target.kind == SubjectKind::Cgroup;
    let is_version_1 = is_named_by_path && view.own()?.has_pids.is_none();
    let is_hybrid = view.facts.host.cgroups == Cgroups::Hybrid;
    let limit = view.kernel?.tasks()?;
    (is_hybrid && is_version_1).then(|| {
        let title = format!(
            "the limit of {limit} is in the version 1 hierarchy of the pids controller; the cgroup \
             of the same path in the version 2 tree has no pids.max"
        );
        Fine::new(Code::WrongHierarchy, title)
    })
}

pub fn api_too_old(view: &View<'_>) -> Option<Finding> {
    let asked = view.facts.host.docker_api_version.as_deref();
    let spoken =
        view.facts.engine.as_ref().map(|EngineFacts { api_version, .. }| api_version.as_str());
    let old = |text: &&str| version(text).is_some_and(|version| version < UPDATE_SINCE);
    let (r#where, value) = match (asked.filter(old), spoken.filter(old)) {
        (Some(asked), _) => ("DOCKER_API_VERSION", asked),
        (None, Some(spoken)) => ("engine, ApiVersion", spoken),
        (None, None) => return None,
    };
    Some(
        Finding::new(
            Code::ApiTooOld,
            Proved,
            format!("docker update uses API {value} here, which silently ignores a PID limit"),
        )
        .seen("API", r#where, value)
        .by_hand(Keeper::Operator, "unset DOCKER_API_VERSION, or upgrade the client or the engine"),
    )
}

/// Returns whether so little room is left that a fork may fail at any moment.
#[must_use]
pub fn is_nearly_full(tasks: u64, limit: u64) -> bool {
    tasks.saturating_mul(100) >= limit.saturating_mul(NEARLY_FULL)
}

/// Reports that forks fail for a reason other than a limit of a cgroup.
pub fn exhausted(view: &View<'_>) -> Option<Finding> {
    let host = &view.facts.host;
    let found = |what: &str, tasks: u64, limit: u64, command: &str| {
        Finding::new(
            Code::HostExhausted,
            Proved,
            format!(
                "{what} has {tasks} of {limit} possible tasks: forks fail or may fail at any \
                 moment, regardless of pids.max"
            ),
        )
        .seen("tasks", what, tasks)
        .seen("limit", what, limit)
        .by_hand(Keeper::Host, command)
    };
    if let Some(inner) =
        host.pid_namespace.filter(|inner| is_nearly_full(inner.tasks, inner.pid_max))
    {
        let command = "raise kernel.pid_max inside the pid namespace";
        return Some(found("the pid namespace", inner.tasks, inner.pid_max, command));
    }
    let tasks = host.tasks?;
    let limits = [("threads-max", host.threads_max), ("pid_max", host.pid_max)];
    let (name, limit) = limits.into_iter().find_map(|(name, limit)| {
        limit.filter(|limit| is_nearly_full(tasks, *limit)).map(|limit| (name, limit))
    })?;
    Some(found("the host", tasks, limit, &format!("sysctl kernel.{name}=N")))
}
