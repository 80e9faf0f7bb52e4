//! Containers with many cgroups and many processes. They are contained like others, and the agent's loop
//! goes on meanwhile.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]
#![allow(clippy::print_stderr, reason = "the measured times are a result")]

use std::{
    fs,
    process::{Child, Command, Stdio},
    time::Duration,
};

use mcp_guard_core::{audit::Record, incident::Outcome, policy::Response};
use mcp_guard_tests::{
    agent::{Agent, DEADLINE},
    cgroup::FixtureCgroup,
    holds::Holds,
};

/// As many as a guard may have in the kernel's map, all guards together.
const EMPTY: usize = 16_384;
const POPULATED: usize = 2_000;
/// The longest turn of the loop in a debug build beside other work.
const LONGEST_TURN: Duration = Duration::from_millis(100);
/// Starts a process in each of the cgroups whose names begin with `p`.
const FILL: &str = "for dir in \"$1\"/p*; do sleep 600 & echo $! >\"$dir/cgroup.procs\"; done; \
                    echo done; exec sleep 600";

struct Large {
    shell: Child,
    cgroup: FixtureCgroup,
}

impl Drop for Large {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

impl Large {
    fn new(empty: usize, populated: usize) -> Self {
        let cgroup = FixtureCgroup::new("large").unwrap();
        for number in 0..empty {
            fs::create_dir(cgroup.unified_dir().join(format!("e{number}"))).unwrap();
        }
        for number in 0..populated {
            fs::create_dir(cgroup.unified_dir().join(format!("p{number}"))).unwrap();
        }
        let mut command = Command::new("sh");
        command.args(["-c", FILL, "sh"]).arg(cgroup.unified_dir());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let shell = cgroup.spawn(command).unwrap();
        let name = format!("/proc/{}/comm", shell.id());
        let is_full = || fs::read_to_string(&name).is_ok_and(|name| name == "sleep\n");
        cgroup.wait_until("its cgroups are full", 3 * DEADLINE, is_full).unwrap();
        Self { shell, cgroup }
    }

    fn target(&self) -> String {
        format!("cgroup:{}", self.cgroup.path())
    }
}

fn longest_turn(agent: &Agent) -> Duration {
    Duration::from_micros(agent.status().unwrap().longest_turn_us)
}

/// Returns how long after its decision each freeze was written.
fn written(agent: &Agent) -> Vec<Duration> {
    let outcomes = agent.audit().unwrap().into_iter().filter_map(|record| match record {
        Record::Outcome { response: Response::Freeze, outcome: Outcome::Done, timing, .. } => {
            Some(Duration::from_micros(timing.unwrap().written_us))
        }
        _ => None,
    });
    outcomes.collect()
}

#[test]
fn a_container_with_thousands_of_cgroups_is_frozen_and_stalls_no_loop() {
    let large = Large::new(EMPTY, POPULATED);
    let agent = Agent::start("").unwrap();
    for _ in 0..5 {
        let frozen = agent.cli(&["freeze", "--for", "60s", &large.target()]).unwrap();
        assert!(frozen.status.success(), "{frozen:?}");
        assert!(Holds::of(&large.cgroup).unwrap().frozen);
        let thawed = agent.cli(&["thaw", &large.target()]).unwrap();
        assert!(thawed.status.success(), "{thawed:?}");
    }
    eprintln!(
        "cgroup.freeze written after {:?}, longest turn {:?}",
        written(&agent),
        longest_turn(&agent)
    );
    assert!(longest_turn(&agent) < LONGEST_TURN, "{:?}", longest_turn(&agent));
}
