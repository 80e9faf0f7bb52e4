//! A limit above the target's own cgroup: lower than its own, or used up by others.

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

/// The limit above that was meant, because nothing is wanted here. Those of a pod or a system container
/// are somebody else's.
pub fn meant(view: &View<'_>) -> Option<Fine> {
    let (level, limit) = lowest(view)?;
    is_meant(view, level).then(|| {
        let title = format!("nothing is declared here: the limit is the {limit} of {}", level.path);
        Fine::new(Code::WrongLevel, title)
    })
}

/// The level above that allows less than the target's own.
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
        "{} allows {limit} tasks for everything below it, so {own} here never comes to bear",
        level.path
    );
    Some(finding(view, level, limit, title))
}

/// A fork needs room at every level, and others may have taken that of one above.
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
        Some(Limit::Tasks(own)) => format!("although {used} of {own} are used"),
        Some(Limit::Max) | None => format!("although {used} tasks are all that is here"),
    };
    let title =
        format!("{} holds {current} of {limit} tasks: forks {fail} here {though}", level.path);
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
        finding = finding.seen("tasks below it", format!("{}/pids.current", level.path), current);
    }
    if let Some((file, count)) = view.own().and_then(|own| refused(own, level)) {
        finding = finding.seen("forks refused", file, count);
    }
    finding.by_hand(owner, command)
}

/// Since Linux 6.11 a refusal counts where the limit stands; before, where the fork was tried.
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
        let command = "raise podPidsLimit of the kubelet; pods take it when they are made anew";
        return (Code::PodLevel, Keeper::Kubelet, command.to_owned());
    }
    let set_property =
        |how: &str| format!("systemctl set-property {how}{} TasksMax=N", shell_word(name));
    if name.ends_with(".slice") || name.ends_with(".service") {
        return (Code::AncestorLimit, Keeper::Systemd, set_property(""));
    }
    if name.ends_with(".scope") {
        // It has no file that could keep it.
        return (Code::AncestorLimit, Keeper::Systemd, set_property("--runtime "));
    }
    let file = shell_word(&format!("{}/pids.max", level.path));
    let command = format!("raise {file} where it is set, or use another parent");
    (Code::AncestorLimit, Keeper::CgroupMaker, command)
}
