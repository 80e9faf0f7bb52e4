//! Who keeps the number, and so must write it.

use super::{
    code::Code,
    facts::{EngineKind, Facts, Source, Unit, Unreadable},
    version::version,
};
use crate::{container::payload_below, limit::Limit};

/// The first version of Podman whose update is kept and changes nothing else.
const PODMAN_UPDATES: (u32, u32, u32) = (5, 4, 0);

/// Why nothing can be repaired, and what to do instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused(pub String);

/// How a cgroup stands to a unit whose limit binds nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The unit's own cgroup.
    Own,
    /// The one in which an engine keeps all processes of the unit, with a limit of its own.
    Payload,
}

impl Standing {
    /// None where the cgroup lies deeper: a limit of the unit would bind what else is in there.
    #[must_use]
    pub fn of(cgroup: &str, unit: &str) -> Option<Self> {
        let is_unit = |path: &str| path.rsplit('/').next() == Some(unit);
        if is_unit(cgroup) {
            return Some(Self::Own);
        }
        let around = above_payload(cgroup)?;
        is_unit(around).then_some(Self::Payload)
    }
}

/// The scope whose payload this cgroup is.
fn above_payload(cgroup: &str) -> Option<&str> {
    let (around, name) = cgroup.rsplit_once('/')?;
    (payload_below(around) == Some(name)).then_some(around)
}

/// Who keeps the number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Docker's update writes its own store, systemd's TasksMax and the kernel.
    Docker,
    /// The same of Podman, from 5.4 on.
    Podman,
    /// systemd's TasksMax of a unit. `payload`: the engine keeps the processes in a cgroup below the
    /// unit's, which has a limit of its own.
    Unit { name: String, transient: bool, payload: bool },
    /// Nobody but the kernel.
    Kernel,
}

impl Owner {
    #[must_use]
    pub fn keeps_over(&self) -> &'static [&'static str] {
        match self {
            Self::Docker | Self::Podman => &["container restart", "daemon-reload", "reboot"],
            Self::Unit { transient: true, .. } => &["daemon-reload"],
            Self::Unit { transient: false, .. } => &["unit restart", "daemon-reload", "reboot"],
            Self::Kernel => &[],
        }
    }
}

/// How long a repair of this target would last.
#[must_use]
pub fn survives(facts: &Facts) -> &'static [&'static str] {
    let cgroup = facts.own().map_or("", |own| own.path.as_str());
    owner(facts, cgroup).map_or(&[], |owner| owner.keeps_over())
}

/// # Errors
/// No write here would bind, or the owner cannot be known.
pub fn owner(facts: &Facts, cgroup: &str) -> Result<Owner, Refused> {
    let Some(engine) = facts.engine.as_ref().filter(|_| facts.container.is_some()) else {
        return unit_or_kernel(facts, cgroup);
    };
    let known = |text: &str| version(text).unwrap_or_default();
    match engine.kind {
        EngineKind::Podman if known(&engine.version) >= PODMAN_UPDATES => Ok(Owner::Podman),
        // An older one loses an update, or resets what was not asked for.
        EngineKind::Podman => unit_or_kernel(facts, cgroup),
        EngineKind::Docker if known(&engine.api_version) < (1, 40, 0) => Err(Refused(format!(
            "{}: the engine speaks API {} at most, where an update of a limit is ignored",
            Code::ApiTooOld,
            engine.api_version
        ))),
        EngineKind::Docker => Ok(Owner::Docker),
    }
}

fn unit_or_kernel(facts: &Facts, cgroup: &str) -> Result<Owner, Refused> {
    let unit = facts.unit.as_ref();
    if let Some((unit, standing)) =
        unit.and_then(|unit| Some((unit, Standing::of(cgroup, &unit.name)?)))
    {
        let (name, transient) = (unit.name.clone(), unit.transient);
        return Ok(Owner::Unit { name, transient, payload: standing == Standing::Payload });
    }
    // systemd leaves a payload's own limit alone; of any other it would undo what it is not told of.
    match unit_unread(facts) {
        Some(one) if above_payload(cgroup).is_none() => Err(Refused(format!(
            "whether a unit of systemd owns the limit cannot be known ({one}), and it would be \
             undone there; try again"
        ))),
        _ => Ok(Owner::Kernel),
    }
}

/// Why it is not known whether a unit of systemd owns the cgroup.
#[must_use]
pub fn unit_unread(facts: &Facts) -> Option<&Unreadable> {
    let of_systemd = |what: &Source| matches!(what, Source::Systemd | Source::UnitOfCgroup);
    facts.unreadable.iter().find(|one| of_systemd(&one.what))
}

/// Whether whoever keeps the limit has this number already, and it is only not in force.
#[must_use]
pub fn has_it(facts: &Facts, unit: Option<&Unit>, limit: u64) -> bool {
    match &facts.container {
        Some(container) => {
            container.pids_limit.and_then(|kept| kept.try_into().ok()) == Some(limit)
        }
        None => unit.and_then(|unit| unit.tasks_max) == Some(Limit::Tasks(limit)),
    }
}
