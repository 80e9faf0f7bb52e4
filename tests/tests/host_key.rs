//! The key that proves marks: it may be removed, be lost, or not be readable. Nothing stays frozen for that,
//! and a limit that stays lowered is reported with what to type.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use mcp_guard::host::mark::{self, BesideFreeze, Mark};
use mcp_guard_core::{Time, id::Pid, incident::Hold};
use mcp_guard_tests::{
    agent::{Agent, DEADLINE},
    cgroup::FixtureCgroup,
    holds::Holds,
    leak::{Leak, LeakPolicy, observing},
    sleeper::Sleeper,
    wait,
};
use rustix::process::Signal;

const FOLDER: &str = "/run/mcp-guard";
const FOUND: u64 = 900;

/// The folder of the key, put back on drop.
struct Folder {
    aside: PathBuf,
}

impl Folder {
    /// Moves the folder out of the way.
    fn moved() -> Self {
        let aside = PathBuf::from(format!("{FOLDER}-test-{}", std::process::id()));
        fs::rename(FOLDER, &aside).unwrap();
        Self { aside }
    }

    /// Puts it back, instead of what is there now.
    fn restore(&self) {
        if self.aside.exists() {
            let _ = fs::remove_dir_all(FOLDER);
            let _ = fs::remove_file(FOLDER);
            fs::rename(&self.aside, FOLDER).unwrap();
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        self.restore();
    }
}

/// A cgroup that is frozen and one that is clamped, by an agent that was killed.
struct Orphans {
    agent: Agent,
    clamped: FixtureCgroup,
    frozen: FixtureCgroup,
    _leak: Leak,
    _sleeper: Sleeper,
    limit: String,
}

impl Orphans {
    fn new() -> Self {
        let clamped = FixtureCgroup::new("key").unwrap();
        clamped.set_pids_max(FOUND).unwrap();
        let frozen = FixtureCgroup::new("key").unwrap();
        let sleeper = Sleeper::start(&frozen).unwrap();
        let mut agent = Agent::start(&LeakPolicy::enforcing(&clamped, "clamp").toml()).unwrap();
        let target = format!("cgroup:{}", frozen.path());
        assert!(agent.cli(&["freeze", "--for", "600s", &target]).unwrap().status.success());
        let leak = Leak::start(&clamped, 4).unwrap();
        agent
            .wait_until("the clamp", |_| Ok(Holds::of(&clamped)?.pids_max != FOUND.to_string()))
            .unwrap();
        agent.signal(Signal::KILL).unwrap();
        agent.ended().unwrap();
        let limit = Holds::of(&clamped).unwrap().pids_max;
        Self { agent, clamped, frozen, _leak: leak, _sleeper: sleeper, limit }
    }

    /// Returns what the command prints, and its exit code.
    fn run(&self, arguments: &[&str]) -> (String, Option<i32>) {
        let output = self.agent.cli(arguments).unwrap();
        (String::from_utf8(output.stdout).unwrap(), output.status.code())
    }

    fn freeze(&self) -> String {
        self.frozen.read("cgroup.freeze").unwrap().trim().to_owned()
    }

    fn pids_max(&self) -> String {
        self.clamped.read("pids.max").unwrap().trim().to_owned()
    }
}

#[test]
fn a_key_that_is_removed_or_changed_is_written_again_by_the_agent() {
    let cgroup = FixtureCgroup::new("key").unwrap();
    let mut agent = Agent::start(&observing(&cgroup)).unwrap();
    let path = Path::new(FOLDER).join("mark.key");
    let before = fs::read(&path).unwrap();
    let folder = Folder::moved();
    // Another agent on this host may write its own for a moment.
    let is_back = |_: &mut Agent| Ok(fs::read(&path).is_ok_and(|key| key == before));
    agent.wait_until("the key is back", is_back).unwrap();
    fs::write(&path, "short").unwrap();
    agent.wait_until("the key is back", is_back).unwrap();
    folder.restore();
}

#[test]
fn without_the_key_nothing_stays_frozen_and_a_lowered_limit_is_reported() {
    let orphans = Orphans::new();
    let folder = Folder::moved();
    orphans.run(&["thaw", "--owned"]);
    assert_eq!(orphans.freeze(), "0");
    assert_eq!(orphans.pids_max(), orphans.limit, "the mark proves nothing");
    let command = format!("mcp-guard repair --limit NUMBER 'cgroup:{}'", orphans.clamped.path());
    let audit = fs::read_to_string(orphans.agent.audit_path()).unwrap();
    assert!(audit.contains(&command), "{audit}");
    let told = |said: &str| {
        let of = format!("pids.max of {} is {}", orphans.clamped.path(), orphans.limit);
        said.contains(&of) && said.contains(&command)
    };
    let (said, _) = orphans.run(&["doctor"]);
    assert!(told(&said), "{said}");
    orphans.clamped.set_pids_max(FOUND).unwrap();
    let (said, _) = orphans.run(&["doctor"]);
    assert!(!told(&said), "the limit was raised: {said}");
    folder.restore();
}

#[test]
fn a_key_that_cannot_be_read_is_waited_for() {
    let orphans = Orphans::new();
    let folder = Folder::moved();
    // A key below a file cannot be read, which says nothing about whether there is one.
    fs::write(FOLDER, "").unwrap();
    let (said, code) = orphans.run(&["thaw", "--owned"]);
    assert_eq!(code, Some(2), "{said}");
    assert_eq!(orphans.freeze(), "0", "{said}");
    assert_eq!(orphans.pids_max(), orphans.limit, "{said}");
    folder.restore();
    let (said, code) = orphans.run(&["thaw", "--owned"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(orphans.pids_max(), FOUND.to_string(), "{said}");
}

/// A freeze whose limit could not be raised at its end leaves this. It is raised soon, and not at the
/// deadline of the freeze.
#[test]
fn a_limit_that_could_not_be_raised_does_not_wait_for_its_deadline() {
    let cgroup = FixtureCgroup::new("key").unwrap();
    let sleeper = Sleeper::start(&cgroup).unwrap();
    let policy = format!("[[guard]]\ncgroup = \"{}\"\nhighest = \"record\"\n", cgroup.path());
    let mut agent = Agent::start(&policy).unwrap();
    cgroup.set_pids_max(1).unwrap();
    let mark = Mark {
        incident: "left".into(),
        reason: "operator".to_owned(),
        deadline: Time(u64::MAX),
        boot_id: mcp_guard::host::clock::boot_id(),
        holder: Pid(agent.pid()),
        holder_start: mcp_guard::host::process::OpenProcess::open(Pid(agent.pid()))
            .and_then(|process| process.start_ticks())
            .unwrap(),
        found: Some(FOUND.to_string()),
        wrote: Some("1".to_owned()),
        before: None,
        freeze: Some(BesideFreeze::default()),
        of_a_server: false,
    };
    mark::write(fs::File::open(cgroup.pids_dir()).unwrap(), Hold::Clamp, &mark).unwrap();
    let is_raised = || Ok(Holds::of(&cgroup)? == Holds::nothing(FOUND));
    assert!(wait::until(DEADLINE, is_raised).unwrap(), "{:?}", Holds::of(&cgroup));
    agent
        .wait_until("its record", |agent| {
            Ok(fs::read_to_string(agent.audit_path())?.contains("1 -> 900 read back"))
        })
        .unwrap();
    drop(sleeper);
}
