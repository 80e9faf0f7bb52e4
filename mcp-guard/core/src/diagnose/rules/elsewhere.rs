//! Processes that operators see but this limit does not count, and dead processes that it does count.

use std::collections::{BTreeMap, BTreeSet};

use super::super::{
    code::Code,
    facts::{NamespaceMode, Process},
    report::{
        Certainty::{Possible, Proved},
        Finding, Keeper,
    },
    view::View,
};
use super::SHOWN;
use crate::{container::container_in, id::Pid, limit::Limit};

pub fn causes(view: &View<'_>) -> Vec<Finding> {
    let rest = [others(view), siblings(view), zombies(view)];
    aliens(view).into_iter().chain(rest.into_iter().flatten()).collect()
}

/// Reports processes that are in the same pid namespace but in another cgroup.
fn aliens(view: &View<'_>) -> Vec<Finding> {
    let facts = view.facts;
    if facts.container.as_ref().is_some_and(|container| container.pid_mode == NamespaceMode::Host) {
        return vec![
            Finding::new(
                Code::PidNamespace,
                Proved,
                "the container shares the host's pid namespace: its process list shows all \
                 processes of the host, but its limit counts only its own",
            )
            .seen("pid namespace", "HostConfig.PidMode", "host")
            .by_hand(Keeper::ContainerConfig, "re-create the container without --pid=host"),
        ];
    }
    // A runc that is just starting joins the namespace first, and the cgroup a moment later.
    let settled = facts.aliens.iter().filter(|alien| !alien.comm.starts_with("runc:["));
    let forked_inside = forked_inside(view);
    let (inside, mut entered): (Vec<&Process>, Vec<&Process>) =
        settled.partition(|alien| forked_inside.contains(&alien.pid));
    // An orphan of a process that entered is reparented to the container's first process.
    let places: BTreeSet<&str> = entered.iter().map(|alien| place(alien)).collect();
    let (orphans, left): (Vec<&Process>, Vec<&Process>) =
        inside.into_iter().partition(|alien| places.contains(place(alien)));
    entered.extend(orphans);
    let other = |first: &Process| {
        container_in(&first.cgroup).map(|found| found.id.chars().take(12).collect::<String>())
    };
    let mut found = Vec::new();
    if let Some(first) = left.first() {
        found.push(named(left_it(view, left.len(), other(first).as_deref()), &left));
    }
    if let Some(first) = entered.first() {
        found.push(named(entered_it(entered.len(), other(first).as_deref()), &entered));
    }
    found
}

/// Returns the container that a process is in, or else its cgroup.
fn place(process: &Process) -> &str {
    container_in(&process.cgroup).map_or(&process.cgroup, |found| found.id)
}

/// Returns the aliens that descend from a member.
fn forked_inside(view: &View<'_>) -> BTreeSet<Pid> {
    let mut family: BTreeSet<Pid> = view.facts.members.iter().map(|process| process.pid).collect();
    let mut children: BTreeMap<Pid, Vec<Pid>> = BTreeMap::new();
    for alien in &view.facts.aliens {
        children.entry(alien.parent).or_default().push(alien.pid);
    }
    let mut found = BTreeSet::new();
    let mut waiting: Vec<Pid> = family.iter().copied().collect();
    while let Some(pid) = waiting.pop() {
        for child in children.get(&pid).into_iter().flatten() {
            if family.insert(*child) {
                found.insert(*child);
                waiting.push(*child);
            }
        }
    }
    found
}

/// Reports processes that were started inside and are now in another cgroup. `inner` is the container that
/// this cgroup is named after, if any.
fn left_it(view: &View<'_>, count: usize, inner: Option<&str>) -> Finding {
    if let Some(inner) = inner {
        let title = format!(
            "an inner engine created container {inner} outside this cgroup: the limit here does not \
             count {count} processes"
        );
        return Finding::new(Code::InnerOutside, Proved, title)
            .not("MG-P050 (of another container): their parents are inside this container")
            .by_hand(
                Keeper::ContainerConfig,
                "re-create it with a private cgroup namespace: the inner engine then stays below it",
            );
    }
    if is_unprivileged(view) {
        let title = format!("{count} processes of the container were moved out of its cgroup");
        return Finding::new(Code::Reclassified, Possible, title)
            .not("MG-P051 (left by themselves): the container has no privilege to do so")
            .by_hand(
                Keeper::Host,
                "look for what moves them: a rule daemon (/etc/cgrules.conf), pam_cgroup, or a \
                 script that writes cgroup.procs",
            );
    }
    let title = format!(
        "{count} processes of the container left its cgroup: its limit does not count them"
    );
    Finding::new(Code::EscapedCgroup, Proved, title)
        .not("MG-P050 (entered from outside): their parents are inside the container")
        .by_hand(
            Keeper::ContainerConfig,
            "re-create it without --privileged and with a private cgroup namespace",
        )
}

