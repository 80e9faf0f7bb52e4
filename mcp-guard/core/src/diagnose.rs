//! Why a limit does not hold: facts in, a report out.
//!
//! ```text
//! facts    everything that was read, once        code     the stable codes of findings
//! view     the numbers that rules ask for        rules    one file per family, each pure
//! sizing   what a container needs                report   what is said
//! compose  what compose files say                yaml     as much of YAML as that takes
//! owner    who keeps the number                  explain  the long form of each finding
//! words    enums that are one word each
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

/// Judges one snapshot.
#[must_use]
pub fn judge(facts: &Facts) -> Report {
    let view = View::of(facts);
    let mut findings = rules::findings(&view);
    // Stable: within one severity the families keep their order, which is that of the repair.
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

/// Nothing that was read here is about the container's own kernel.
fn is_elsewhere(code: Code) -> bool {
    matches!(code, Code::OtherDaemon | Code::DesktopVm | Code::Sandbox)
}

/// All that is known of such a container is what its engine says.
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
    // Our clamp is temporary: the limit that it will restore is judged.
    let Some(lasting) = view.lasting_effective() else {
        let known = findings.iter().any(|finding| finding.severity == code::Severity::Critical);
        return if known { Verdict::NotEnforced } else { Verdict::Unknown };
    };
    // A request to repair is newer than what any owner stores.
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

/// The six places, each with what it says, and whether the number came through to it.
fn places(view: &View<'_>) -> Vec<Place> {
    let mut places = Vec::new();
    // As they came through so far, the nearest last. Where none was expected, none is lost, and one
    // that comes through in the end was not.
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
        // What was filled in need not be what compose had.
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
        // Both are written once, when the container starts: neither must equal what came later.
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
        // Of a cgroup below its unit systemd keeps no number.
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
