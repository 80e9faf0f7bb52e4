//! Asks whoever keeps a limit: an engine, or systemd. Only the executor does, which has checked and
//! recorded the write, and reads it back.

use mcp_guard_core::{container::payload_below, limit::Limit, repair::Write};

use crate::{
    engine::{self, Engines},
    host::systemd::{self, Systemd},
};

/// What an owner answered: why not, or where that is systemd, TasksMax as it now keeps it.
pub type OwnerAnswer = Result<Option<Limit>, String>;

/// A write as its owner is asked for it.
#[derive(Clone, Debug)]
pub struct OwnerQuestion {
    pub write: Write,
    /// Path of the cgroup.
    pub cgroup: String,
    /// Id of the container, for its engine.
    pub container: Option<String>,
}

/// # Errors
/// Says what the owner said.
pub async fn ask(ask: OwnerQuestion, engines: &Engines) -> OwnerAnswer {
    let id = ask.container.unwrap_or_default();
    match &ask.write {
        Write::Docker { limit } | Write::Podman { limit } => {
            let said = |error: engine::Error| error.to_string();
            engines.update_limit(&id, *limit).await.map_err(said)?;
        }
        Write::TasksMax { unit, limit, runtime } => {
            return tasks_max(&ask.cgroup, unit, Limit::Tasks(*limit), *runtime).await;
        }
        // Nobody's: the executor writes it, which holds the cgroup.
        Write::PidsMax { .. } => {}
    }
    Ok(None)
}

/// Sets it where the unit is the cgroup's by its whole path, and asks what systemd keeps then.
async fn tasks_max(cgroup: &str, unit: &str, limit: Limit, runtime: bool) -> OwnerAnswer {
    let said = |error: systemd::Error| error.to_string();
    let systemd = Systemd::for_a_write().await.ok_or("systemd is not the init here")?;
    let systemd = systemd.map_err(said)?;
    let of_unit = systemd.cgroup_of(unit).await.map_err(said)?.unwrap_or_default();
    if !is_of(cgroup, &of_unit) {
        return Err(format!("{unit} has another cgroup than {cgroup}: {of_unit:?}"));
    }
    systemd.set_tasks_max(unit, limit, runtime).await.map_err(said)?;
    systemd.tasks_max(unit).await.map_err(said)
}

/// The unit's own, or its payload's.
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
    fn a_unit_is_known_by_its_whole_path() {
        let scope = format!("/machine.slice/libpod-{}.scope", "a".repeat(64));
        let payload = format!("{scope}/container");
        for (cgroup, of_unit, expected) in [
            ("/system.slice/gw.service", "/system.slice/gw.service", true),
            (r"/a.slice/a\x2db.service", r"/a.slice/a\x2db.service", true),
            // A container that may make cgroups can make one of any name.
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
