//! Where a limit must be written so that it holds: decided from the same facts as a diagnosis.
//!
//! The owner of the number writes it, because whoever writes past the owner is undone. Where more
//! tasks are there than the limit holds, it is lowered step by step as they end (a ratchet): each
//! step leaves room above what runs, so that nothing that runs is broken, and growth stops at once.
//! Steps are run-time writes; the owner's own store is written last, when the tasks fit, so that
//! whoever dies half-way leaves no step behind as "declared".

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    diagnose::{
        code::Code,
        compose,
        facts::{Facts, Says, Unit},
        judge,
        owner::{Owner, Refused, Standing, has_it, owner},
        report::{Layer, Place, Report},
    },
    escape::visible,
    limit::{EXEC, LEAST, Limit, MOST, room_for},
};

/// Between two steps of a ratchet.
pub const STEP: Duration = Duration::from_secs(10);

/// What a limit is asked to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// None takes what is declared.
    pub limit: Option<u64>,
    /// At once, also below what runs.
    pub force: bool,
    /// Tasks that a step on the way down leaves free.
    pub headroom: u64,
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "write")]
pub enum Write {
    Docker { limit: u64 },
    Podman { limit: u64 },
    TasksMax { unit: String, limit: u64, runtime: bool },
    PidsMax { limit: u64 },
}

impl Write {
    #[must_use]
    pub fn limit(&self) -> u64 {
        match self {
            Self::Docker { limit }
            | Self::Podman { limit }
            | Self::TasksMax { limit, .. }
            | Self::PidsMax { limit } => *limit,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub limit: u64,
    pub owner: Owner,
    /// The unit whose own cgroup it is, and which must say the same in the end.
    unit: Option<String>,
    /// That unit ends with its cgroup, and so does a run-time property of it.
    transient: bool,
    /// Live servers, each of which may still make a thread pool.
    servers: u64,
    /// Its owner has this very limit: what runs there lived with it before.
    restores: bool,
    force: bool,
    headroom: u64,
    /// What a person should know before.
    pub notes: Vec<String>,
}

/// What to do at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// The tasks fit: write it where it is kept.
    Last(Vec<Write>),
    /// A step down.
    Lower(Vec<Write>, u64),
    /// As low as what runs allows.
    Wait,
}

impl Next {
    #[must_use]
    pub fn writes(&self) -> &[Write] {
        match self {
            Self::Last(writes) | Self::Lower(writes, _) => writes,
            Self::Wait => &[],
        }
    }

    #[must_use]
    pub fn into_writes(self) -> Vec<Write> {
        match self {
            Self::Last(writes) | Self::Lower(writes, _) => writes,
            Self::Wait => Vec::new(),
        }
    }
}

/// # Errors
/// No limit is known, it is out of bounds, or no write here would bind.
pub fn plan(facts: &Facts, wanted: Wanted) -> Result<Plan, Refused> {
    let Wanted { limit, force, headroom } = wanted;
    let report = judge(facts);
    let refused = |why: String| Err(Refused(why));
    let Some(limit) = limit.or(report.declared) else {
        let proposal = report.sizing.as_ref().map_or_else(String::new, |sizing| {
            format!("; what runs there now takes --limit {}", sizing.limit_now)
        });
        return refused(format!("nothing declares a limit: give one with --limit{proposal}"));
    };
    if limit == 0 || limit > MOST {
        return refused(format!("{limit} is no limit: the kernel takes 1 to {MOST}"));
    }
    // What its owner has already is no new risk.
    if limit < LEAST && !force && report.declared != Some(limit) {
        return refused(format!(
            "{limit} is less than the {LEAST} tasks of a docker exec, so health checks would fail; \
             --force sets it all the same"
        ));
    }
    if let Some(finding) = report.findings.iter().find(|finding| is_out_of_reach(finding.code)) {
        return refused(format!("{}: {}", finding.code, finding.title));
    }
    let Some(own) = facts.own().filter(|own| own.max.is_some()) else {
        return refused("its pids.max cannot be read, so nothing could be read back".to_owned());
    };
    let is_own = |unit: &&Unit| Standing::of(&own.path, &unit.name) == Some(Standing::Own);
    let unit = facts.unit.as_ref().filter(is_own);
    Ok(Plan {
        limit,
        owner: owner(facts, &own.path)?,
        unit: unit.map(|unit| unit.name.clone()),
        transient: unit.is_some_and(|unit| unit.transient),
        servers: report.sizing.as_ref().map_or(0, |sizing| sizing.servers),
        restores: has_it(facts, unit, limit),
        force,
        headroom,
        notes: notes(&report, limit),
    })
}

/// Causes that no write on this host mends.
fn is_out_of_reach(code: Code) -> bool {
    matches!(
        code,
        Code::OtherDaemon
            | Code::DesktopVm
            | Code::Sandbox
            | Code::CgroupsDisabled
            | Code::ControllerDisabled
            | Code::NotDelegated
            | Code::Rootless
    )
}

fn notes(report: &Report, limit: u64) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(sizing) = &report.sizing
        && limit < sizing.limit_now
    {
        notes.push(format!(
            "{limit} is less than what runs there needs: {} servers of {} tasks each want {}",
            sizing.servers, sizing.tasks_per_server, sizing.limit_now
        ));
    }
    let above = report.findings.iter().find(|finding| finding.code == Code::AncestorLimit);
    notes.extend(above.map(|finding| format!("{}: {}", finding.code, finding.title)));
    notes
}

