//! Decides where a limit must be written to take effect, from the same facts as a diagnosis.
//!
//! The limit is written through its owner, because the owner would undo a write that bypasses it.
//! If there are more tasks than the limit allows, the limit is lowered in steps as they end (a
//! ratchet). Each step leaves room above the running tasks, so that no running program breaks, and
//! growth stops at once. Steps are run-time writes. The owner's own store is written last, when the
//! tasks fit, so that a process that dies half-way leaves no step behind as "declared".

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    diagnose::{
        code::Code,
        compose,
        facts::{Facts, Level, Says, Unit},
        judge,
        owner::{Owner, Refused, Standing, has_it, owner},
        report::{Layer, Place, Report},
    },
    escape::visible,
    limit::{EXEC, LEAST, Limit, MOST, room_for},
};

/// Time between two steps of a ratchet.
pub const STEP: Duration = Duration::from_secs(10);

/// A requested limit, and how to get there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// `None` means the declared limit.
    pub limit: Option<u64>,
    /// Write the limit at once, even below the number of running tasks.
    pub force: bool,
    /// Tasks that a step on the way down leaves free.
    pub headroom: u64,
}

/// One write of a limit.
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
    /// The unit whose own cgroup is limited. It must show the same limit in the end.
    unit: Option<String>,
    /// That unit ends with its cgroup, and so do its run-time properties.
    transient: bool,
    /// Live servers, each of which may still create a thread pool.
    servers: u64,
    /// The owner already has this limit, so the running tasks have fitted in it before.
    restores: bool,
    force: bool,
    headroom: u64,
    /// Facts that an operator should know before the repair.
    pub notes: Vec<String>,
}

/// The next thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// The tasks fit: write the limit at its owner.
    Last(Vec<Write>),
    /// Lower the limit by a step.
    Lower(Vec<Write>, u64),
    /// The limit is already as low as the running tasks allow.
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

/// Plans how to bring a limit into force.
///
/// # Errors
/// If no limit is known, if it is out of bounds, or if no write on this host would take effect.
pub fn plan(facts: &Facts, wanted: Wanted) -> Result<Plan, Refused> {
    let Wanted { limit, force, headroom } = wanted;
    let report = judge(facts);
    let refused = |why: String| Err(Refused(why));
    let Some(limit) = limit.or(report.declared) else {
        let proposal = report.sizing.as_ref().map_or_else(String::new, |sizing| {
            format!("; the running tasks need --limit {}", sizing.limit_now)
        });
        return refused(format!("no limit is declared: give one with --limit{proposal}"));
    };
    if limit == 0 || limit > MOST {
        return refused(format!("{limit} is not a valid limit: the kernel accepts 1 to {MOST}"));
    }
    // A limit that the owner already has is no new risk.
    if limit < LEAST && !force && report.declared != Some(limit) {
        return refused(format!(
            "{limit} is less than the {LEAST} tasks that a docker exec needs, so health checks \
             would fail; --force sets it anyway"
        ));
    }
    if let Some(finding) = report.findings.iter().find(|finding| is_out_of_reach(finding.code)) {
        return refused(format!("{}: {}", finding.code, finding.title));
    }
    let Some(own) = facts.own().filter(|own| own.max.is_some()) else {
        return refused("its pids.max cannot be read, so no write can be read back".to_owned());
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
        notes: notes(facts, &report, wanted, limit),
    })
}

/// Returns whether no write on this host can fix the cause.
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

fn notes(facts: &Facts, report: &Report, wanted: Wanted, limit: u64) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(tasks) = report.charged.tasks.filter(|tasks| wanted.force && *tasks > limit) {
        notes.push(format!(
            "--force: with {tasks} tasks, every new process and thread fails until fewer than {limit} \
             run"
        ));
    }
    let lower = |level: &Level| level.max.filter(|max| *max < Limit::Tasks(limit));
    let mut above = facts.chain.iter().skip(1);
    if let Some((level, max)) = above.find_map(|level| Some((level, lower(level)?))) {
        notes.push(format!("{} allows only {max} tasks, and binds first", visible(&level.path)));
    }
    if let Some(sizing) = &report.sizing
        && limit < sizing.limit_now
    {
        notes.push(format!(
            "{limit} is less than the running servers need: {} servers with {} tasks each need {}",
            sizing.servers, sizing.tasks_per_server, sizing.limit_now
        ));
    }
    notes
}

