//! Whether the kernel and systemd have the same limit as the engine.

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

/// Adds what the engine, systemd and the kernel each report to the evidence.
fn witnesses(finding: Finding, view: &View<'_>) -> Finding {
    let stored = view.stored_limit().map_or_else(|| "null".to_owned(), |limit| limit.to_string());
    let mut finding = finding.seen("engine", "HostConfig.PidsLimit", stored);
    if let Some(Unit { name, tasks_max: Some(tasks_max), .. }) = view.unit() {
        finding = finding.seen("systemd", format!("TasksMax of {name}"), tasks_max);
    }
    match (view.our_clamp(), view.kernel) {
        (Some(clamp), _) => {
            finding.seen("kernel, before our clamp", "mark of the clamp", clamp.found)
        }
        (None, Some(kernel)) => finding.seen("kernel", view.file_of("pids.max"), kernel),
        (None, None) => finding,
    }
}

/// A controller that was disabled and re-enabled starts from zero: no limit, no peak, no events.
fn toggled(view: &View<'_>, kernel: Limit) -> Option<Finding> {
    let own = view.own()?;
    let fresh = own.peak? == own.current? && own.denials? == 0;
    let version_2 = own.has_pids.is_some();
    (version_2 && kernel == Limit::Max && fresh).then(|| {
        Finding::new(
            Code::ControllerToggled,
            Possible,
            "the limit is gone and the counters were reset: the pids controller was disabled and \
             re-enabled above this cgroup",
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
                "Podman {} stores {stored}, but the kernel has {kernel}: before Podman 5.4 an \
                 update can get lost or reset other values",
                engine.version
            ),
        )
        .seen("Podman", "version", &engine.version)
    })
}

/// Reports a container that may have raised its own limit. It can write `pids.max` from inside in version 1
/// with a writable tree, and in version 2 if no cgroup namespace forbids it.
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
                "the kernel has {kernel} instead of {stored}, and the container can write the \
                 limit itself: it is privileged or has the cgroup tree mounted"
            ),
        )
        .seen("privileged", "HostConfig.Privileged", container.privileged)
        .seen("cgroup namespace", "HostConfig.CgroupnsMode", &container.cgroupns_mode)
        .not(
            "MG-P031 (written from outside) for certain: the two look the same, and have the same \
              repair",
        )
    })
}

/// systemd owns the value, and stores another one than the engine.
fn reset_by_systemd(view: &View<'_>, kernel: Limit, stored: u64) -> Option<Finding> {
    let tasks_max = view.unit()?.tasks_max?;
    (tasks_max == kernel).then(|| {
        Finding::new(
            Code::SystemdReset,
            Proved,
            format!(
                "systemd stores {tasks_max} for {} and has applied it over the engine's {stored}",
                view.unit().map_or("the unit", |unit| unit.name.as_str())
            ),
        )
    })
}

fn raw(view: &View<'_>, kernel: Limit, stored: u64) -> Finding {
    let tasks_max = view.unit().and_then(|unit| unit.tasks_max);
    // If systemd owns the value and could not be asked, systemd itself may have written it.
    let by_systemd = view
        .facts
        .engine
        .as_ref()
        .is_some_and(|engine| engine.cgroup_driver == CgroupDriver::Systemd);
    let finding = Finding::new(
        Code::RawWrite,
        if by_systemd && tasks_max.is_none() { Possible } else { Proved },
        format!(
            "the engine has {stored}, but the kernel has {kernel}: pids.max was written directly, \
             not through the engine"
        ),
    );
    match tasks_max {
        Some(tasks_max) => {
            finding.not(format!("MG-P030 (reset by systemd): systemd still stores {tasks_max}"))
        }
        None => finding,
    }
}

/// The limit is in force, but only until systemd applies its own value.
fn never_told_systemd(view: &View<'_>, stored: u64) -> Option<Finding> {
    let unit = view.unit()?;
    let tasks_max = unit.tasks_max?;
    (view.is_the_units_own() && tasks_max != Limit::Tasks(stored)).then(|| {
        let finding = Finding::new(
            Code::NoTasksMax,
            Proved,
            format!(
                "{stored} is in force, but systemd stores {tasks_max} for {}: {}",
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

/// A sign that no limit was set: the kernel and the unit have the number that is systemd's default.
pub fn default_in_force(view: &View<'_>) -> Option<Fine> {
    let unit = view.unit().filter(|_| view.is_the_units_own() && view.facts.wanted.is_none())?;
    let default = unit.default_tasks_max?.tasks()?;
    (view.has_only_the_default() && unit.tasks_max == unit.default_tasks_max).then(|| {
        let title = format!(
            "{default} in {} is systemd's DefaultTasksMax: no limit was set for {}",
            view.file_of("pids.max"),
            unit.name
        );
        Fine::new(Code::SystemdDefault, title)
    })
}

/// The engine has no limit, and the kernel and systemd have different ones.
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
                "pids.max was set to {kernel} directly, but systemd stores {tasks_max} for {}: {}",
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

/// Says when systemd applies its own value. Measured on systemd 252 and 257.
fn when_reset(unit: &Unit) -> &'static str {
    match unit.systemd {
        0 => "that value comes back when systemd applies its settings",
        1..=255 => "that value comes back at the next daemon-reload",
        256 | 257 => {
            "that value comes back when a unit of the same slice starts after a daemon-reload"
        }
        _ => "that value comes back at the next daemon-reload at the latest",
    }
}
