//! The engine has a limit; does the kernel have the same, and does systemd know of it?

use super::super::{
    code::Code,
    facts::{CgroupDriver, Cgroups, ContainerFacts, EngineKind, NamespaceMode, Unit},
    report::{
        Certainty::{Possible, Proved},
        Finding, Fine, Keeper,
    },
    version::version,
    view::View,
};
use super::no_hole_below;
use crate::limit::Limit;

pub fn cause(view: &View<'_>) -> Option<Finding> {
    let (kernel, stored) = (view.lasting?, view.stored_limit()?);
    let wanted = Limit::Tasks(stored);
    if kernel == wanted {
        return never_told_systemd(view, stored);
    }
    if view.is_our_repair() {
        return None;
    }
    let container = view.container()?;
    let finding = toggled(view, kernel)
        .or_else(|| podman_lost_it(view, kernel, stored))
        .or_else(|| raised_from_inside(view, container, kernel, stored))
        .or_else(|| reset_by_systemd(view, kernel, stored))
        .unwrap_or_else(|| raw(view, kernel, stored));
    let finding = no_hole_below(finding, view, stored);
    Some(witnesses(finding, view).repaired(
        Keeper::Engine,
        view.repair_command(Some(stored)),
        view.survives(),
    ))
}

/// What the engine, systemd and the kernel each say.
fn witnesses(finding: Finding, view: &View<'_>) -> Finding {
    let stored = view.stored_limit().map_or_else(|| "null".to_owned(), |limit| limit.to_string());
    let mut finding = finding.seen("engine", "HostConfig.PidsLimit", stored);
    if let Some(Unit { name, tasks_max: Some(tasks_max), .. }) = view.unit() {
        finding = finding.seen("systemd", format!("TasksMax of {name}"), tasks_max);
    }
    match (view.our_clamp(), view.kernel) {
        (Some(clamp), _) => finding.seen("kernel, before our clamp", "mark of it", clamp.found),
        (None, Some(kernel)) => finding.seen("kernel", view.file_of("pids.max"), kernel),
        (None, None) => finding,
    }
}

/// A controller that was switched off and on begins anew: no limit, no peak, no events.
fn toggled(view: &View<'_>, kernel: Limit) -> Option<Finding> {
    let own = view.own()?;
    let fresh = own.peak? == own.current? && own.denials? == 0;
    let version_2 = own.has_pids.is_some();
    (version_2 && kernel == Limit::Max && fresh).then(|| {
        Finding::new(
            Code::ControllerToggled,
            Possible,
            "the limit is gone and the counters are fresh: the pids controller was switched off \
             and on above this cgroup",
        )
        .seen("peak", view.file_of("pids.peak"), own.peak.unwrap_or(0))
        .seen("refused forks", view.file_of("pids.events"), 0)
    })
}

fn podman_lost_it(view: &View<'_>, kernel: Limit, stored: u64) -> Option<Finding> {
    let engine = view.facts.engine.as_ref().filter(|engine| engine.kind == EngineKind::Podman)?;
    let version = version(&engine.version)?;
    (version < (5, 4, 0)).then(|| {
        Finding::new(
            Code::PodmanUpdateLost,
            Possible,
            format!(
                "Podman {} says {stored} and the kernel {kernel}: before 5.4 an update is lost or \
                 resets other values",
                engine.version
            ),
        )
        .seen("Podman", "version", &engine.version)
    })
}

/// Who can write `pids.max` from inside: v1 with the tree writable, v2 without a namespace that
/// forbids it.
fn raised_from_inside(
    view: &View<'_>,
    container: &ContainerFacts,
    kernel: Limit,
    stored: u64,
) -> Option<Finding> {
    let can = container.privileged || container.binds_cgroupfs;
    let open = container.cgroupns_mode == NamespaceMode::Host
        || view.facts.host.nsdelegate == Some(false)
        || view.facts.host.cgroups != Cgroups::Unified;
    let raised = kernel > Limit::Tasks(stored);
    (can && open && raised).then(|| {
        Finding::new(
            Code::SelfRaised,
            Possible,
            format!(
                "the kernel says {kernel} instead of {stored}, and the container itself can write \
                 it: privileged, with the host's cgroup tree"
            ),
        )
        .seen("privileged", "HostConfig.Privileged", container.privileged)
        .seen("cgroup namespace", "HostConfig.CgroupnsMode", &container.cgroupns_mode)
        .not("MG-P031 written from outside: cannot be told apart afterwards; both are mended alike")
    })
}

