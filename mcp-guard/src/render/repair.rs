//! What `repair` says.

use mcp_guard_core::{
    diagnose::{
        owner::Owner,
        report::{Place, Report},
    },
    escape::visible,
    repair::{Plan, Write},
};

/// What is about to be done, and why that way; `report` is the diagnosis that the plan was made from.
#[must_use]
pub fn plan(report: &Report, plan: &Plan) -> String {
    let owner = match &plan.owner {
        Owner::Docker => "Docker's update".to_owned(),
        Owner::Podman => "Podman's update".to_owned(),
        Owner::Unit { name, .. } => format!("TasksMax of {name}"),
        Owner::Kernel => "pids.max itself: no engine and no unit owns it".to_owned(),
    };
    let mut lines =
        vec![format!("{}: a limit of {} by {owner}", visible(&report.target.name), plan.limit)];
    let now = report.charged.tasks.map_or_else(|| "?".to_owned(), |tasks| tasks.to_string());
    lines.push(format!("  now {now} tasks, {}", said(&report.places)));
    lines.extend(plan.notes.iter().map(|note| format!("  note: {note}")));
    lines.join("\n")
}

/// `writes`: what would be written now, on the way to `limit`.
#[must_use]
pub fn dry_run(writes: &[Write], limit: u64) -> String {
    if writes.is_empty() {
        return "  dry run: would wait until tasks end".to_owned();
    }
    let all = writes.iter().map(one).collect::<Vec<_>>().join(", then ");
    if writes.iter().all(|write| write.limit() == limit) {
        format!("  dry run: would {all}")
    } else {
        format!("  dry run: would {all} first, and lower it further as tasks end")
    }
}

fn one(write: &Write) -> String {
    match write {
        Write::Docker { limit } => format!("ask Docker for PidsLimit {limit}"),
        Write::Podman { limit } => format!("ask Podman for a pids limit of {limit}"),
        Write::TasksMax { unit, limit, .. } => format!("set TasksMax={limit} of {unit}"),
        Write::PidsMax { limit } => format!("write {limit} to pids.max"),
    }
}

/// What was read back.
#[must_use]
pub fn places(places: &[Place]) -> String {
    format!("  read back: {}", said(places))
}

fn said(places: &[Place]) -> String {
    let words: Vec<String> =
        places.iter().map(|place| format!("{} {}", place.place, visible(&place.value))).collect();
    words.join(", ")
}

/// How long it lasts, and the edit of the compose file that a person still has to make.
#[must_use]
pub fn lasts(plan: &Plan, edit: Option<&str>) -> String {
    let survives = match plan.survives() {
        [] => "nothing but time".to_owned(),
        what => what.join(", "),
    };
    let mut lines =
        vec![format!("  survives: {survives}"), format!("  lost at: {}", plan.lost_at())];
    if let Some(edit) = edit {
        lines.push("  make the compose file agree:".to_owned());
        lines.extend(edit.lines().map(|line| format!("    {line}")));
    }
    lines.join("\n")
}
