//! A lower limit above the target's own cgroup.

use super::super::{
    code::Code,
    facts::Level,
    report::{Certainty::Proved, Finding},
    view::View,
};

pub fn cause(view: &View<'_>) -> Option<Finding> {
    let (level, limit) = view.facts.effective()?;
    let own = view.own()?;
    // Where nothing is wanted here, a limit above is the one that was meant.
    let wanted = view.kernel.filter(|own| *own > limit)?;
    if level.path == own.path {
        return None;
    }
    let (code, owner, command) = owner(level);
    let finding = Finding::new(
        code,
        Proved,
        format!(
            "{} allows {limit} tasks for everything below it, so {wanted} here never comes to bear",
            level.path
        ),
    )
    .seen("limit above", format!("{}/pids.max", level.path), limit)
    .seen("limit here", view.file_of("pids.max"), wanted);
    let finding = match level.current {
        Some(current) => {
            finding.seen("tasks below it", format!("{}/pids.current", level.path), current)
        }
        None => finding,
    };
    let finding = match refused(own, level) {
        Some((file, count)) => finding.seen("forks refused", file, count),
        None => finding,
    };
    Some(finding.by_hand(owner, command))
}

/// Since Linux 6.11 a refusal counts where the limit stands; before, where the fork was tried.
fn refused(own: &Level, above: &Level) -> Option<(String, u64)> {
    let since = above.own_denials.map(|count| (format!("{}/pids.events.local", above.path), count));
    since.or_else(|| Some((format!("{}/pids.events", own.path), own.denials?)))
}

fn owner(level: &Level) -> (Code, &'static str, String) {
    let name = level.path.rsplit('/').next().unwrap_or_default();
    if level.path.contains("/lxc.payload.") || level.path.contains("/lxc/") {
        return (Code::Lxc, "LXC", "raise limits.processes of the system container".to_owned());
    }
    if level.path.contains("kubepods") {
        let command = "raise podPidsLimit of the kubelet; pods take it when they are made anew";
        return (Code::PodLevel, "kubelet", command.to_owned());
    }
    if name.ends_with(".slice") || name.ends_with(".service") {
        return (
            Code::AncestorLimit,
            "systemd",
            format!("systemctl set-property {name} TasksMax=N"),
        );
    }
    let command = format!("raise {}/pids.max where it is set, or use another parent", level.path);
    (Code::AncestorLimit, "whoever made that cgroup", command)
}
