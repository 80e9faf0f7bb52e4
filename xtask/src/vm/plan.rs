//! Chooses which tests run in which guest, with a reason for each test that does not.

use std::collections::BTreeMap;
use std::time::Duration;

use guest_runner::{Plan, Test};

use super::image::{Image, Kind};
use crate::docker::{BUSYBOX_IMAGE, NODE_IMAGE};
use crate::programs::TestProgram;

/// Seconds that one test may take under emulation.
const LIMIT: u64 = 400;
/// The longest time from power-on to the verdict.
pub const RUN: Duration = Duration::from_secs(45 * 60);

/// How many of the tests to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Extent {
    /// The tests that depend on a kernel, systemd or an engine, once each. For a user who waits.
    Quick,
    /// All tests that a guest can run. A test with the same result in two guests runs in one of them.
    Usual,
    /// Every test in every guest in which it makes sense.
    Full,
}

/// The tests of one guest.
pub struct Set {
    pub tests: Vec<Test>,
    /// Test programs with tests that are left out: the name, how many tests, and the reason.
    pub left_out: Vec<(String, usize, &'static str)>,
}

/// Chooses the tests for an image. The filter keeps only tests whose `program::name` contains it.
pub fn choose(image: &Image, extent: Extent, filter: &str, programs: &[TestProgram]) -> Set {
    let mut set = Set { tests: Vec::new(), left_out: Vec::new() };
    for program in programs {
        let mut against: BTreeMap<&'static str, usize> = BTreeMap::new();
        for test in &program.tests {
            let named = test.to_string().contains(filter);
            match reason_against(image, extent, test).or((!named).then_some("the filter")) {
                Some(reason) => *against.entry(reason).or_default() += 1,
                None => set.tests.push(test.clone()),
            }
        }
        let left_out = |(reason, count)| (program.name.clone(), count, reason);
        set.left_out.extend(against.into_iter().map(left_out));
    }
    set
}

/// Returns why a test does not run in an image, or None if it does.
fn reason_against(image: &Image, extent: Extent, test: &Test) -> Option<&'static str> {
    let spared = |one: &&Spared| {
        extent <= one.up_to
            && one.images.contains(&image.name)
            && one.tests.iter().any(|part| test.to_string().starts_with(part))
    };
    // If several entries match, the one with the largest extent counts; if these are equal, the first.
    let longest = || SPARED.iter().rev().filter(spared).max_by_key(|one| one.up_to);
    means_nothing(image, &test.program).or_else(|| longest().map(|one| one.reason))
}

/// Returns why a test program makes no sense in an image at any extent.
fn means_nothing(image: &Image, program: &str) -> Option<&'static str> {
    match (image.name, &image.kind, program) {
        ("kernel-5.10", _, "guest_refusal") => None,
        ("kernel-5.10", ..) => Some("mcp-guard refuses this kernel; only the refusal is tested"),
        (_, _, "guest_refusal") => Some("makes sense only on kernel 5.10"),
        (_, _, "cli" | "docs") => Some("does not depend on the kernel: the pure tier runs it"),
        (_, _, "bpf_log") => Some("needs an object with debug lines: the host tier builds it"),
        (_, _, "host_hostile" | "host_large") => Some(
            "needs FUSE or thousands of cgroups, and does not depend on the guest: the host tier runs it",
        ),
        (_, _, "host_flood") => Some("makes 10,000 processes: the host tier runs it"),
        (_, _, "host_log" | "host_slow") => {
            Some("needs loop devices and mkfs.ext4: the host tier has it")
        }
        (_, _, "host_record") => {
            Some("compares times, for which an emulated guest is too slow: the host tier runs it")
        }
        (_, _, "host_queries") => Some("needs jq alone: the host tier has it"),
        (_, _, "host_clamp" | "host_evidence") => {
            Some("needs node, which guests have only in containers: the host tier runs it")
        }
        (_, _, "docker_diagnose") => Some(
            "its causes need no systemd: the docker tier runs it, guest_diagnose has the others",
        ),
        (_, _, "docker_incident" | "docker_repair") => {
            Some("takes long, because of node or of steps of ten seconds: the docker tier runs it")
        }
        (_, _, "real_reap" | "real_servers" | "real_workloads") => {
            Some("installs packages from the registries: it runs only if it is asked for")
        }
        (_, _, "docker_exec") => {
            Some("compares with bpftrace, which sometimes loses an event under emulation")
        }
        (_, Kind::Kernel, "guest_kernel" | "host_fixture" | "host_exact" | "host_overflow") => None,
        (_, Kind::Kernel, _) => Some("needs more than a kernel and busybox"),
        (_, Kind::System { .. }, _) => None,
    }
}

