//! A launcher's start has two forms: the command line of the caller, and the one that the kernel makes of it
//! through `#!`. Both must give one tree of the right package. A test in a real container checks that the
//! recording still matches what the kernel side shows.

use std::{fs, path::PathBuf};

use mcp_guard_core::{
    Time,
    id::Pid,
    registry::Registry,
    server::{Grammar, Named, Naming, Start as Started},
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    starts: Vec<Start>,
}

#[derive(Deserialize)]
struct Start {
    identity: String,
    typed: Vec<String>,
    corpus: Vec<Exec>,
    live: Vec<Exec>,
}

#[derive(Deserialize)]
struct Exec {
    process: u32,
    parent: Option<u32>,
    argv: Vec<String>,
}

/// The pid of process number 0.
const FIRST: u32 = 100;

fn golden() -> Vec<Start> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/live-argv.json");
    let text = fs::read_to_string(path).expect("the recording");
    let golden: Golden = serde_json::from_str(&text).expect("well-formed");
    assert!(!golden.starts.is_empty());
    golden.starts
}

/// Joins words as the kernel does, each with a null byte at its end.
fn joined(argv: &[String]) -> Vec<u8> {
    argv.iter().flat_map(|word| word.bytes().chain([0])).collect()
}

/// Returns the registry after these execs, and the process of the last one.
fn registry(execs: &[Exec]) -> (Registry, Pid) {
    let grammar = Grammar::default();
    let mut registry = Registry::default();
    let mut last = Pid(FIRST);
    for (at, exec) in (1..).zip(execs) {
        let (now, pid) = (Time(at * 1_000_000_000), Pid(FIRST + exec.process));
        // The first process is known only by its exec, like a process that came from outside.
        if let Some(parent) = exec.parent.filter(|_| !registry.holds(pid)) {
            registry.fork(now, pid, Pid(FIRST + parent));
        }
        registry.exec(now, now, pid, &joined(&exec.argv).into(), &grammar);
        last = pid;
    }
    (registry, last)
}

#[test]
fn each_start_is_one_tree_of_its_package_in_both_forms() {
    for start in golden() {
        for (form, execs) in [("corpus", &start.corpus), ("live", &start.live)] {
            let what = format!("{:?}, {form}", start.typed);
            assert!(execs.len() >= 5, "{what}: too few execs from the launcher to the server");
            let (registry, _) = registry(execs);
            let found: Vec<_> = registry
                .identities()
                .map(|(name, one)| (name.to_owned(), one.starts, one.live()))
                .collect();
            assert_eq!(found, [(start.identity.clone(), 1, 1)], "{what}");
        }
    }
}

#[test]
fn the_tree_lives_as_long_as_its_server() {
    for start in golden() {
        for execs in [&start.corpus, &start.live] {
            let (mut registry, server) = registry(execs);
            let live = |registry: &Registry| {
                registry.identity(&start.identity).map(|identity| identity.live())
            };
            assert_ne!(server, Pid(FIRST), "the server is a process of its own");
            for above in (FIRST..server.0).map(Pid) {
                registry.exit(above);
                assert_eq!(live(&registry), Some(1), "{:?}: it ended with {above}", start.typed);
            }
            registry.exit(server);
            assert_eq!(live(&registry), Some(0), "{:?}", start.typed);
        }
    }
}

#[test]
fn only_the_launcher_itself_is_identified_as_one() {
    let grammar = Grammar::default();
    for start in golden() {
        for exec in start.corpus.iter().chain(&start.live) {
            let found = grammar.identify(&joined(&exec.argv).into());
            let is_launcher =
                matches!(&found, Started::Server(Named { naming: Naming::Package, .. }));
            assert_eq!(is_launcher, exec.process == 0, "{:?}: {found:?}", exec.argv);
            assert_eq!(found == Started::Shell, exec.argv[0] == "sh", "{:?}", exec.argv);
        }
    }
}
