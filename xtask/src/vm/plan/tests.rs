use std::collections::BTreeSet;

use super::super::image::{IMAGES, find};
use super::*;
use crate::workspace;

fn program(name: &str) -> TestProgram {
    let test = |test: &str| Test { program: name.to_owned(), name: test.to_owned() };
    TestProgram { name: name.into(), path: "/".into(), tests: vec![test("a"), test("b")] }
}

fn chosen(image: &str, extent: Extent, filter: &str) -> (Vec<String>, Vec<String>) {
    let all = ["cli", "docker_leak", "guest_kernel", "guest_refusal", "host_agent"];
    let set = choose(find(image).unwrap(), extent, filter, &all.map(program));
    let left = set.left_out.into_iter().map(|(name, count, _)| format!("{name} {count}"));
    (set.tests.iter().map(ToString::to_string).collect(), left.collect())
}

#[test]
fn root_tests_run_only_if_they_are_named() {
    let manifest = std::fs::read_to_string(workspace::root().join("tests/Cargo.toml")).unwrap();
    let programs: BTreeSet<String> =
        sources::tests().into_iter().map(|test| test.program).collect();
    let apart = |name: &&String| !manifest.contains(&format!("name = \"{name}\"\ntest = false\n"));
    assert_eq!(programs.iter().filter(apart).collect::<Vec<_>>(), ["cli", "docs"]);
}

#[test]
fn a_smaller_extent_has_fewer_tests() {
    let counts = [Extent::Quick, Extent::Usual, Extent::Full]
        .map(|extent| chosen("trixie", extent, "").0.len());
    assert!(counts.is_sorted() && counts[0] < counts[2], "{counts:?}");
}

#[test]
fn a_test_runs_in_the_boot_that_it_needs() {
    let test = |name: &str| Test { program: "p".into(), name: name.to_owned() };
    let names = ["after_a_reboot_x", "p020_x", "x", "before_a_reboot_x", "y"];
    let set = Set { tests: names.map(test).into(), left_out: Vec::new() };
    let boots = set.boots(find("bookworm").unwrap());
    let shown = boots.iter().map(|boot| {
        let names: Vec<&str> = boot.plan.tests.iter().map(|test| test.name.as_str()).collect();
        (boot.word, boot.disk, names)
    });
    let (fresh, kept) = (Disk::Fresh, Disk::Kept);
    let expected = [
        ("", kept, vec!["x", "y", "before_a_reboot_x"]),
        ("cgroup_disable=pids", fresh, vec!["p020_x"]),
        ("", kept, vec!["after_a_reboot_x"]),
    ];
    assert_eq!(shown.collect::<Vec<_>>(), expected);
    let set = Set { tests: ["p020_x", "x"].map(test).into(), left_out: Vec::new() };
    let disks = set.boots(find("bookworm").unwrap()).into_iter().map(|boot| boot.disk);
    assert_eq!(disks.collect::<Vec<_>>(), [fresh, fresh], "without a reboot");
}

#[test]
fn tests_that_are_left_out_are_listed() {
    let (tests, left) = chosen("bookworm", Extent::Usual, "");
    assert_eq!(tests, ["guest_kernel::a", "guest_kernel::b"]);
    assert_eq!(left, ["cli 2", "docker_leak 2", "guest_refusal 2", "host_agent 2"]);
    let (tests, left) = chosen("bookworm", Extent::Full, "agent::a");
    assert_eq!(tests, ["host_agent::a"]);
    assert_eq!(left.last().unwrap(), "host_agent 1");
}

#[test]
fn the_oldest_kernel_runs_only_the_refusal_tests() {
    assert_eq!(chosen("kernel-5.10", Extent::Full, "").0, ["guest_refusal::a", "guest_refusal::b"]);
}

#[test]
fn the_reason_is_that_of_the_largest_extent() {
    let image = find("trixie").unwrap();
    let test = |program: &str| Test { program: program.into(), name: "x".into() };
    let why = |program| reason_against(image, Extent::Quick, &test(program)).unwrap();
    assert_eq!(why("host_exact"), "cargo xtask test runs it in kernel-6.12; --full runs it here");
    assert!(why("host_agent").starts_with("little in it depends on the guest"));
}

#[test]
fn cargo_xtask_test_runs_each_test_somewhere() {
    let all = sources::tests();
    assert!(all.len() > 150, "{} tests found", all.len());
    for test in &all {
        // The native tiers run all of their tests.
        let natively = ["cli", "docs", "bpf_log", "host_", "docker_"]
            .iter()
            .any(|tier| test.program.starts_with(tier));
        // These run only if somebody asks for them.
        let is_ignored =
            ["real_reap", "real_servers", "real_workloads"].contains(&test.program.as_str());
        let in_a_guest =
            IMAGES.iter().any(|image| reason_against(image, Extent::Usual, test).is_none());
        assert!(natively || in_a_guest || is_ignored, "{test} runs only with --full");
    }
}

#[test]
fn tests_that_are_spared_exist() {
    let all = sources::tests();
    for part in SPARED.iter().flat_map(|one| one.tests) {
        assert!(all.iter().any(|test| test.to_string().starts_with(part)), "{part}");
    }
}

#[test]
fn every_image_has_something_to_test() {
    for image in &IMAGES {
        assert!(!chosen(image.name, Extent::Quick, "").0.is_empty(), "{}", image.name);
    }
}
