//! What ARCHITECTURE.md says about the structure of the code, checked against the sources themselves.

mod circles;
mod dependencies;
mod modules;
mod names;
mod scopes;
mod tokens;
mod walks;

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The Rust files below a folder.
fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    read_below(folder, &mut found);
    assert!(!found.is_empty(), "{} has sources", folder.display());
    found
}

fn read_below(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
    for entry in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("entry").path()) {
        if entry.is_dir() {
            read_below(&entry, found);
        } else if entry.extension().is_some_and(|suffix| suffix == "rs") {
            let text = fs::read_to_string(&entry).expect("readable");
            found.push((entry, text));
        }
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn repository() -> PathBuf {
    root().join("../..")
}

/// Source without comments, so that prose may name what code may not.
fn code(text: &str) -> String {
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_core_reaches_for_nothing_outside() {
    const FORBIDDEN: [&str; 10] = [
        "std::fs",
        "std::net",
        "std::process",
        "std::thread",
        "std::env",
        "std::io",
        "Instant",
        "SystemTime",
        "tokio",
        "async ",
    ];
    for (path, text) in sources(&root().join("src")) {
        for word in FORBIDDEN {
            assert!(!code(&text).contains(word), "{} uses {word}", path.display());
        }
    }
}

#[test]
fn the_core_depends_on_pure_crates_only() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("readable");
    let listed = manifest.split("[dependencies]").nth(1).and_then(|rest| rest.split("\n[").next());
    let names: Vec<&str> =
        listed.unwrap_or("").lines().filter_map(|line| line.split(['.', ' ']).next()).collect();
    let names: Vec<&str> = names.into_iter().filter(|name| !name.is_empty()).collect();
    let pure = [
        "humantime",
        "humantime-serde",
        "mcp-guard-common",
        "saphyr-parser",
        "serde",
        "serde_json",
        "thiserror",
        "toml",
        "wildmatch",
    ];
    assert_eq!(names, pure);
}

/// Only what the executor has checked and recorded reaches whoever keeps a limit.
#[test]
fn one_place_asks_the_owners_of_limits() {
    let src = root().join("../src");
    let known = ["owner.rs", "engine", "host/systemd.rs"].map(|place| src.join(place));
    let is_known = |path: &Path| known.iter().any(|place| path.starts_with(place));
    for (path, text) in sources(&src).into_iter().filter(|(path, _)| !is_known(path)) {
        for word in [".update_limit", "set_tasks_max("] {
            assert!(!code(&text).contains(word), "{} uses {word}", path.display());
        }
    }
}

/// Only the executor's steps write to a cgroup.
#[test]
fn one_place_changes_the_host() {
    let steps = Path::new("executor/steps.rs");
    for (path, text) in sources(&root().join("../src")) {
        let handle = path.to_string_lossy().contains("host/cgroup");
        if path.ends_with(steps) || handle {
            continue;
        }
        for word in ["request_freeze(", "set_pids_max(", ".kill()", "mark::write("] {
            assert!(!code(&text).contains(word), "{} uses {word}", path.display());
        }
    }
}
