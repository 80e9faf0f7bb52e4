//! Which tests run in which guest, and why the others do not.

use std::collections::BTreeMap;
use std::time::Duration;

use guest_runner::{Plan, Test};

use super::image::{Image, Kind};
use crate::docker::{BUSYBOX_IMAGE, NODE_IMAGE};
use crate::programs::TestProgram;

/// Seconds one test may take under emulation.
const LIMIT: u64 = 400;
/// From power on to the verdict.
pub const RUN: Duration = Duration::from_secs(45 * 60);

/// How much of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Extent {
    /// What a kernel, systemd or an engine may decide, once each: a person waits for it.
    Quick,
    /// All that a guest can show, once: what is the same in two guests runs in one of them.
    Usual,
    /// Every test in every guest where it means something.
    Full,
}

/// The tests of one guest.
pub struct Set {
    pub tests: Vec<Test>,
    /// A test program that is left out, how many tests it has, and the reason.
    pub left_out: Vec<(String, usize, &'static str)>,
}

/// Chooses by what is below; a filter then keeps the tests whose `program::name` contains it.
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

/// Why a test does not run in an image; nothing where it does.
fn reason_against(image: &Image, extent: Extent, test: &Test) -> Option<&'static str> {
    let spared = |one: &&Spared| {
        extent <= one.up_to
            && one.images.contains(&image.name)
            && one.tests.iter().any(|part| test.to_string().starts_with(part))
    };
    // Of several the one that holds longest, and of these the first.
    let longest = || SPARED.iter().rev().filter(spared).max_by_key(|one| one.up_to);
    means_nothing(image, &test.program).or_else(|| longest().map(|one| one.reason))
}

/// What no extent runs there.
fn means_nothing(image: &Image, program: &str) -> Option<&'static str> {
    match (image.name, &image.kind, program) {
        ("kernel-5.10", _, "guest_refusal") => None,
        ("kernel-5.10", ..) => Some("this kernel is refused, and that is all there is to test"),
        (_, _, "guest_refusal") => Some("means something on kernel 5.10 only"),
        (_, _, "cli") => Some("needs no kernel: the tier of pure tests has it"),
        (_, _, "bpf_log") => Some("needs programs of its own: the host tier builds them"),
        (_, _, "host_hostile") => Some(
            "needs FUSE, or makes thousands of cgroups, and nothing of the guest's: the host tier has it",
        ),
        (_, _, "host_clamp") => {
            Some("needs node, which guests have in their containers alone; the host tier has it")
        }
        (_, _, "docker_diagnose") => {
            Some("causes that need no systemd: the docker tier has them, guest_diagnose the others")
        }
        (_, _, "docker_incident" | "docker_repair") => {
            Some("much of node's work, or steps of ten seconds: the docker tier has them")
        }
        (_, _, "docker_exec") => {
            Some("it compares with bpftrace, which loses an event now and then under emulation")
        }
        (_, Kind::Kernel, "guest_kernel" | "host_fixture" | "host_exact" | "host_overflow") => None,
        (_, Kind::Kernel, _) => Some("needs more than a kernel and busybox"),
        (_, Kind::System { .. }, _) => None,
    }
}

/// Tests that would say what others say, and take long under emulation.
struct Spared {
    images: &'static [&'static str],
    /// How `program::name` begins.
    tests: &'static [&'static str],
    /// The largest extent without them.
    up_to: Extent,
    reason: &'static str,
}

