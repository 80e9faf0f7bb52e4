//! Output of `repair`.

use mcp_guard_core::{
    diagnose::{
        owner::Owner,
        report::{Place, Report},
    },
    escape::visible,
    repair::{Plan, Write},
};

/// Describes the planned write and its reasons. The plan was made from `report`.
#[must_use]
pub fn plan(report: &Report, plan: &Plan) -> String {
    let owner = match &plan.owner {
        Owner::Docker => "Docker's update".to_owned(),
        Owner::Podman => "Podman's update".to_owned(),
        Owner::Unit { name, .. } => format!("TasksMax of {name}"),
        Owner::Kernel => "pids.max itself, which no engine and no unit owns".to_owned(),
    };
    let mut lines = vec![format!(
        "{}: a limit of {} through {owner}",
        visible(&report.target.name),
        plan.limit
    )];
    let now = report.charged.tasks.map_or_else(|| "?".to_owned(), |tasks| tasks.to_string());
    lines.push(format!("  now {now} tasks, {}", said(&report.places)));
    lines.extend(plan.notes.iter().map(|note| format!("  note: {note}")));
    lines.join("\n")
}

/// Describes a dry run. `writes` would be made now, on the way to `limit`.
#[must_use]
pub fn dry_run(writes: &[Write], limit: u64) -> String {
    if writes.is_empty() {
        return "  dry run: would wait for tasks to end".to_owned();
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

/// Describes the limits that were read back.
#[must_use]
pub fn places(places: &[Place]) -> String {
    format!("  read back: {}", said(places))
}

fn said(places: &[Place]) -> String {
    let words: Vec<String> =
        places.iter().map(|place| format!("{} {}", place.place, visible(&place.value))).collect();
    words.join(", ")
}

/// Describes how long the limit lasts, and the edit of the compose file that is still to be made.
#[must_use]
pub fn lasts(plan: &Plan, edit: Option<&str>) -> String {
    let survives = match plan.survives() {
        [] => "nothing".to_owned(),
        what => what.join(", "),
    };
    let mut lines =
        vec![format!("  survives: {survives}"), format!("  lost at: {}", plan.lost_at())];
    if let Some(edit) = edit {
        lines.push("  edit the compose file to match:".to_owned());
        lines.extend(edit.lines().map(|line| format!("    {line}")));
    }
    lines.join("\n")
}
