//! The clamp that an incident holds on a cgroup, as its mark says.

use std::{
    fs::File,
    path::{Component, Path},
};

use mcp_guard_core::{diagnose::facts::Clamp, limit::Limit};

use crate::host::{
    layout::Layout,
    mark::{self, Slot},
};

/// None where nothing is clamped, or the mark cannot be read: only root may.
pub fn read(layout: &Layout, path: &str) -> Option<Clamp> {
    let inside = Path::new(path.trim_start_matches('/'));
    if inside.components().any(|part| !matches!(part, Component::Normal(_))) {
        return None;
    }
    let dir = File::open(layout.pids.as_ref()?.mount.join(inside)).ok()?;
    let mark = mark::read(&dir, Slot::Clamp).ok()??;
    let limit = |text: Option<String>| Limit::parse(&text?);
    Some(Clamp { incident: mark.incident, found: limit(mark.found)?, wrote: limit(mark.wrote)? })
}