/// systemd owns the value and has another one than the engine.
fn reset_by_systemd(view: &View<'_>, kernel: Limit, stored: u64) -> Option<Finding> {
    let tasks_max = view.unit()?.tasks_max?;
    (tasks_max == kernel).then(|| {
        Finding::new(
            Code::SystemdReset,
            Proved,
            format!(
                "systemd keeps {tasks_max} for {} and has put it in force over the engine's {stored}",
                view.unit().map_or("the unit", |unit| unit.name.as_str())
            ),
        )
    })
}

fn raw(view: &View<'_>, kernel: Limit, stored: u64) -> Finding {
    let tasks_max = view.unit().and_then(|unit| unit.tasks_max);
    // Where systemd owns the number and was not asked, it may have put it there itself.
    let by_systemd = view
        .facts
        .engine
        .as_ref()
        .is_some_and(|engine| engine.cgroup_driver == CgroupDriver::Systemd);
    let finding = Finding::new(
        Code::RawWrite,
        if by_systemd && tasks_max.is_none() { Possible } else { Proved },
        format!("the engine has {stored}, the kernel {kernel}: somebody wrote pids.max by hand"),
    );
    match tasks_max {
        Some(tasks_max) => {
            finding.not(format!("MG-P030 reset by systemd: it still keeps {tasks_max}"))
        }
        None => finding,
    }
}

/// The limit holds now, and the next time systemd applies its own value it will not.
fn never_told_systemd(view: &View<'_>, stored: u64) -> Option<Finding> {
    let unit = view.unit()?;
    let tasks_max = unit.tasks_max?;
    (view.is_the_units_own() && tasks_max != Limit::Tasks(stored)).then(|| {
        let finding = Finding::new(
            Code::NoTasksMax,
            Proved,
            format!(
                "{stored} is in force, but systemd keeps {tasks_max} for {}: {}",
                unit.name,
                when_reset(unit)
            ),
        );
        witnesses(finding, view).repaired(
            Keeper::Systemd,
            view.repair_command(Some(stored)),
            view.survives(),
        )
    })
}

/// The sign of a limit that nobody set: the kernel, the unit and systemd's default are one number.
pub fn default_in_force(view: &View<'_>) -> Option<Fine> {
    let unit = view.unit().filter(|_| view.is_the_units_own() && view.facts.wanted.is_none())?;
    let default = unit.default_tasks_max?.tasks()?;
    (view.has_only_the_default() && unit.tasks_max == unit.default_tasks_max).then(|| {
        let title = format!(
            "{default} in {} is systemd's DefaultTasksMax: nobody set a limit for {}",
            view.file_of("pids.max"),
            unit.name
        );
        Fine::new(Code::SystemdDefault, title)
    })
}

/// No limit in the engine, one in the kernel, and systemd has another.
pub fn raw_value_that_will_go(view: &View<'_>) -> Option<Finding> {
    if view.stored_limit().is_some() {
        return None;
    }
    let (kernel, unit) = (view.lasting?, view.unit()?);
    let tasks_max = unit.tasks_max?;
    (view.is_the_units_own() && kernel != tasks_max).then(|| {
        let finding = Finding::new(
            Code::SystemdReset,
            Proved,
            format!(
                "pids.max is {kernel} by hand, but systemd keeps {tasks_max} for {}: {}",
                unit.name,
                when_reset(unit)
            ),
        );
        witnesses(finding, view).repaired(
            Keeper::Systemd,
            view.repair_command(kernel.tasks()),
            view.survives(),
        )
    })
}

/// Measured on systemd 252 and 257.
fn when_reset(unit: &Unit) -> &'static str {
    match unit.systemd {
        0 => "it comes back when systemd applies its settings",
        1..=255 => "it comes back at the next daemon-reload",
        256 | 257 => "it comes back when a unit of the same slice starts after a daemon-reload",
        _ => "it comes back at the next daemon-reload at the latest",
    }
}
