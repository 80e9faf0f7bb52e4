//! The owner of a limit: the component that stores it, and so must write it.

use super::{
    code::Code,
    facts::{EngineKind, Facts, Source, Unit, Unreadable},
    version::version,
};
use crate::{
    container::{container_in, payload_below},
    limit::Limit,
};

/// The first version of Podman whose updates persist and change nothing else.
const PODMAN_UPDATES: (u32, u32, u32) = (5, 4, 0);

/// The reason why a limit cannot be repaired, and what to do instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused(pub String);

/// The relation of a cgroup to a unit whose limit applies to this cgroup and to nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The unit's own cgroup.
    Own,
    /// The cgroup below the unit's in which an engine keeps all processes of the unit. It has its own limit.
    Payload,
}

impl Standing {
    /// Returns None if the cgroup is deeper: the unit's limit would apply to other processes too.
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

/// Returns the scope that has this cgroup as its payload.
fn above_payload(cgroup: &str) -> Option<&str> {
    let (around, name) = cgroup.rsplit_once('/')?;
    (payload_below(around) == Some(name)).then_some(around)
}

/// The component that stores a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Docker. Its update writes its own store, systemd's TasksMax and the kernel.
    Docker,
    /// Podman 5.4 or newer. Its update writes the same places.
    Podman,
    /// systemd, as the TasksMax of a unit. With `payload`, an engine keeps the unit's processes in a
    /// cgroup below the unit's, which has its own limit.
    Unit { name: String, transient: bool, payload: bool },
    /// Nothing but the kernel.
    Kernel,
}

impl Owner {
    /// Returns the events that a limit written by this owner survives.
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

/// Returns the events that a repair of this target would survive.
#[must_use]
pub fn survives(facts: &Facts) -> &'static [&'static str] {
    let cgroup = facts.own().map_or("", |own| own.path.as_str());
    owner(facts, cgroup).map_or(&[], |owner| owner.keeps_over())
}

/// Finds the owner of the target's limit.
///
/// # Errors
/// If no write would take effect, or if the owner cannot be determined.
pub fn owner(facts: &Facts, cgroup: &str) -> Result<Owner, Refused> {
    let Some(engine) = facts.engine.as_ref().filter(|_| facts.container.is_some()) else {
        return match engine_unread(facts).filter(|_| container_in(cgroup).is_some()) {
            Some(one) => Err(Refused(format!(
                "it is the cgroup of a container, and its engine cannot be read ({one}), which would \
                 restore its own limit; try again, or name the engine's socket with --docker"
            ))),
            None => unit_or_kernel(facts, cgroup),
        };
    };
    let known = |text: &str| version(text).unwrap_or_default();
    match engine.kind {
        EngineKind::Podman if known(&engine.version) >= PODMAN_UPDATES => Ok(Owner::Podman),
        // Older versions lose updates, or reset other values.
        EngineKind::Podman => unit_or_kernel(facts, cgroup),
        EngineKind::Docker if known(&engine.api_version) < (1, 40, 0) => Err(Refused(format!(
            "{}: the engine supports API {} at most, which ignores updates of the limit; upgrade \
             the engine",
            Code::ApiTooOld,
            engine.api_version
        ))),
        EngineKind::Docker => Ok(Owner::Docker),
    }
}

/// Returns why it is unknown whether an engine has the container.
fn engine_unread(facts: &Facts) -> Option<&Unreadable> {
    let of_engine =
        |what: &Source| matches!(what, Source::Engine | Source::Containers | Source::Inspect);
    facts.unreadable.iter().find(|one| of_engine(&one.what))
}

fn unit_or_kernel(facts: &Facts, cgroup: &str) -> Result<Owner, Refused> {
    let unit = facts.unit.as_ref();
    if let Some((unit, standing)) =
        unit.and_then(|unit| Some((unit, Standing::of(cgroup, &unit.name)?)))
    {
        let (name, transient) = (unit.name.clone(), unit.transient);
        return Ok(Owner::Unit { name, transient, payload: standing == Standing::Payload });
    }
    // systemd does not touch a payload's own limit, but undoes direct writes to the cgroup of a unit.
    match unit_unread(facts) {
        Some(one) if above_payload(cgroup).is_none() => Err(Refused(format!(
            "cannot determine whether a systemd unit owns the limit ({one}), and systemd would \
             undo a direct write; try again"
        ))),
        _ => Ok(Owner::Kernel),
    }
}

/// Returns the reason why it is not known whether a systemd unit owns the cgroup.
#[must_use]
pub fn unit_unread(facts: &Facts) -> Option<&Unreadable> {
    let of_systemd = |what: &Source| matches!(what, Source::Systemd | Source::UnitOfCgroup);
    facts.unreadable.iter().find(|one| of_systemd(&one.what))
}

/// Returns whether the owner already stores this limit, so that only the kernel may lack it.
#[must_use]
pub fn has_it(facts: &Facts, unit: Option<&Unit>, limit: u64) -> bool {
    match &facts.container {
        Some(container) => {
            container.pids_limit.and_then(|kept| kept.try_into().ok()) == Some(limit)
        }
        None => unit.and_then(|unit| unit.tasks_max) == Some(Limit::Tasks(limit)),
    }
}
