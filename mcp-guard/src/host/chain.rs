//! The cgroups from a target's own up to the root, as the hierarchy with the pids controller has them.

use std::{fs, io, path::Path};

use mcp_guard_core::{
    diagnose::facts::{Level, Memory},
    limit::Limit,
};

use super::layout::Layout;

/// No hierarchy is this deep; the kernel's own default is `cgroup.max.depth` max.
const MAX_LEVELS: usize = 256;

/// The target's own level first, the root last. Files that are not there are None.
///
/// # Errors
/// No hierarchy has the pids controller, or the cgroup is gone.
pub fn read(layout: &Layout, path: &str) -> io::Result<Vec<Level>> {
    let tree = layout.pids.as_ref().map(|tree| (tree.mount.as_path(), tree.v1));
    // Without the controller the unified tree still tells where it was left out.
    let unified = layout.unified.as_deref().map(|mount| (mount, false));
    let (mount, v1) = tree.or(unified).ok_or_else(|| io::Error::other("no pids controller"))?;
    let inside = Path::new(path.trim_start_matches('/'));
    if inside.components().any(|part| !matches!(part, std::path::Component::Normal(_))) {
        return Err(io::Error::other(format!("{path:?} is no path of a cgroup")));
    }
    let own = mount.join(inside);
    fs::metadata(&own)?;
    let level = |inside: &Path| level(mount, inside, v1);
    Ok(inside.ancestors().take(MAX_LEVELS).map(level).collect())
}

/// The target's own level alone.
#[must_use]
pub fn own(layout: &Layout, path: &str) -> Option<Level> {
    let tree = layout.pids.as_ref()?;
    Some(level(&tree.mount, Path::new(path.trim_start_matches('/')), tree.v1))
}

fn level(mount: &Path, inside: &Path, v1: bool) -> Level {
    let dir = mount.join(inside);
    let number = |file: &str| read_line(&dir, file)?.parse().ok();
    let lists_pids =
        |file: &str| Some(read_line(&dir, file)?.split_whitespace().any(|name| name == "pids"));
    Level {
        path: format!("/{}", inside.display()),
        max: read_line(&dir, "pids.max").and_then(|text| Limit::parse(&text)),
        current: number("pids.current"),
        peak: number("pids.peak"),
        denials: denials(&dir, "pids.events"),
        own_denials: denials(&dir, "pids.events.local"),
        has_pids: (!v1).then(|| lists_pids("cgroup.controllers")).flatten(),
        hands_pids_down: (!v1).then(|| lists_pids("cgroup.subtree_control")).flatten(),
        threaded: read_line(&dir, "cgroup.type").is_some_and(|kind| kind == "threaded"),
    }
}

/// These files are a line or two, whatever is in the cgroup.
fn read_line(dir: &Path, file: &str) -> Option<String> {
    fs::read_to_string(dir.join(file)).ok().map(|text| text.trim().to_owned())
}

fn denials(dir: &Path, file: &str) -> Option<u64> {
    read_line(dir, file)?.lines().find_map(|line| line.strip_prefix("max ")?.parse().ok())
}

/// What the memory controller says of the cgroup that a process is in; None without one in version 2.
#[must_use]
pub fn memory(layout: &Layout, pid: u32) -> Option<Memory> {
    let places = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = places.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let dir = layout.unified.as_deref()?.join(path);
    let max = read_line(&dir, "memory.max")?;
    let events = read_line(&dir, "memory.events").unwrap_or_default();
    let event = |name: &str| {
        events.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    };
    Some(Memory {
        max: max.parse().ok(),
        current: read_line(&dir, "memory.current")?.parse().ok(),
        hits: event("max"),
        kills: event("oom_kill"),
    })
}
