//! The modules that each module of the agent may use.

use std::collections::BTreeSet;

use crate::{
    modules::{Tree, Use},
    repository,
};

/// Each top-level module of `mcp-guard/src`, and the other modules that its files use: a module with all
/// modules below it, or a single submodule. A row lists only modules that are used, so the table stays exact.
const MAY_USE: [(&str, &[&str]); 14] = [
    (
        "agent",
        &[
            "audit",
            "control",
            "engine",
            "executor",
            "guards",
            "host",
            "policy_files",
            "requests",
            "snapshot",
        ],
    ),
    ("audit", &["host::clock"]),
    (
        "cli",
        &[
            "agent",
            "audit",
            "control",
            "engine",
            "executor",
            "guards",
            "host",
            "policy_files",
            "render",
            "requests",
            "snapshot",
            "warden",
        ],
    ),
    ("control", &["host::proc::fdinfo"]),
    ("engine", &["host::cgroup", "host::way"]),
    ("executor", &["audit", "engine", "guards", "host", "owner", "warden"]),
    ("guards", &["engine", "host::cgroup"]),
    ("host", &[]),
    ("owner", &["engine", "host::systemd"]),
    ("policy_files", &[]),
    ("render", &["control::wire"]),
    ("requests", &[]),
    ("snapshot", &["engine", "host", "requests"]),
    ("warden", &[]),
];

#[test]
fn modules_use_only_the_modules_in_their_row() {
    let tree = Tree::of(&repository().join("mcp-guard/src"));
    let listed: BTreeSet<&str> = MAY_USE.iter().map(|(name, _)| *name).collect();
    assert_eq!(tree.top(), listed, "each top-level module has a row");
    let uses = tree.uses();
    let mut used = BTreeSet::new();
    for one in uses.iter().filter(|one| one.from[0] != one.to[0]) {
        let Use { from, from_file, line, to_file, words, .. } = one;
        let allowed = row(&from[0]).find(|allowed| covers(allowed, &one.to));
        let allowed = allowed.unwrap_or_else(|| {
            panic!("{} may not use {to_file}: {from_file}:{line} ({words})", from[0])
        });
        used.insert((from[0].as_str(), allowed));
    }
    for (name, may) in MAY_USE {
        for allowed in may {
            assert!(
                used.contains(&(name, *allowed)),
                "{name} does not use {allowed}: remove it from the row"
            );
        }
    }
}

fn row(name: &str) -> impl Iterator<Item = &'static str> {
    MAY_USE.iter().filter(move |(row, _)| *row == name).flat_map(|(_, may)| may.iter().copied())
}

/// Returns whether `module` is the allowed module or below it.
fn covers(allowed: &str, module: &[String]) -> bool {
    let allowed: Vec<&str> = allowed.split("::").collect();
    module.len() >= allowed.len() && allowed.iter().zip(module).all(|(one, other)| one == other)
}
