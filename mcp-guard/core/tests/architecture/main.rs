//! Checks the sources against the statements of ARCHITECTURE.md about the structure of the code.

mod cycles;
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

/// Returns the Rust files below a folder, with their text.
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

/// Returns the source without its comment lines, which may use words that code may not.
fn code(text: &str) -> String {
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_core_uses_no_io_threads_or_clocks() {
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
    // It compares a document with the types, and is no part of the library.
    let is_test = |path: &Path| path.ends_with("policy/tests/reference.rs");
    for (path, text) in sources(&root().join("src")) {
        for word in FORBIDDEN.iter().filter(|_| !is_test(&path)) {
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
        "sha2",
        "thiserror",
        "toml",
        "wildmatch",
    ];
    assert_eq!(names, pure);
}

/// A limit's owner gets only writes that the executor has checked and recorded.
#[test]
fn one_place_writes_limits_through_their_owners() {
    let src = root().join("../src");
    let known = ["owner.rs", "engine", "host/systemd.rs"].map(|place| src.join(place));
    let is_known = |path: &Path| known.iter().any(|place| path.starts_with(place));
    for (path, text) in sources(&src).into_iter().filter(|(path, _)| !is_known(path)) {
        for word in [".update_limit", "set_tasks_max("] {
            assert!(!code(&text).contains(word), "{} uses {word}", path.display());
        }
    }
}

#[test]
fn only_the_executors_steps_write_to_cgroups() {
    let steps = ["executor/steps.rs", "executor/steps/growth.rs"].map(Path::new);
    for (path, text) in sources(&root().join("../src")) {
        let handle = path.to_string_lossy().contains("host/cgroup");
        if steps.iter().any(|steps| path.ends_with(steps)) || handle {
            continue;
        }
        for word in ["request_freeze(", "set_pids_max(", ".kill()", "mark::write("] {
            assert!(!code(&text).contains(word), "{} uses {word}", path.display());
        }
    }
}

/// A module is in `name.rs`, and those below it in `name/`. A test of several files begins in
/// `name/main.rs`.
#[test]
fn modules_have_one_style() {
    let folders = [
        "fuzz/fuzz_targets",
        "mcp-guard/core",
        "mcp-guard/src",
        "mcp-guard-common/src",
        "mcp-guard-ebpf/src",
        "tests",
        "xtask/src",
    ];
    for (path, text) in folders.into_iter().flat_map(|folder| sources(&repository().join(folder))) {
        assert!(!path.ends_with("mod.rs"), "{}", path.display());
        let declares_path = text.lines().any(|line| line.trim_start().starts_with("#[path"));
        assert!(!declares_path, "{} has #[path]", path.display());
    }
}