/// Tests that are left out of a guest because they take long under emulation and another guest or tier
/// has the same result.
struct Spared {
    images: &'static [&'static str],
    /// Prefixes of `program::name`.
    tests: &'static [&'static str],
    /// The largest extent in which they are left out.
    up_to: Extent,
    reason: &'static str,
}

const SPARED: [Spared; 18] = [
    Spared {
        images: &["trixie", "bookworm"],
        tests: &["host_agent::a_log_on_a_file_system_with_a_server"],
        up_to: Extent::Full,
        reason: "mount(8) of the guest asks the file system, which has no server: the host tier runs it",
    },
    Spared {
        images: &["kernel-6.1", "kernel-forky", "trixie", "bookworm"],
        tests: &["host_exact", "host_overflow"],
        up_to: Extent::Usual,
        reason: "cargo xtask test runs it in kernel-6.12; --full runs it here",
    },
    Spared {
        images: &["kernel-6.12"],
        tests: &["host_exact", "host_overflow"],
        up_to: Extent::Quick,
        reason: "its storms take long: cargo xtask test and --full run it here",
    },
    Spared {
        images: &["trixie", "bookworm"],
        tests: &["docker_"],
        up_to: Extent::Usual,
        reason: "the docker tier runs it, and guest_docker and guest_story test what depends on \
                 the guest; --full runs it here",
    },
    Spared {
        images: &["bookworm"],
        tests: &["host_", "guest_unit"],
        up_to: Extent::Usual,
        reason: "cargo xtask test runs it in trixie; --full runs it here",
    },
    Spared {
        images: &["trixie"],
        tests: &["host_", "guest_unit"],
        up_to: Extent::Quick,
        reason: "little in it depends on the guest: cargo xtask test and --full run it here",
    },
    Spared {
        images: &["trixie"],
        tests: &[
            "host_agent::a_guard_that_enforces",
            "host_bystanders::a_freeze_that_follows",
            "host_control",
            "host_explain",
            "host_foreground",
            "host_hung_engine",
            "host_key",
            "host_names",
            "host_ownership",
            "host_reap",
            "host_refusals::thousands",
            "host_reload",
            "host_secrets",
            "host_servers::a_process_that_a_client",
            "host_servers::stdio_that_is_moved",
            "host_servers::the_client_is",
            "host_suspend::no_other_process",
        ],
        up_to: Extent::Usual,
        reason: "nothing in it depends on the guest, and it takes long: the host tier and --full run it",
    },
    Spared {
        images: &["bookworm"],
        tests: &["guest_thrash"],
        up_to: Extent::Usual,
        reason: "cargo xtask test runs it in trixie; --full runs it here",
    },
    Spared {
        images: &["trixie"],
        tests: &["guest_thrash"],
        up_to: Extent::Quick,
        reason: "a guest that swaps is slow: cargo xtask test and --full run it here",
    },
    Spared {
        images: &["trixie"],
        tests: &["guest_story::podman"],
        up_to: Extent::Usual,
        reason: "cargo xtask test runs it in bookworm; --full runs it here",
    },
    Spared {
        images: &["bookworm"],
        tests: &[
            "guest_story::docker",
            "guest_docker::podmans_pause",
            "guest_herd",
            "guest_docker::a_container_of_a_quadlet",
            // Newer engines have the same result for these.
            "guest_docker::a_container_is",
            "guest_docker::docker_takes",
            "guest_repair::a_quadlet",
            "guest_diagnose::p009",
            "guest_docker::a_pause_is",
            "guest_docker::an_unpause",
            "guest_docker::attach_goes",
            "guest_docker::docker_can_stop",
            "guest_docker::docker_exec",
            "guest_diagnose::p001",
            "guest_diagnose::p004",
            "guest_diagnose::p010",
        ],
        up_to: Extent::Usual,
        reason: "cargo xtask test runs it in trixie; --full runs it here",
    },
    Spared {
        images: &["bookworm"],
        tests: &["guest_docker", "guest_herd", "guest_story"],
        up_to: Extent::Quick,
        reason: "trixie runs it, or it takes long: cargo xtask test and --full run it here",
    },
    Spared {
        images: &["bookworm"],
        tests: &["guest_repair::before_a_reboot", "guest_repair::after_a_reboot"],
        up_to: Extent::Quick,
        reason: "needs its own boot: cargo xtask test and --full run it here",
    },
    Spared {
        images: &["trixie"],
        tests: &["guest_diagnose::p001", "guest_diagnose::p004"],
        up_to: Extent::Quick,
        reason: "needs compose, which takes long: cargo xtask test and --full run it here",
    },
    Spared {
        images: &["trixie"],
        tests: &["guest_diagnose::p009", "guest_diagnose::p070"],
        up_to: Extent::Quick,
        reason: "the docker tier or bookworm runs it: cargo xtask test and --full run it here",
    },
    Spared {
        images: &["bookworm"],
        tests: &["guest_diagnose::p002", "guest_diagnose::p003", "guest_diagnose::p020"],
        up_to: Extent::Quick,
        reason: "needs compose or its own boot: cargo xtask test and --full run it here",
    },
    Spared {
        images: &["trixie"],
        // An older systemd, Podman or kernel has the same result for these.
        tests: &[
            "guest_diagnose::p002",
            "guest_diagnose::p003",
            "guest_diagnose::p021",
            "guest_diagnose::p023",
            "guest_diagnose::p024",
            "guest_diagnose::p032",
            "guest_diagnose::p033",
            "guest_diagnose::p051",
            "guest_repair::before_a_reboot",
            "guest_repair::after_a_reboot",
        ],
        up_to: Extent::Usual,
        reason: "cargo xtask test runs it in bookworm; --full runs it here",
    },
    Spared {
        images: &["trixie"],
        tests: &["guest_diagnose::p020"],
        up_to: Extent::Full,
        reason: "needs its own boot, which only bookworm has",
    },
];

