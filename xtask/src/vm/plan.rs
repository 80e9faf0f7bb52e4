//! Which tests run in which guest, and why the others do not.

use std::collections::BTreeMap;
use std::time::Duration;

use guest_runner::{Plan, Test};

use super::image::{Image, Kind};
use super::programs::TestProgram;
use crate::docker::{BUSYBOX_IMAGE, NODE_IMAGE};

/// Seconds one test may take under emulation.
const LIMIT: u64 = 400;
/// From power on to the verdict.
pub const RUN: Duration = Duration::from_secs(45 * 60);

/// How much of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Each claim once: what is the same in two guests runs in one of them.
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

/// Chooses by the table below; a filter then keeps the tests whose `program::name` contains it.
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
    let usual = extent == Extent::Usual;
    let program = test.program.as_str();
    let group = program.split('_').next().unwrap_or(program);
    let of_podman = test.name.contains("podman");
    match (image.name, &image.kind) {
        _ if program == "host_clamp" => {
            Some("needs node, which guests have in their containers alone; the host tier has it")
        }
        _ if program == "docker_diagnose" => {
            Some("causes of a host without systemd: the docker tier has them")
        }
        _ if program == "docker_exec" => {
            Some("it compares with bpftrace, which loses an event now and then under emulation")
        }
        _ if program == "cli" => Some("needs no kernel: the tier of pure tests has it"),
        ("kernel-5.10", _) if program == "guest_refusal" => None,
        ("kernel-5.10", _) => Some("this kernel is refused, and that is all there is to test"),
        _ if program == "guest_refusal" => Some("means something on kernel 5.10 only"),
        (_, Kind::Kernel) => match program {
            "guest_kernel" | "host_fixture" => None,
            "host_exact" | "host_overflow" if !usual || image.name == "kernel-6.12" => None,
            "host_exact" | "host_overflow" => Some("kernel-6.12 has it; --full runs it here"),
            _ => Some("needs more than a kernel and busybox"),
        },
        (_, Kind::System { .. }) if usual && program == "docker_launcher" => {
            Some("what npm starts depends on no kernel: the docker tier has it, and --full here")
        }
        ("trixie", _) if usual && matches!(program, "host_exact" | "host_overflow") => {
            Some("kernel-6.12 is the same kernel, and has less beside it; --full runs it here")
        }
        ("trixie", _) if usual && program == "docker_leak" => {
            Some("guest_story has a leak through the unit; --full runs it here")
        }
        ("trixie", _) if usual && program == "guest_story" && of_podman => {
            Some("bookworm has it; --full runs it here")
        }
        ("bookworm", _) if usual && program == "guest_story" && !of_podman => {
            Some("trixie has it; --full runs it here")
        }
        ("bookworm", _)
            if usual && (matches!(group, "host" | "docker") || program == "guest_unit") =>
        {
            Some("the same on trixie; --full runs it here")
        }
        (_, Kind::System { .. }) => None,
    }
}

impl Set {
    /// What the guest does: makes itself ready, then the tests.
    pub fn plan(&self, image: &Image) -> Plan {
        let before = match image.kind {
            Kind::System { .. } => install(),
            Kind::Kernel => Vec::new(),
        };
        let environment = environment(image);
        Plan { before, tests: self.tests.clone(), limit: LIMIT, environment, stay: false }
    }
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
        ("MCP_GUARD_TEST_SECONDS", "4"),
        ("RUST_BACKTRACE", "1"),
    ];
    words.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

#[cfg(test)]
mod tests {
    use super::super::image::{IMAGES, find};
    use super::*;

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
    fn what_is_left_out_is_said() {
        let (tests, left) = chosen("bookworm", Extent::Usual, "");
        assert_eq!(tests, ["guest_kernel::a", "guest_kernel::b"]);
        assert_eq!(left, ["cli 2", "docker_leak 2", "guest_refusal 2", "host_agent 2"]);
        let (tests, left) = chosen("bookworm", Extent::Full, "agent::a");
        assert_eq!(tests, ["host_agent::a"]);
        assert_eq!(left.last().unwrap(), "host_agent 1");
    }

    #[test]
    fn the_oldest_kernel_shows_the_refusal_alone() {
        assert_eq!(
            chosen("kernel-5.10", Extent::Full, "").0,
            ["guest_refusal::a", "guest_refusal::b"]
        );
    }

    #[test]
    fn every_image_has_something_to_test() {
        for image in &IMAGES {
            assert!(!chosen(image.name, Extent::Usual, "").0.is_empty(), "{}", image.name);
        }
    }
}
