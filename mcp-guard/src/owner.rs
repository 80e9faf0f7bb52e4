//! Writes a limit through its owner: an engine or systemd. Only the executor calls this. It checks and
//! records the write before, and reads the limit back afterwards.

use mcp_guard_core::{container::payload_below, limit::Limit, repair::Write};

use crate::{
    engine::{self, Engines},
    host::systemd::{self, Systemd},
};

/// An owner's answer: why it failed, or the TasksMax that systemd now keeps, if systemd is the owner.
pub type OwnerAnswer = Result<Option<Limit>, Unwritten>;

/// A limit that its owner has not written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unwritten {
    pub why: String,
    /// The owner has not answered, and may still write it.
    pub may_arrive: bool,
}

impl Unwritten {
    #[must_use]
    pub fn unanswered(why: &str) -> Self {
        Self { why: why.to_owned(), may_arrive: true }
    }

    fn refused(why: impl ToString) -> Self {
        Self { why: why.to_string(), may_arrive: false }
    }
}

/// A question to an owner: the write and its target.
#[derive(Clone, Debug)]
pub struct OwnerQuestion {
    pub write: Write,
    /// Path of the cgroup.
    pub cgroup: String,
    /// Id of the container, for its engine.
    pub container: Option<String>,
}

/// Asks the owner to write a limit.
///
/// # Errors
/// The owner refuses or does not answer; the error is in its own words.
pub async fn ask(ask: OwnerQuestion, engines: &Engines) -> OwnerAnswer {
    let id = ask.container.unwrap_or_default();
    match &ask.write {
        Write::Docker { limit } | Write::Podman { limit } => {
            let said = |error: engine::Error| Unwritten {
                why: error.to_string(),
                may_arrive: error.is_unanswered_change(),
            };
            engines.update_limit(&id, *limit).await.map_err(said)?;
        }
        Write::TasksMax { unit, limit, runtime } => {
            return tasks_max(&ask.cgroup, unit, Limit::Tasks(*limit), *runtime).await;
        }
        // No owner: the executor writes it itself, because it holds the cgroup.
        Write::PidsMax { .. } => {}
    }
    Ok(None)
}

/// Sets TasksMax if the unit owns the cgroup by its whole path, and reads back what systemd then keeps.
async fn tasks_max(cgroup: &str, unit: &str, limit: Limit, runtime: bool) -> OwnerAnswer {
    let said = |error: systemd::Error| Unwritten::refused(error);
    let systemd = Systemd::for_a_write().await;
    let systemd =
        systemd.ok_or_else(|| Unwritten::refused("systemd is not the init system here"))?;
    let systemd = systemd.map_err(said)?;
    let of_unit = systemd.cgroup_of(unit).await.map_err(said)?.unwrap_or_default();
    if !is_of(cgroup, &of_unit) {
        let why = format!("{unit} does not own {cgroup}: its cgroup is {of_unit:?}");
        return Err(Unwritten::refused(why));
    }
    let written = systemd.set_tasks_max(unit, limit, runtime).await;
    written.map_err(|error| Unwritten {
        may_arrive: matches!(error, systemd::Error::Late),
        why: error.to_string(),
    })?;
    systemd.tasks_max(unit).await.map_err(said)
}

/// Returns whether `cgroup` is the unit's own cgroup or its payload's.
fn is_of(cgroup: &str, of_unit: &str) -> bool {
    let Some(below) = cgroup.strip_prefix(of_unit).filter(|_| !of_unit.is_empty()) else {
        return false;
    };
    let payload = payload_below(of_unit).map(|name| format!("/{name}"));
    below.is_empty() || payload.as_deref() == Some(below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_recognised_by_its_whole_path() {
        let scope = format!("/machine.slice/libpod-{}.scope", "a".repeat(64));
        let payload = format!("{scope}/container");
        for (cgroup, of_unit, expected) in [
            ("/system.slice/gw.service", "/system.slice/gw.service", true),
            (r"/a.slice/a\x2db.service", r"/a.slice/a\x2db.service", true),
            // A container that may create cgroups can give one any name.
            ("/system.slice/gw.service/gw.service", "/system.slice/gw.service", false),
            ("/system.slice/gw.service/container", "/system.slice/gw.service", false),
            ("/system.slice/gw.service2", "/system.slice/gw.service", false),
            (&payload, &scope, true),
            (&scope, &payload, false),
            ("/system.slice/gw.service", "", false),
        ] {
            assert_eq!(is_of(cgroup, of_unit), expected, "{cgroup} {of_unit}");
        }
    }
}