impl Set {
    /// Returns the boots that the tests need, each with its tests.
    pub fn boots(&self, image: &Image) -> Vec<Boot> {
        let mut boots = vec![Boot::new("", "")];
        if let Kind::System { once_more, .. } = image.kind {
            let once_more = once_more.iter();
            boots.extend(once_more.map(|(word, name)| Boot::new(word, name)));
            boots.push(Boot::new("", AFTER_A_REBOOT));
        }
        for test in &self.tests {
            // The first boot takes the tests that no other boot takes.
            let of = |boot: &&mut Boot| test.name.starts_with(boot.prefix);
            if let Some(boot) = boots.iter_mut().rev().find(of) {
                boot.plan.tests.push(test.clone());
            }
        }
        // They run last, so that what they leave for the next boot does not affect other tests.
        boots[0].plan.tests.sort_by_key(|test| test.name.starts_with(BEFORE_A_REBOOT));
        boots.retain(|boot| !boot.plan.tests.is_empty());
        if boots.iter().any(|boot| boot.prefix == AFTER_A_REBOOT) {
            let around = boots.iter_mut().filter(|boot| boot.word.is_empty());
            around.for_each(|boot| boot.disk = Disk::Kept);
        }
        for boot in &mut boots {
            boot.plan = plan(image, std::mem::take(&mut boot.plan.tests));
        }
        boots
    }
}

/// One boot of a guest.
pub struct Boot {
    /// An extra word for the kernel's command line.
    pub word: &'static str,
    pub disk: Disk,
    /// The prefix of its tests' names.
    prefix: &'static str,
    pub plan: Plan,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    /// The image's disk; writes are discarded.
    Fresh,
    /// A copy of the image's disk that all boots with this value share; writes are kept.
    Kept,
}

/// The prefix of tests that run at the end of the first boot.
const BEFORE_A_REBOOT: &str = "before_a_reboot";
/// The prefix of tests that run in the boot after it.
const AFTER_A_REBOOT: &str = "after_a_reboot";

impl Boot {
    fn new(word: &'static str, prefix: &'static str) -> Self {
        Self { word, disk: Disk::Fresh, prefix, plan: Plan::default() }
    }
}

/// Returns the plan of a guest: it prepares itself, then runs the tests.
fn plan(image: &Image, tests: Vec<Test>) -> Plan {
    let before = match image.kind {
        Kind::System { .. } => install(),
        Kind::Kernel => Vec::new(),
    };
    let environment = environment(image);
    Plan { before, tests, limit: LIMIT, environment, stay: false }
}

/// Returns the commands that install what a package would install.
pub fn install() -> Vec<Vec<String>> {
    let words = |line: &str| line.split(' ').map(str::to_owned).collect();
    vec![
        words("cp -r /payload/package/. /"),
        words("install -m 755 /payload/mcp-guard /usr/bin/mcp-guard"),
        words("systemctl daemon-reload"),
    ]
}

fn environment(image: &Image) -> BTreeMap<String, String> {
    let words = [
        ("MCP_GUARD_TEST_GUEST", image.name),
        ("MCP_GUARD_TEST_DOCKER", "/run/docker.sock"),
        ("MCP_GUARD_TEST_IMAGE", NODE_IMAGE),
        ("MCP_GUARD_TEST_BUSYBOX", BUSYBOX_IMAGE),
        // Long enough for hundreds of forks under emulation.
        ("MCP_GUARD_TEST_SECONDS", "2"),
        ("RUST_BACKTRACE", "1"),
    ];
    words.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

#[cfg(test)]
mod sources;
#[cfg(test)]
mod tests;