/// Reports processes that were started outside and are seen inside.
fn entered_it(count: usize, other: Option<&str>) -> Finding {
    if let Some(other) = other {
        let title = format!(
            "{count} processes in the same pid namespace belong to container {other}: its limit \
             counts them"
        );
        return Finding::new(Code::PidNamespace, Proved, title)
            .by_hand(Keeper::OtherContainer, "set a limit on that container too");
    }
    let title = format!(
        "{count} processes entered the pid namespace from outside (nsenter, a debugger, an agent) \
         and stayed in the cgroup they came from"
    );
    Finding::new(Code::PidNamespace, Proved, title)
        .not("MG-P051 (left the cgroup): their parents are outside the container")
        .by_hand(Keeper::ProcessStarter, "end them where they were started")
}

/// Returns whether no process inside can write the files of another cgroup.
fn is_unprivileged(view: &View<'_>) -> bool {
    let can = |name: &String| name.ends_with("SYS_ADMIN") || name == "ALL";
    view.container().is_some_and(|container| {
        !container.privileged && !container.binds_cgroupfs && !container.cap_add.iter().any(can)
    })
}

fn named(mut finding: Finding, processes: &[&Process]) -> Finding {
    for process in processes.iter().take(SHOWN) {
        finding = finding.seen(
            format!("process {}, parent {}", process.pid, process.parent),
            &process.cgroup,
            process.command_line(),
        );
    }
    finding
}

/// Reports containers of the same image that have no limit.
fn others(view: &View<'_>) -> Option<Finding> {
    // With the systemd driver, a container without a limit gets systemd's default.
    let default = view.unit().and_then(|unit| unit.default_tasks_max).unwrap_or(Limit::Max);
    let is_unlimited = |limit| limit == Limit::Max || limit == default;
    let others = view.facts.others.iter().filter(|other| other.same_image);
    let unlimited: Vec<_> = others.filter(|other| other.limit.is_some_and(is_unlimited)).collect();
    if unlimited.is_empty() || view.effective.is_none_or(is_unlimited) {
        return None;
    }
    let in_words = |tasks: u64| format!("{tasks} {}", if tasks == 1 { "task" } else { "tasks" });
    let tasks = in_words(unlimited.iter().filter_map(|other| other.tasks).sum());
    let mut finding = Finding::new(
        Code::OtherContainers,
        Proved,
        match unlimited.len() {
            1 => format!("another container of this image has no limit and runs {tasks}"),
            count => {
                format!("{count} other containers of this image have no limit and run {tasks}")
            }
        },
    );
    for other in unlimited.iter().take(SHOWN) {
        let id = other.id.get(..12).unwrap_or(&other.id);
        let tasks = other.tasks.map_or_else(|| "? tasks".to_owned(), in_words);
        finding = finding.seen("container", format!("{id} {}", other.name), tasks);
    }
    Some(finding.by_hand(Keeper::ContainerStarter, "give each of them its own --pids-limit"))
}

/// Reports that containers started through the engine's socket run beside the target.
fn siblings(view: &View<'_>) -> Option<Finding> {
    let container = view.container().filter(|container| container.binds_docker_socket)?;
    (!view.facts.others.is_empty()).then(|| {
        Finding::new(
            Code::Siblings,
            Possible,
            "the container can use the engine's socket: containers that it starts run beside it, \
             and its limit does not count them",
        )
        .seen("bind", "HostConfig.Binds", "docker.sock")
        .seen("id", "container", &container.id)
        .by_hand(Keeper::ContainerConfig, "set a limit on each container where it is started")
    })
}

/// Reports dead processes that are not reaped and so still count.
fn zombies(view: &View<'_>) -> Option<Finding> {
    let count = view.facts.zombies.len() as u64;
    let unseen = view.current?.saturating_sub(view.facts.threads());
    if count == 0 || unseen == 0 {
        return None;
    }
    let finding = Finding::new(
        Code::Zombies,
        Proved,
        format!("{count} dead processes still count, because their parents do not reap them"),
    )
    .seen("charged but not running", view.file_of("pids.current"), unseen);
    let parents: BTreeSet<Pid> = view.facts.zombies.iter().map(|process| process.parent).collect();
    let parents: Vec<String> = parents.iter().take(SHOWN).map(ToString::to_string).collect();
    let finding = finding.seen("parents that do not reap", "/proc/PID/stat", parents.join(", "));
    Some(finding.by_hand(
        Keeper::ImageOrComposeFile,
        "re-create it with init: true in the compose file, or with --init; a restart helps until \
         then",
    ))
}