impl Plan {
    /// Returns the next thing to do, given the number of tasks, the limit in force and the last
    /// step. Steps leave the headroom free. The final limit must fit the running tasks; a new one
    /// must also fit those that may still start.
    #[must_use]
    pub fn next(&self, tasks: u64, in_force: Limit, step: Option<u64>) -> Next {
        // At most the headroom of a step, so that no step is below the limit.
        let spare = EXEC.min(self.headroom);
        let needed = if self.restores { tasks } else { room_for(tasks, self.servers, spare) };
        let fits = needed <= self.limit || in_force <= Limit::Tasks(self.limit);
        if self.force || fits {
            return Next::Last(self.last());
        }
        // Never below the running tasks, and never above the last step, even if another process
        // undid it.
        let room = room_for(tasks, self.servers, self.headroom);
        let next = step.map_or(room, |step| step.min(room));
        if Limit::Tasks(next) < in_force {
            return Next::Lower(self.steps(next), next);
        }
        Next::Wait
    }

    /// Returns the writes that reach the limit.
    #[must_use]
    pub fn last(&self) -> Vec<Write> {
        let limit = self.limit;
        match &self.owner {
            Owner::Docker => vec![Write::Docker { limit }],
            Owner::Podman => vec![Write::Podman { limit }],
            Owner::Kernel => vec![Write::PidsMax { limit }],
            Owner::Unit { name, transient, payload } => {
                let unit = name.clone();
                // The payload comes first: its write takes effect whether systemd answers or not.
                let mut writes = Vec::from_iter(payload.then_some(Write::PidsMax { limit }));
                writes.push(Write::TasksMax { unit, limit, runtime: *transient });
                writes
            }
        }
    }

    /// Returns the writes of a step. A step must not outlive the cgroup, so it sets no property of
    /// a permanent unit: that would stay until the next boot.
    fn steps(&self, limit: u64) -> Vec<Write> {
        match self.unit.as_ref().filter(|_| self.transient) {
            Some(unit) => vec![Write::TasksMax { unit: unit.clone(), limit, runtime: true }],
            None => vec![Write::PidsMax { limit }],
        }
    }

    /// Returns whether the owner stores the limit and applies it when the container restarts.
    #[must_use]
    pub fn is_kept_by_its_owner(&self) -> bool {
        matches!(self.owner, Owner::Docker | Owner::Podman)
    }

    /// Returns the events that the limit survives once it is written.
    #[must_use]
    pub fn survives(&self) -> &'static [&'static str] {
        self.owner.keeps_over()
    }

    /// Returns the event that removes the limit again.
    #[must_use]
    pub fn lost_at(&self) -> &'static str {
        match &self.owner {
            Owner::Docker | Owner::Podman => "the next re-creation of the container from its file",
            Owner::Unit { transient: true, .. } => "the next start of the container",
            Owner::Unit { transient: false, .. } => "systemctl revert",
            Owner::Kernel => "the end of the cgroup, or the next write to pids.max",
        }
    }

    /// Returns whether every place that must show the limit shows it in fresh `facts`, and those
    /// places.
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
        // A place that could not be read proves nothing, so the limit counts as not in force.
        let said = |wanted: Layer| places.iter().any(|place| place.place == wanted);
        let all = [Layer::Engine, Layer::Systemd, Layer::Kernel];
        let all_said = all.into_iter().all(|one| !must(one) || said(one));
        let holds = all_said && places.iter().all(|place| place.value == limit);
        (holds, places)
    }
}

/// Names the tool that put another limit in force, as far as the facts tell.
#[must_use]
pub fn undone_by(facts: &Facts, limit: u64, in_force: Limit) -> String {
    let cgroup = facts.own().map_or("", |own| own.path.as_str());
    let keeps = |unit: &&Unit| {
        unit.tasks_max == Some(in_force) && Standing::of(cgroup, &unit.name).is_some()
    };
    let unit = facts.unit.as_ref().filter(keeps);
    let stored = facts.container.as_ref().and_then(|container| container.pids_limit);
    let is_stored = stored.and_then(|stored| u64::try_from(stored).ok()) == in_force.tasks();
    let who = match unit {
        Some(unit) => format!("systemd sets TasksMax={in_force} for {}", unit.name),
        None if is_stored && stored.is_some() => format!("the engine stores {in_force}"),
        None => "another process wrote pids.max; neither engine nor systemd has it".to_owned(),
    };
    format!("{limit} is wanted, {in_force} is in force: {who}")
}

/// Returns the edit that makes the compose file agree. An operator has to make it.
#[must_use]
pub fn edit(facts: &Facts, limit: u64) -> Option<String> {
    let compose = compose::judged(facts.compose.as_ref()?);
    match &compose.says {
        Says::Limit { value, .. } if u64::try_from(*value) == Ok(limit) => None,
        Says::Limit { key, file, line, filled: true, .. } => {
            let file = visible(file);
            Some(format!("{file}:{line}: the variable in {key} must evaluate to {limit}"))
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
