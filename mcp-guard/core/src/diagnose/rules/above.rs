//! Limits above the target's own cgroup that are lower than its own, or used up by other cgroups.

use super::super::{
    code::Code,
    facts::Level,
    report::{Certainty::Proved, Finding, Fine, Keeper},
    view::{View, shell_word},
};
use super::is_nearly_full;
use crate::limit::Limit;

pub fn cause(view: &View<'_>) -> Option<Finding> {
    used_up(view).or_else(|| lower(view))
}

/// Reports the limit above as intended if no limit is wanted here. The limit of a pod or of a system
/// container is not intended for the target, and stays a finding.
pub fn meant(view: &View<'_>) -> Option<Fine> {
    let (level, limit) = lowest(view)?;
    is_meant(view, level).then(|| {
        let title =
            format!("no limit is declared here, so the limit of {limit} in {} applies", level.path);
        Fine::new(Code::WrongLevel, title)
    })
}

/// Returns the level above with the lowest limit, if that is lower than the target's own.
fn lowest<'a>(view: &View<'a>) -> Option<(&'a Level, Limit)> {
    let (level, limit) = view.facts.effective()?;
    let own = view.own()?;
    (level.path != own.path && view.kernel? > limit).then_some((level, limit))
}

fn is_meant(view: &View<'_>, level: &Level) -> bool {
    let wanted_here = view.declared().is_some() || view.kernel != Some(Limit::Max);
    (!wanted_here || view.has_only_the_default()) && owner(level).0 == Code::AncestorLimit
}

fn lower(view: &View<'_>) -> Option<Finding> {
    let (level, limit) = lowest(view)?;
    if is_meant(view, level) {
        return None;
    }
    let own = view.kernel?;
    let title = format!(
        "{} allows {limit} tasks for everything below it, so the limit here ({own}) is never \
         reached",
        level.path
    );
    Some(finding(view, level, limit, title))
}

/// A fork needs room at every level, and other cgroups may have used up the room of a level above.
fn used_up(view: &View<'_>) -> Option<Finding> {
    let own = view.own()?;
    let used = own.current?;
    let room = |level: &Level| Some(level.max?.tasks()?.saturating_sub(level.current?));
    let full = |level: &&Level| {
        let (Some(current), Some(limit)) = (level.current, level.max.and_then(Limit::tasks)) else {
            return false;
        };
        current > used && is_nearly_full(current, limit)
    };
    let level = view.facts.chain.iter().skip(1).filter(full).min_by_key(|level| room(level))?;
    if room(own).is_some_and(|own| Some(own) <= room(level)) {
        return None;
    }
    let (current, limit) = (level.current?, level.max?);
    let fail = if Limit::Tasks(current) >= limit { "fail" } else { "may fail at any moment" };
    let though = match view.kernel {
        Some(Limit::Tasks(own)) => format!("although this cgroup has only {used} of {own} tasks"),
        Some(Limit::Max) | None => format!("although this cgroup has only {used} tasks"),
    };
    let title =
        format!("{} has {current} of {limit} tasks: forks here {fail}, {though}", level.path);
    Some(finding(view, level, limit, title))
}

fn finding(view: &View<'_>, level: &Level, limit: Limit, title: String) -> Finding {
    let (code, owner, command) = owner(level);
    let mut finding = Finding::new(code, Proved, title).seen(
        "limit above",
        format!("{}/pids.max", level.path),
        limit,
    );
    if let Some(own) = view.kernel {
        finding = finding.seen("limit here", view.file_of("pids.max"), own);
    }
    if let Some(current) = level.current {
        finding =
            finding.seen("tasks under that limit", format!("{}/pids.current", level.path), current);
    }
    if let Some((file, count)) = view.own().and_then(|own| refused(own, level)) {
        finding = finding.seen("forks refused", file, count);
    }
    finding.by_hand(owner, command)
}

/// Since Linux 6.11 a refused fork is counted at the level whose limit refused it, before that in the cgroup
/// that forked.
fn refused(own: &Level, above: &Level) -> Option<(String, u64)> {
    let since = above.own_denials.map(|count| (format!("{}/pids.events.local", above.path), count));
    since.or_else(|| Some((format!("{}/pids.events", own.path), own.denials?)))
}

fn owner(level: &Level) -> (Code, Keeper, String) {
    let name = level.path.rsplit('/').next().unwrap_or_default();
    if level.path.contains("/lxc.payload.") || level.path.contains("/lxc/") {
        return (
            Code::Lxc,
            Keeper::Lxc,
            "raise limits.processes of the system container".to_owned(),
        );
    }
    if level.path.contains("kubepods") {
        let command = "raise podPidsLimit of the kubelet, and re-create the pod";
        return (Code::PodLevel, Keeper::Kubelet, command.to_owned());
    }
    let set_property =
        |how: &str| format!("systemctl set-property {how}{} TasksMax=N", shell_word(name));
    if name.ends_with(".slice") || name.ends_with(".service") {
        return (Code::AncestorLimit, Keeper::Systemd, set_property(""));
    }
    if name.ends_with(".scope") {
        // A scope has no unit file that could store the value.
        return (Code::AncestorLimit, Keeper::Systemd, set_property("--runtime "));
    }
    let file = shell_word(&format!("{}/pids.max", level.path));
    let command = format!("raise {file} where it is set, or use another parent cgroup");
    (Code::AncestorLimit, Keeper::CgroupMaker, command)
}
