//! Asks whoever keeps a limit: an engine, or systemd. Only for a [`Change`], which the executor has
//! checked and recorded, and reads back.

use mcp_guard_core::{limit::Limit, repair::Write};

use crate::{engine::Engine, executor::limit::Change, host::systemd::Systemd};

/// # Errors
/// Says what the owner said.
pub async fn ask(change: &Change, engine: &Engine) -> Result<(), String> {
    let id = change.container().unwrap_or_default();
    let said = |error: crate::engine::Error| error.to_string();
    match change.write() {
        Write::Docker { limit } => engine.update_limit(id, *limit).await.map_err(said),
        Write::Podman { limit } => engine.update_limit_of_podman(id, *limit).await.map_err(said),
        Write::TasksMax { unit, limit, runtime } => {
            let systemd = Systemd::connect().await.ok_or("systemd is not the init here")?;
            let systemd = systemd.map_err(|error| error.to_string())?;
            let set = systemd.set_tasks_max(unit, Limit::Tasks(*limit), *runtime).await;
            set.map_err(|error| error.to_string())
        }
        // Nobody's: the executor writes it.
        Write::PidsMax { .. } => Ok(()),
    }
}