impl Plan {
    /// What to do with so many tasks there, this limit in force, and this one as the last step. The
    /// headroom is for steps. The target has to hold what runs; a new one also what that may still start.
    #[must_use]
    pub fn next(&self, tasks: u64, in_force: Limit, step: Option<u64>) -> Next {
        // No more than a step leaves, so that no step is below the limit.
        let spare = EXEC.min(self.headroom);
        let needed = if self.restores { tasks } else { room_for(tasks, self.servers, spare) };
        let fits = needed <= self.limit || in_force <= Limit::Tasks(self.limit);
        if self.force || fits {
            return Next::Last(self.last());
        }
        // Never below what runs, never up again: also not where somebody undid the last step.
        let room = room_for(tasks, self.servers, self.headroom);
        let next = step.map_or(room, |step| step.min(room));
        if Limit::Tasks(next) < in_force {
            return Next::Lower(self.steps(next), next);
        }
        Next::Wait
    }

    /// The writes that reach the limit.
    #[must_use]
    pub fn last(&self) -> Vec<Write> {
        let limit = self.limit;
        match &self.owner {
            Owner::Docker => vec![Write::Docker { limit }],
            Owner::Podman => vec![Write::Podman { limit }],
            Owner::Kernel => vec![Write::PidsMax { limit }],
            Owner::Unit { name, transient, payload } => {
                let unit = name.clone();
                // The payload's first: it binds, whether systemd answers or not.
                let mut writes = Vec::from_iter(payload.then_some(Write::PidsMax { limit }));
                writes.push(Write::TasksMax { unit, limit, runtime: *transient });
                writes
            }
        }
    }

    /// Nothing of it outlives the cgroup: a run-time property of a permanent unit stays until the next
    /// boot.
    fn steps(&self, limit: u64) -> Vec<Write> {
        match self.unit.as_ref().filter(|_| self.transient) {
            Some(unit) => vec![Write::TasksMax { unit: unit.clone(), limit, runtime: true }],
            None => vec![Write::PidsMax { limit }],
        }
    }

    /// Whether its owner remembers it when the container starts anew.
    #[must_use]
    pub fn is_kept_by_its_owner(&self) -> bool {
        matches!(self.owner, Owner::Docker | Owner::Podman)
    }

    /// How long it lasts once it is done.
    #[must_use]
    pub fn survives(&self) -> &'static [&'static str] {
        self.owner.keeps_over()
    }

    /// What takes it away again.
    #[must_use]
    pub fn lost_at(&self) -> &'static str {
        match &self.owner {
            Owner::Docker | Owner::Podman => "the next time its file makes the container anew",
            Owner::Unit { transient: true, .. } => "the next start of the container",
            Owner::Unit { transient: false, .. } => "systemctl revert",
            Owner::Kernel => "the end of the cgroup, or whoever writes pids.max",
        }
    }

    /// The places that must say the limit now, as a fresh look found them; true where all do.
    #[must_use]
    pub fn proof(&self, facts: &Facts) -> (bool, Vec<Place>) {
        let must = |place: Layer| match place {
            Layer::Kernel => true,
            Layer::Engine => matches!(self.owner, Owner::Docker | Owner::Podman),
            Layer::Systemd => self.unit.is_some() || matches!(self.owner, Owner::Unit { .. }),
            Layer::ComposeFile | Layer::OciConfig | Layer::RuntimeState => false,
        };
        let mut places = judge(facts).places;
        places.retain(|place| must(place.place));
        let limit = self.limit.to_string();
        // One that could not be read says nothing, and does not hold.
        let said = |wanted: Layer| places.iter().any(|place| place.place == wanted);
        let all = [Layer::Engine, Layer::Systemd, Layer::Kernel];
        let all_said = all.into_iter().all(|one| !must(one) || said(one));
        let holds = all_said && places.iter().all(|place| place.value == limit);
        (holds, places)
    }
}

/// Who has another limit in force, as far as facts tell.
#[must_use]
pub fn undone_by(facts: &Facts, limit: u64, in_force: Limit) -> String {
    let cgroup = facts.own().map_or("", |own| own.path.as_str());
    let keeps = |unit: &&Unit| {
        unit.tasks_max == Some(in_force) && Standing::of(cgroup, &unit.name).is_some()
    };
    let unit = facts.unit.as_ref().filter(keeps);
    let who = match unit {
        Some(unit) => format!("systemd keeps TasksMax={in_force} for {}", unit.name),
        None => "somebody wrote pids.max, and neither the engine nor systemd has it".to_owned(),
    };
    format!("{limit} is wanted, {in_force} is in force: {who}")
}

/// The edit that makes the compose file agree, for a person to make.
#[must_use]
pub fn edit(facts: &Facts, limit: u64) -> Option<String> {
    let compose = compose::judged(facts.compose.as_ref()?);
    match &compose.says {
        Says::Limit { value, .. } if u64::try_from(*value) == Ok(limit) => None,
        Says::Limit { key, file, line, filled: true, .. } => {
            let file = visible(file);
            Some(format!("{file}:{line}: the variable in {key} must come to {limit}"))
        }
        Says::Limit { value, key, file, line, .. } => {
            let key = key.rsplit('.').next().unwrap_or(key);
            let file = visible(file);
            Some(format!("{file}:{line}\n-   {key}: {value}\n+   {key}: {limit}"))
        }
        Says::Nothing { .. } => {
            let (file, service) = (visible(compose.files.first()?), visible(&compose.service));
            Some(format!("{file}, services: {service}:\n+   pids_limit: {limit}"))
        }
        Says::Invalid { .. } | Says::Unknown { .. } | Says::NotAsked => None,
    }
}

#[cfg(test)]
mod tests;
