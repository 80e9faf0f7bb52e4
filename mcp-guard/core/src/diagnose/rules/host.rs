//! The host, the engine and the place: is there a controller, and do we look at the right one?

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

/// The first version of the engine's API that takes a limit in an update; older ones say 200 and do
/// nothing (moby `if version < 1.40 { PidsLimit = nil }`).
const UPDATE_SINCE: (u32, u32, u32) = (1, 40, 0);
/// Of a hundred: from here on a fork may fail at any moment.
const NEARLY_FULL: u64 = 95;

/// The container is not on this kernel, or not in the cgroup we can see.
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
                    "the engine runs on another kernel ({}) than this ({kernel})",
                    engine.kernel
                ),
            )
            .seen("engine", "info.KernelVersion", &engine.kernel)
            .seen("this host", "uname -r", kernel)
            .by_hand(Keeper::Context, "run mcp-guard where the engine's kernel is"),
        );
    }
    if ["runsc", "kata"].iter().any(|sandbox| container.runtime.contains(sandbox)) {
        return Some(
            Finding::new(
                Code::Sandbox,
                Proved,
                format!("the runtime {} runs it on a kernel of its own", container.runtime),
            )
            .seen("runtime", "HostConfig.Runtime", &container.runtime)
            .by_hand(Keeper::Runtime, "limit the processes inside of the guest"),
        );
    }
    if container.cgroups == ContainerCgroups::Disabled {
        return Some(
            Finding::new(
                Code::CgroupsDisabled,
                Proved,
                "it was made with --cgroups=disabled: the limit that inspect shows is nowhere",
            )
            .seen("cgroups", "HostConfig.Cgroups", "disabled")
            .seen("its processes are in", "/proc/PID/cgroup", &view.facts.target.cgroup)
            .by_hand(Keeper::ContainerConfig, "make it again without --cgroups=disabled"),
        );
    }
    let path = &view.facts.target.cgroup;
    let names_it = container_in(path).is_some_and(|found| found.id == container.id);
    (!path.is_empty() && !names_it).then(|| {
        Finding::new(
            Code::OtherDaemon,
            Possible,
            "the first process that the engine names is not in a cgroup of this container",
        )
        .seen("first process", "State.Pid", container.init)
        .seen("its cgroup", "/proc/PID/cgroup", path)
        .by_hand(Keeper::Context, "see which engine answers: docker context show, DOCKER_HOST")
    })
}

/// There is nothing that could hold a limit.
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
                "remove cgroup_disable=pids from the boot line, reboot, and make containers anew: \
                     the engine dropped their limits",
            ),
        );
    }
    rootless(view).or_else(|| not_handed_down(view)).or_else(|| engine_has_none(view))
}

/// Built without it, or mounted nowhere: only the engine says so.
fn engine_has_none(view: &View<'_>) -> Option<Finding> {
    let engine = view.facts.engine.as_ref()?;
    let no_file = view.own()?.max.is_none();
    (engine.pids_limit == Some(false) && no_file).then(|| {
        Finding::new(
            Code::ControllerDisabled,
            Proved,
            "the engine finds no pids controller on this host, and there is no limit",
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
            "delegate pids to user@.service (Delegate=cpu cpuset io memory pids), log in anew, \
             restart engine and container",
        )
    })
}

/// Version 2: the files are there only where each level above hands the controller down.
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
                "{} does not hand the pids controller down: there is no limit below it",
                breaker.path
            ),
        )
        .seen("controllers", format!("{}/cgroup.controllers", breaker.path), "pids is there")
        .seen("handed down", format!("{}/cgroup.subtree_control", breaker.path), "pids is not")
        .by_hand(
            Keeper::Systemd,
            format!(
                "look for DisableControllers= in systemctl cat {unit}, remove it, daemon-reload"
            ),
        ),
    )
}

/// On a hybrid host a cgroup of one path is in either tree, and only one of them can have a limit. Who names
/// a container does not look at a tree.
pub fn other_hierarchy(view: &View<'_>) -> Option<Fine> {
    let is_named_by_path = view.facts.target.kind == SubjectKind::Cgroup;
    let is_version_1 = is_named_by_path && view.own()?.has_pids.is_none();
    let is_hybrid = view.facts.host.cgroups == Cgroups::Hybrid;
    let limit = view.kernel?.tasks()?;
    (is_hybrid && is_version_1).then(|| {
        let title = format!(
            "the limit {limit} is in the version 1 hierarchy of the pids controller; the cgroup of \
             the version 2 tree has no pids.max"
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
            format!(
                "docker update speaks API {value} here, where a PID limit is ignored without a word"
            ),
        )
        .seen("API", r#where, value)
        .by_hand(Keeper::Operator, "unset DOCKER_API_VERSION, or upgrade the client"),
    )
}

/// So full that a fork may fail at any moment.
#[must_use]
pub fn is_nearly_full(tasks: u64, limit: u64) -> bool {
    tasks.saturating_mul(100) >= limit.saturating_mul(NEARLY_FULL)
}

/// Forks fail, and no limit of a cgroup is the reason.
pub fn exhausted(view: &View<'_>) -> Option<Finding> {
    let host = &view.facts.host;
    let found = |what: &str, tasks: u64, limit: u64, command: &str| {
        Finding::new(
            Code::HostExhausted,
            Proved,
            format!(
                "{what} has {tasks} of {limit} numbers in use: forks fail, whatever pids.max says"
            ),
        )
        .seen("in use", what, tasks)
        .seen("limit", what, limit)
        .by_hand(Keeper::Host, command)
    };
    if let Some(inner) =
        host.pid_namespace.filter(|inner| is_nearly_full(inner.tasks, inner.pid_max))
    {
        let command = "raise kernel.pid_max inside of the pid namespace";
        return Some(found("the pid namespace", inner.tasks, inner.pid_max, command));
    }
    let tasks = host.tasks?;
    let limits = [("threads-max", host.threads_max), ("pid_max", host.pid_max)];
    let (name, limit) = limits.into_iter().find_map(|(name, limit)| {
        limit.filter(|limit| is_nearly_full(tasks, *limit)).map(|limit| (name, limit))
    })?;
    Some(found("the host", tasks, limit, &format!("sysctl kernel.{name}=N")))
}
