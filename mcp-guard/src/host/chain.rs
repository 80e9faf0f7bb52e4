//! The cgroups from a target's own up to the root, in the hierarchy with the pids controller.

use std::{fs, io, path::Path};

use mcp_guard_core::{
    diagnose::facts::{Level, Memory},
    escape::is_cgroup_path,
    limit::Limit,
};

use super::{
    cgroupfs::{keyed, lists_pids},
    layout::Layout,
};

/// Most levels that are read. No hierarchy is this deep; the kernel's default for
/// `cgroup.max.depth` is max.
const MAX_LEVELS: usize = 256;

/// Reads the target's own level first, the root last. A missing file gives `None`.
///
/// # Errors
/// If no hierarchy has the pids controller, if `path` is not that of a cgroup, or if the cgroup is
/// gone.
pub fn read(layout: &Layout, path: &str) -> io::Result<Vec<Level>> {
    let tree = layout.pids.as_ref().map(|tree| (tree.mount.as_path(), tree.v1));
    // Without the controller, the unified tree still shows where it is missing.
    let unified = layout.unified.as_deref().map(|mount| (mount, false));
    let (mount, v1) =
        tree.or(unified).ok_or_else(|| io::Error::other("the host has no pids controller"))?;
    let inside = Path::new(path.trim_start_matches('/'));
    if !is_cgroup_path(path)
        || inside.components().any(|part| !matches!(part, std::path::Component::Normal(_)))
    {
        return Err(io::Error::other(format!("{path:?} is not the path of a cgroup")));
    }
    let own = mount.join(inside);
    fs::metadata(&own)?;
    let level = |inside: &Path| level(mount, inside, v1);
    Ok(inside.ancestors().take(MAX_LEVELS).map(level).collect())
}

/// Reads the target's own level alone.
#[must_use]
pub fn own(layout: &Layout, path: &str) -> Option<Level> {
    let tree = layout.pids.as_ref().filter(|_| is_cgroup_path(path))?;
    Some(level(&tree.mount, Path::new(path.trim_start_matches('/')), tree.v1))
}

fn level(mount: &Path, inside: &Path, v1: bool) -> Level {
    let dir = mount.join(inside);
    let number = |file: &str| read_line(&dir, file)?.parse().ok();
    let denials = |file: &str| keyed(&read_line(&dir, file)?, "max");
    let has_pids = |file: &str| Some(lists_pids(&read_line(&dir, file)?));
    Level {
        path: format!("/{}", inside.display()),
        max: read_line(&dir, "pids.max").and_then(|text| Limit::parse(&text)),
        current: number("pids.current"),
        peak: number("pids.peak"),
        denials: denials("pids.events"),
        own_denials: denials("pids.events.local"),
        has_pids: (!v1).then(|| has_pids("cgroup.controllers")).flatten(),
        hands_pids_down: (!v1).then(|| has_pids("cgroup.subtree_control")).flatten(),
        threaded: read_line(&dir, "cgroup.type").is_some_and(|kind| kind == "threaded"),
    }
}

/// Reads a file of one or two lines. These files stay short, however large the cgroup is.
fn read_line(dir: &Path, file: &str) -> Option<String> {
    fs::read_to_string(dir.join(file)).ok().map(|text| text.trim().to_owned())
}

/// Reads the memory controller of a cgroup. `None` unless it is one of version 2.
#[must_use]
pub fn memory(layout: &Layout, path: &str) -> Option<Memory> {
    // With version 1 the path belongs to another hierarchy.
    let tree = layout.pids.as_ref().filter(|tree| !tree.v1 && is_cgroup_path(path))?;
    let dir = tree.mount.join(path.trim_start_matches('/'));
    let max = read_line(&dir, "memory.max")?;
    let events = read_line(&dir, "memory.events").unwrap_or_default();
    Some(Memory {
        max: max.parse().ok(),
        current: read_line(&dir, "memory.current")?.parse().ok(),
        hits: keyed(&events, "max"),
        kills: keyed(&events, "oom_kill"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::layout::PidsTree;

    /// Makes a tree of two cgroups out of plain files.
    fn tree(v1: bool) -> (tempfile::TempDir, Layout) {
        let mount = tempfile::tempdir().unwrap();
        let own = mount.path().join(r"a\x2db/c");
        fs::create_dir_all(own.join("init.scope")).unwrap();
        for (file, text) in [("pids.max", "25"), ("memory.max", "1000"), ("memory.current", "10")] {
            fs::write(own.join(file), text).unwrap();
        }
        let pids = Some(PidsTree { mount: mount.path().to_owned(), v1 });
        let layout = Layout { pids, ..Layout::bare() };
        (mount, layout)
    }

    #[test]
    fn a_cgroup_with_a_backslash_in_its_name_is_read() {
        let (_mount, layout) = tree(false);
        let chain = read(&layout, r"/a\x2db/c").unwrap();
        assert_eq!((chain.len(), chain[0].max), (3, Some(Limit::Tasks(25))));
        assert_eq!(own(&layout, r"/a\x2db/c").unwrap().max, Some(Limit::Tasks(25)));
        for bad in ["a", "/a/../a", "/?a", "", r"/a\\x2db/c"] {
            assert!(read(&layout, bad).is_err(), "{bad}");
        }
        assert!(own(&layout, "/?a").is_none());
    }

    #[test]
    fn memory_is_read_from_the_cgroup_itself() {
        let (_mount, layout) = tree(false);
        let found = memory(&layout, r"/a\x2db/c").unwrap();
        assert_eq!((found.max, found.current), (Some(1000), Some(10)));
        assert_eq!(memory(&layout, r"/a\x2db/c/init.scope"), None);
        assert_eq!(memory(&tree(true).1, r"/a\x2db/c"), None, "a path of another hierarchy");
    }
}
