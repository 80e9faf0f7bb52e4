//! Reads the clamp that an incident holds on a cgroup, from its mark.

use std::{
    fs::{self, File},
    path::{Component, Path},
};

use mcp_guard_core::{diagnose::facts::Clamp, incident::Hold, limit::Limit};

use crate::host::{layout::Layout, mark};

/// Returns the clamp on a cgroup. `None` if there is none, or if its mark cannot be read: only root
/// may.
pub fn read(layout: &Layout, path: &str) -> Option<Clamp> {
    let inside = Path::new(path.trim_start_matches('/'));
    if inside.components().any(|part| !matches!(part, Component::Normal(_))) {
        return None;
    }
    let folder = layout.pids.as_ref()?.mount.join(inside);
    let mark = mark::read(File::open(&folder).ok()?, Hold::Clamp).ok()??;
    let limit = |text: &str| Limit::parse(text.trim());
    let now = fs::read_to_string(folder.join("pids.max")).ok().as_deref().and_then(limit);
    // If the agent died between two steps, the limit before the newest is in force.
    let ours = now.filter(|now| mark.wrote_limit(*now));
    let wrote = ours.or_else(|| mark.wrote.as_deref().and_then(limit))?;
    let found = mark.found.as_deref().and_then(limit)?;
    let beside_freeze = mark.ends_with_a_freeze();
    Some(Clamp { incident: mark.incident, found, wrote, beside_freeze })
}
