//! Explains why a PID limit is not in force: takes facts, returns a report.
//!
//! ```text
//! facts    one snapshot of everything read       code     the stable codes of findings
//! view     the values that rules need            rules    pure functions, one file per family
//! sizing   how many tasks a container needs      report   the result
//! compose  what compose files declare            yaml     a minimal YAML reader
//! owner    which component stores a limit        explain  the long form of each finding
//! words    enums of fixed words                  version  version numbers
//! ```

#[macro_use]
mod words;

pub mod code;
pub mod compose;
pub mod explain;
pub mod facts;
pub mod owner;
pub mod report;
mod rules;
pub mod sizing;
pub mod version;
mod view;
mod yaml;

pub use self::rules::is_nearly_full;
use self::{
    code::Code,
    facts::{Facts, OciLimit, Says},
    report::{Charged, Finding, Fine, Layer, Place, Report, Verdict},
    sizing::Sizing,
    view::{StoredLimit, View},
};
use crate::limit::Limit;

/// Judges one snapshot of facts.
#[must_use]
pub fn judge(facts: &Facts) -> Report {
    let view = View::of(facts);
    let mut findings = rules::findings(&view);
    // The sort is stable: findings of one severity stay in the order in which to repair them.
    findings.sort_by_key(|finding| finding.severity);
    let declared = view.declared();
    if findings.iter().any(|finding| is_elsewhere(finding.code)) {
        return elsewhere(&view, findings);
    }
    let verdict = verdict(&view, &findings);
    let ok = rules::fine(&view, verdict);
    let sizing = Sizing::measure(facts, declared.map_or(Limit::Max, Limit::Tasks));
    Report {
        target: facts.target.clone(),
        verdict,
        declared,
        effective_limit: view.effective.and_then(Limit::tasks),
        findings,
        ok,
        unreadable: facts.unreadable.clone(),
        places: places(&view),
        charged: charged(&view),
        notes: rules::notes(&view, verdict, sizing.as_ref()),
        sizing,
    }
}

/// Returns whether this finding means that what was read on this host does not apply to the container.
fn is_elsewhere(code: Code) -> bool {
    matches!(code, Code::OtherDaemon | Code::DesktopVm | Code::Sandbox)
}

/// Reports on a container that is elsewhere: only what its engine says is known.
fn elsewhere(view: &View<'_>, findings: Vec<Finding>) -> Report {
    let mut places = places(view);
    places.retain(|place| matches!(place.place, Layer::ComposeFile | Layer::Engine));
    Report {
        target: view.facts.target.clone(),
        verdict: Verdict::Unknown,
        declared: view.declared(),
        effective_limit: None,
        findings,
        ok: Vec::new(),
        unreadable: view.facts.unreadable.clone(),
        places,
        charged: Charged::default(),
        sizing: None,
        notes: Vec::new(),
    }
}

fn verdict(view: &View<'_>, findings: &[Finding]) -> Verdict {
    // Our clamp is temporary, so the limit that its release restores is judged.
    let Some(lasting) = view.lasting_effective() else {
        let known = findings.iter().any(|finding| finding.severity == code::Severity::Critical);
        return if known { Verdict::NotEnforced } else { Verdict::Unknown };
    };
    // A repair request is newer than any value that an owner stores.
    let declared = view.facts.wanted.or(view.declared()).map_or(lasting, Limit::Tasks);
    let default = view.has_only_the_default() && view.lasting == Some(lasting);
    if lasting == Limit::Max || declared < lasting || default {
        return Verdict::NotEnforced;
    }
    match (view.effective, view.current) {
        (Some(Limit::Tasks(limit)), Some(current)) if current > limit => Verdict::Exceeded,
        _ => Verdict::Enforced,
    }
}

fn charged(view: &View<'_>) -> Charged {
    let count = |length: usize| u64::try_from(length).unwrap_or(u64::MAX);
    Charged {
        tasks: view.current,
        processes: count(view.facts.members.len()),
        zombies: count(view.facts.zombies.len()),
        moved_in: count(view.moved_in.len()),
        aliens: count(view.facts.aliens.len()),
    }
}

/// Lists the places a limit can be in, each with its value and whether the limit is lost there.
fn places(view: &View<'_>) -> Vec<Place> {
    let mut places = Vec::new();
    // The limits of the places so far, the latest last. Nothing is lost if the latest is no limit, or
    // if this place has the limit of any earlier place.
    let mut so_far: Vec<Limit> = Vec::new();
    let mut add = |place: Layer, r#where: String, value: String, limit: Option<Limit>| {
        let expected = so_far.last().is_some_and(|limit| *limit != Limit::Max);
        let breaks = expected && limit.is_some_and(|limit| !so_far.contains(&limit));
        so_far.extend(limit);
        places.push(Place { place, r#where, value, breaks });
    };
    if let Some(compose) = &view.compose {
        let (r#where, value) = match &compose.says {
            Says::Limit { value, key, file, line, .. } => {
                (format!("{file}:{line}"), format!("{key}: {value}"))
            }
            Says::Nothing { .. } => (compose.files.join(", "), "no limit".to_owned()),
            Says::Invalid { why } | Says::Unknown { why } => {
                (compose.files.join(", "), why.clone())
            }
            Says::NotAsked => (compose.files.join(", "), "not read".to_owned()),
        };
        // A variable may have had another value when compose ran.
        let known =
            matches!(compose.says, Says::Limit { filled: false, .. } | Says::Nothing { .. });
        let limit = known.then(|| view.file.map_or(Limit::Max, Limit::Tasks));
        add(Layer::ComposeFile, r#where, value, limit);
    }
    if let (Some(container), Some(stored)) = (view.container(), view.stored) {
        let (value, limit) = match stored {
            StoredLimit::Null => ("null".to_owned(), Limit::Max),
            StoredLimit::Unlimited(value) => (value.to_string(), Limit::Max),
            StoredLimit::Limit(limit) => (limit.to_string(), Limit::Tasks(limit)),
        };
        add(Layer::Engine, "HostConfig.PidsLimit".to_owned(), value, Some(limit));
        // Both are written once, when the container starts, and need not equal a later update.
        if let Some(oci) = container.oci_limit {
            let value = match oci {
                OciLimit::Absent => "absent".to_owned(),
                OciLimit::Limit(limit) => limit.to_string(),
            };
            add(Layer::OciConfig, "linux.resources.pids.limit".to_owned(), value, None);
        }
        if let Some(state) = container.state_limit {
            add(Layer::RuntimeState, "cgroups.pids_limit".to_owned(), state.to_string(), None);
        }
    }
    if let Some(unit) = view.unit()
        && let Some(tasks_max) = unit.tasks_max
    {
        // systemd stores no limit for a cgroup below the unit's own.
        let limit = view.is_the_units_own().then_some(tasks_max);
        let of = format!("TasksMax of {}", unit.name);
        add(Layer::Systemd, of, tasks_max.to_string(), limit);
    }
    let limit = (!view.is_our_repair()).then(|| view.lasting.unwrap_or(Limit::Max));
    let kernel = view.kernel.map_or_else(|| "no such file".to_owned(), |limit| limit.to_string());
    add(Layer::Kernel, view.file_of("pids.max"), kernel, limit);
    places
}

impl Fine {
    fn new(code: Code, title: impl Into<String>) -> Self {
        Self { code, title: title.into() }
    }
}

#[cfg(test)]
mod tests;
