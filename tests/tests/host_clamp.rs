//! A clamp can do harm: node aborts if it cannot create its pool's threads when the pool is first used.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]
#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "a test looks for one record and ignores the rest"
)]

use std::{
    fs::{self, File},
    os::{fd::OwnedFd, unix::process::ExitStatusExt as _},
    process::{Command, Stdio},
};

use mcp_guard_core::{
    audit::Record,
    incident::{End, Outcome},
    policy::Response,
};
use mcp_guard_tests::{
    agent::Agent,
    cgroup::FixtureCgroup,
    holds::Holds,
    leak::{Leak, LeakPolicy},
    node::{POOL, Script, Server},
    sleeper::Sleeper,
    workload,
};
use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, openat, unlinkat};

/// The limit that the owner set before the clamp.
const FOUND: u64 = 400;
/// The policy's default `clamp_headroom`, in tasks.
const HEADROOM: u64 = 20;

const SIGABRT: i32 = 6;
const SIGKILL: i32 = 9;

/// Servers with unused thread pools, clamped by the duplicates detector. The fields are dropped in this
/// order.
struct Scene {
    agent: Agent,
    servers: Vec<Server>,
    cgroup: FixtureCgroup,
    /// Tasks that the clamp leaves free.
    room: u64,
}

fn clamped(servers: u64, lease: &str) -> Scene {
    let cgroup = FixtureCgroup::new("clamp").unwrap();
    cgroup.set_pids_max(FOUND).unwrap();
    let script = Script::new().unwrap();
    let servers: Vec<_> = (0..servers).map(|_| Server::start(&cgroup, &script).unwrap()).collect();
    let policy = LeakPolicy { lease, ..LeakPolicy::enforcing(&cgroup, "clamp") }.toml();
    let mut agent = Agent::start(&policy).unwrap();
    let clamp = |record: &Record| match record {
        Record::Outcome { response: Response::Clamp, outcome, .. } => Some(*outcome),
        _ => None,
    };
    assert_eq!(agent.await_record("clamped", clamp).unwrap(), Outcome::Done);
    let limit: u64 = Holds::of(&cgroup).unwrap().pids_max.parse().unwrap();
    let room = limit - cgroup.pids_current().unwrap();
    assert!(room >= HEADROOM && limit < FOUND, "room for {room}");
    Scene { agent, servers, cgroup, room }
}

impl Scene {
    /// Has all servers use their pools at once, the worst case. Returns how many succeeded. The others have
    /// ended.
    fn use_pools(&mut self) -> u64 {
        self.servers.iter().for_each(|server| server.use_pool().unwrap());
        self.servers.iter().map(|server| u64::from(server.has_used_pool().unwrap())).sum()
    }

    /// Waits until the clamp is loosened, and returns the record's detail.
    fn loosened(&mut self) -> String {
        let said = |record: &Record| match record {
            Record::Outcome { detail, .. } if detail.contains("loosened") => Some(detail.clone()),
            _ => None,
        };
        self.agent.await_record("loosened", said).unwrap()
    }

    /// Ends the servers, and so the reason for the clamp. Returns how many had aborted.
    fn end_servers(&mut self) -> usize {
        let ends: Vec<_> = self.servers.drain(..).map(|server| server.end().unwrap()).collect();
        let by = |signal| ends.iter().filter(|end| end.signal() == Some(signal)).count();
        assert_eq!(by(SIGABRT) + by(SIGKILL), ends.len(), "{ends:?}");
        by(SIGABRT)
    }

    /// Waits until the lease has ended. Checks that the limit is what it was before, and that no process is
    /// left inside.
    fn assert_released(&mut self) {
        let released = |record: &Record| match record {
            Record::Release { end: End::LeaseOver, outcome: Some(outcome), .. } => Some(*outcome),
            _ => None,
        };
        assert_eq!(self.agent.await_record("released", released).unwrap(), Outcome::Done);
        assert_eq!(Holds::of(&self.cgroup).unwrap(), Holds::nothing(FOUND));
        assert!(self.cgroup.procs().unwrap().is_empty());
    }
}