const SPARED: [Spared; 14] = [
    Spared {
        images: &["kernel-6.1", "kernel-forky", "trixie", "bookworm"],
        tests: &["host_exact", "host_overflow"],
        up_to: Extent::Usual,
        reason: "cargo xtask test runs it in kernel-6.12, --full here",
    },
    Spared {
        images: &["kernel-6.12"],
        tests: &["host_exact", "host_overflow"],
        up_to: Extent::Quick,
        reason: "long storms: cargo xtask test and --full run it here",
    },
    Spared {
        images: &["trixie", "bookworm"],
        tests: &["docker_"],
        up_to: Extent::Usual,
        reason: "the docker tier has it, guest_docker and guest_story what a guest decides; --full runs it here",
    },
    Spared {
        images: &["bookworm"],
        tests: &["host_", "guest_unit"],
        up_to: Extent::Usual,
        reason: "cargo xtask test runs it in trixie, --full here",
    },
    Spared {
        images: &["trixie"],
        tests: &["host_", "guest_unit"],
        up_to: Extent::Quick,
        reason: "little in it depends on the guest: cargo xtask test and --full run it here",
    },
    Spared {
        images: &["trixie"],
        tests: &["guest_story::podman"],
        up_to: Extent::Usual,
        reason: "cargo xtask test runs it in bookworm, --full here",
    },
    Spared {
        images: &["bookworm"],
        tests: &[
            "guest_story::docker",
            "guest_docker::podmans_pause",
            "guest_docker::a_container_of_a_quadlet",
            // Where newer engines have the same answer.
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
        reason: "cargo xtask test runs it in trixie, --full here",
    },
    Spared {
        images: &["bookworm"],
        tests: &["guest_docker", "guest_story"],
        up_to: Extent::Quick,
        reason: "trixie has it, or it takes its time: cargo xtask test and --full run it here",
    },
    Spared {
        images: &["bookworm"],
        tests: &["guest_repair::before_a_reboot", "guest_repair::after_a_reboot"],
        up_to: Extent::Quick,
        reason: "takes a boot of its own: cargo xtask test and --full run it here",
    },
    Spared {
        images: &["trixie"],
        tests: &["guest_diagnose::p001", "guest_diagnose::p004"],
        up_to: Extent::Quick,
        reason: "needs compose, which takes its time: cargo xtask test and --full run it here",
    },
    Spared {
        images: &["trixie"],
        tests: &["guest_diagnose::p009", "guest_diagnose::p070"],
        up_to: Extent::Quick,
        reason: "the docker tier or bookworm has it: cargo xtask test and --full run it here",
    },
    Spared {
        images: &["bookworm"],
        tests: &["guest_diagnose::p002", "guest_diagnose::p003", "guest_diagnose::p020"],
        up_to: Extent::Quick,
        reason: "needs compose or a boot of its own: cargo xtask test and --full run it here",
    },
    Spared {
        images: &["trixie"],
        // Where an older systemd, Podman or kernel has the same answer.
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
        reason: "cargo xtask test runs it in bookworm, --full here",
    },
    Spared {
        images: &["trixie"],
        tests: &["guest_diagnose::p020"],
        up_to: Extent::Full,
        reason: "takes a boot of its own, which bookworm has",
    },
];

impl Set {
    /// The tests, by the boot that they take.
    pub fn boots(&self, image: &Image) -> Vec<Boot> {
        let mut boots = vec![Boot::new("", "")];
        if let Kind::System { once_more, .. } = image.kind {
            let once_more = once_more.iter();
            boots.extend(once_more.map(|(word, name)| Boot::new(word, name)));
            boots.push(Boot::new("", AFTER_A_REBOOT));
        }
        for test in &self.tests {
            // The first takes what no other asks for.
            let of = |boot: &&mut Boot| test.name.starts_with(boot.prefix);
            if let Some(boot) = boots.iter_mut().rev().find(of) {
                boot.plan.tests.push(test.clone());
            }
        }
        // What they leave for the boot after is in nobody's way then.
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

/// One start of a guest.
pub struct Boot {
    /// For the kernel's command line.
    pub word: &'static str,
    pub disk: Disk,
    /// How the names of its tests begin.
    prefix: &'static str,
    pub plan: Plan,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    /// As it was made; what is written is thrown away.
    Fresh,
    /// As the boot before this left it, if that had one of these too.
    Kept,
}

/// Tests at the end of the usual boot, and those of the one after it.
const BEFORE_A_REBOOT: &str = "before_a_reboot";
const AFTER_A_REBOOT: &str = "after_a_reboot";

impl Boot {
    fn new(word: &'static str, prefix: &'static str) -> Self {
        Self { word, disk: Disk::Fresh, prefix, plan: Plan::default() }
    }
}

/// What the guest does: makes itself ready, then the tests.
fn plan(image: &Image, tests: Vec<Test>) -> Plan {
    let before = match image.kind {
        Kind::System { .. } => install(),
        Kind::Kernel => Vec::new(),
    };
    let environment = environment(image);
    Plan { before, tests, limit: LIMIT, environment, stay: false }
}

/// Installs what a package would.
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
