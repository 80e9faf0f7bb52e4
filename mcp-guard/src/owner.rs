//! Asks whoever keeps a limit: an engine, or systemd. Only for a [`Change`], which the executor has
//! checked and recorded, and reads back.

use mcp_guard_core::{limit::Limit, repair::Write};

use crate::{
    engine::Engine,
    executor::limit::{Carried, Change},
    host::systemd::{self, Systemd},
};

/// # Errors
/// Says what the owner said.
pub async fn ask(change: &Change, engine: &Engine) -> Carried {
    let id = change.container().unwrap_or_default();
    let said = |error: crate::engine::Error| error.to_string();
    match change.write() {
        Write::Docker { limit } => engine.update_limit(id, *limit).await.map_err(said)?,
        Write::Podman { limit } => engine.update_limit_of_podman(id, *limit).await.map_err(said)?,
        Write::TasksMax { unit, limit, runtime } => {
            let kept = tasks_max(unit, Limit::Tasks(*limit), *runtime).await;
            return kept.map_err(|error| error.to_string());
        }
        // Nobody's: the executor writes it.
        Write::PidsMax { .. } => {}
    }
    Ok(None)
}

/// Sets it, and asks what systemd keeps then.
async fn tasks_max(
    unit: &str,
    limit: Limit,
    runtime: bool,
) -> Result<Option<Limit>, systemd::Error> {
    let systemd = Systemd::for_a_write().await.ok_or(systemd::Error::Absent)??;
    systemd.set_tasks_max(unit, limit, runtime).await?;
    systemd.tasks_max(unit).await
}