#[test]
fn servers_that_fit_in_the_headroom_create_their_pools() {
    let count = HEADROOM / POOL;
    let mut scene = clamped(count, "1s");
    let before: Vec<_> = scene.servers.iter().map(|server| server.threads().unwrap()).collect();
    assert_eq!(scene.use_pools(), count);
    for (server, before) in scene.servers.iter().zip(before) {
        assert_eq!(server.threads().unwrap(), before + POOL, "its pool was used before");
    }
    assert_eq!(scene.end_servers(), 0, "a server aborted");
    scene.assert_released();
}

/// The first process that is denied a fork need not be node. A shell that cannot fork is harmed, but lives.
#[test]
fn a_denial_loosens_the_clamp_once_and_makes_room_for_twice_as_many_pools() {
    let count = 2 * HEADROOM / POOL;
    let mut scene = clamped(count, "60s");
    let mut bomb = Command::new(workload("spawn-workload").unwrap());
    bomb.args("--case bomb --seconds 30 --workers 1 --alive 60 --max 100".split(' '));
    let status = scene
        .cgroup
        .spawn({
            bomb.stdout(Stdio::null());
            bomb
        })
        .unwrap()
        .wait()
        .unwrap();
    assert!(status.success());
    let said = scene.loosened();
    assert!(said.contains("after 0 exits by SIGABRT"), "{said}");
    assert_eq!(scene.use_pools(), count);
    assert_eq!(scene.end_servers(), 0, "a server aborted");
    let loosened = |record: &Record| matches!(record, Record::Outcome { detail, .. } if detail.contains("loosened"));
    let audit = scene.agent.audit().unwrap();
    assert_eq!(audit.iter().filter(|record| loosened(record)).count(), 1);
}

/// Ten is the number at which the detector acts by default. libuv aborts at the first thread that it is
/// denied, and loosening the clamp would be too late. So the clamp leaves room for each server's pool.
#[test]
fn ten_servers_create_their_pools_at_once_and_none_aborts() {
    let count = 10;
    let mut scene = clamped(count, "1s");
    assert!(scene.room >= count * POOL, "room {}", scene.room);
    assert_eq!(scene.use_pools(), count);
    assert_eq!(scene.end_servers(), 0, "a server aborted");
    scene.assert_released();
}

/// Cgroups inside each other whose names are as long as possible, and four times as long when they are
/// escaped. Removed on drop.
struct Nested(Vec<OwnedFd>);

impl Nested {
    const NAME: &[u8] = &[0xff; 255];

    fn new(cgroup: &FixtureCgroup, depth: usize) -> Self {
        let mut nested = Self(vec![File::open(cgroup.unified_dir()).unwrap().into()]);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        for _ in 0..depth {
            let above = nested.0.last().unwrap();
            mkdirat(above, Self::NAME, 0o755.into()).unwrap();
            let dir = openat(above, Self::NAME, flags, Mode::empty()).unwrap();
            nested.0.push(dir);
        }
        nested
    }

    /// Moves a process into the innermost one. It stays in its pids cgroup of version 1.
    fn take(&self, sleeper: &Sleeper) {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let door = openat(self.0.last().unwrap(), "cgroup.procs", flags, Mode::empty()).unwrap();
        rustix::io::write(door, sleeper.pid().to_string().as_bytes()).unwrap();
    }
}

impl Drop for Nested {
    fn drop(&mut self) {
        self.0.pop();
        while let Some(above) = self.0.pop() {
            let _ = unlinkat(above, Self::NAME, AtFlags::REMOVEDIR);
        }
    }
}

fn first_clamp(agent: &mut Agent) -> (Outcome, String) {
    let clamp = |record: &Record| match record {
        Record::Outcome { response: Response::Clamp, outcome, detail, .. } => {
            Some((*outcome, detail.clone()))
        }
        _ => None,
    };
    agent.await_record("clamped", clamp).unwrap()
}

/// The processes of a container are no bystanders of its clamp, in any cgroup that it makes. At a depth of 20
/// the kernel cannot name that cgroup either.
#[test]
fn deep_cgroups_of_a_container_prevent_no_clamp() {
    for depth in [5, 20] {
        let cgroup = FixtureCgroup::new("clamp-deep").unwrap();
        cgroup.set_pids_max(FOUND).unwrap();
        let nested = Nested::new(&cgroup, depth);
        let sleeper = Sleeper::start(&cgroup).unwrap();
        nested.take(&sleeper);
        let _leak = Leak::start(&cgroup, 4).unwrap();
        let mut agent = Agent::start(&LeakPolicy::enforcing(&cgroup, "clamp").toml()).unwrap();
        let (outcome, detail) = first_clamp(&mut agent);
        assert_eq!(outcome, Outcome::Done, "{depth}: {detail}");
        drop(sleeper);
    }
}

/// On a host with version 1 of the pids controller, lists of two trees are compared, and what moves is on
/// neither or on both.
#[test]
fn processes_that_move_between_cgroups_prevent_no_clamp() {
    for has_cgroups_below in [false, true] {
        let cgroup = FixtureCgroup::new("clamp-movers").unwrap();
        cgroup.set_pids_max(FOUND).unwrap();
        let place = |number: usize| cgroup.unified_dir().join(number.to_string());
        let places: Vec<_> = (0..32).map(place).collect();
        places.iter().for_each(|place| fs::create_dir(place).unwrap());
        // Each look takes longer than a move.
        (32..3000).for_each(|number| fs::create_dir(place(number)).unwrap());
        let below = cgroup.pids_dir().join("c");
        if has_cgroups_below {
            fs::create_dir(&below).unwrap();
        }
        let mover = || {
            let mut command = Command::new("sh");
            let moves = "echo moves; while :; do for door; do echo 0 >$door; done; done";
            command.args(["-c", moves, "sh"]);
            command.args(places.iter().map(|place| place.join("cgroup.procs")));
            let mut mover = Sleeper::spawn(&cgroup, command).unwrap();
            assert_eq!(mover.line().unwrap(), "moves");
            mover
        };
        let movers: Vec<_> = (0..8).map(|_| mover()).collect();
        let _leak = Leak::start(&cgroup, 4).unwrap();
        let mut agent = Agent::start(&LeakPolicy::enforcing(&cgroup, "clamp").toml()).unwrap();
        let (outcome, detail) = first_clamp(&mut agent);
        assert_eq!(outcome, Outcome::Done, "{detail}");
        drop(movers);
    }
}

/// The first thread of the second one has ended: version 1 shows it in the root.
#[test]
fn a_process_outside_that_shares_the_pids_cgroup_prevents_a_clamp() {
    let leaderless = workload("leaderless").unwrap();
    let programs = [
        ("echo starts && exec sleep 600", "starts"),
        ("exec \"$0\"", "the first thread has ended"),
    ];
    for (program, line) in programs {
        let (cgroup, outside) =
            (FixtureCgroup::new("clamp").unwrap(), FixtureCgroup::new("clamp-outside").unwrap());
        cgroup.set_pids_max(FOUND).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", program]).arg(&leaderless);
        let mut other = Sleeper::spawn(&outside, command).unwrap();
        assert_eq!(other.line().unwrap(), line);
        let is_shared = cgroup.pids_dir() != cgroup.unified_dir();
        if is_shared {
            fs::write(cgroup.pids_dir().join("cgroup.procs"), other.pid().to_string()).unwrap();
        }
        let _leak = Leak::start(&cgroup, 4).unwrap();
        let mut agent = Agent::start(&LeakPolicy::enforcing(&cgroup, "clamp").toml()).unwrap();
        let (outcome, detail) = first_clamp(&mut agent);
        let found = format!("process {} is outside the guard", other.pid());
        let is_refused = outcome == Outcome::Refused && detail.contains(&found);
        assert_eq!(is_refused, is_shared, "{outcome:?} {detail}");
    }
}
