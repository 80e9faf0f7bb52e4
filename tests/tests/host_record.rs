//! `record`: a trace of what runs here, and the same decisions again in `replay`.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]

use std::{
    fs,
    process::{Command, Output, Stdio},
};

use mcp_guard_core::{
    audit::Record,
    policy::Policy,
    replay::replay,
    trace::{EndOfTrace, TraceEvent, parse},
};
use mcp_guard_tests::{
    agent::{Agent, DEADLINE},
    cgroup::FixtureCgroup,
    leak::{Leak, LeakPolicy, observing},
    recording::{Decided, Recording},
    sleeper::Sleeper,
    wait, workload,
};
use rustix::process::Signal;

/// How much later a replay may decide: it reads the kernel's counts each second, but not in the same moments, and a
/// look that decides comes each second, too.
const INTERVAL_NS: u64 = 1_500_000_000;

#[test]
fn a_recorded_leak_is_judged_again_as_it_was_live() {
    let cgroup = FixtureCgroup::new("record").unwrap();
    for (mode, response) in [("enforce", "clamp"), ("enforce", "freeze"), ("observe", "clamp")] {
        let policy = LeakPolicy { mode, lease: "4s", ..LeakPolicy::enforcing(&cgroup, response) };
        let policy = policy.toml();
        let mut agent = Agent::start(&policy).unwrap();
        let file = agent.folder().join("leak.jsonl");
        let mut recording = Recording::begin(&mut agent, &cgroup, &file, &[]).unwrap();
        let mut secretive = Command::new("env");
        secretive.args(["API_KEY=zqsecret", "sh", "-c", "true zqsecret", "--token", "zqsecret"]);
        cgroup.spawn(secretive).unwrap().wait().unwrap();
        let leak = Leak::begin(&cgroup, "demo-mcp", &["--count", "5", "--every", "700"]).unwrap();
        agent
            .await_record("it acts", |record| matches!(record, Record::Intent { .. }).then_some(()))
            .unwrap();
        agent
            .await_record("it has acted", |record| {
                matches!(record, Record::Outcome { .. }).then_some(())
            })
            .unwrap();
        // The agent sends what it has recorded once a second or so, and the end comes between two parts.
        let totals = || recording.text().matches("\"totals\"").count();
        let (before, more) = (totals(), 2);
        assert!(wait::until(DEADLINE, || Ok(totals() >= before + more)).unwrap(), "no more parts");
        recording.signal(Signal::INT).unwrap();
        let (code, said) = recording.ended(&mut agent).unwrap();
        assert!(code == Some(0) && said.contains(": stopped"), "{said}");
        drop(leak);
        let text = recording.text();
        let (header, events) = parse(&text).unwrap();
        assert!(matches!(events.last(), Some(TraceEvent::End { why: EndOfTrace::Stopped, .. })));
        assert!(text.contains("\"look\"") && !text.contains("zqsecret"));
        let report = replay(&text, Policy::parse(&policy).unwrap()).unwrap();
        let end = events.last().map_or(0, TraceEvent::time);
        let mut live = Decided::live(&agent, &header).unwrap();
        live.retain(|one| one.t <= end);
        assert!(live.iter().any(|one| one.response.is_some()), "{live:?}");
        Decided::assert_same(live, Decided::replayed(&report), INTERVAL_NS);
        assert_eq!(report.lost, 0);
    }
}

#[test]
fn a_recording_ends_with_its_target_and_by_its_time() {
    let cgroup = FixtureCgroup::new("record-ends").unwrap();
    let sleeper = Sleeper::start(&cgroup).unwrap();
    let mut agent = Agent::start(&observing(&cgroup)).unwrap();
    let [timed, gone] = ["timed", "gone"].map(|name| agent.folder().join(name));
    let mut timed = Recording::begin(&mut agent, &cgroup, &timed, &["--for", "1s"]).unwrap();
    let mut gone = Recording::begin(&mut agent, &cgroup, &gone, &[]).unwrap();
    let (code, said) = timed.ended(&mut agent).unwrap();
    assert!(code == Some(0) && said.contains("the time is over"), "{said}");
    assert!(timed.text().contains("\"sleep\"") && timed.text().ends_with("\"time\"}\n"));
    drop(sleeper);
    drop(cgroup);
    let (code, said) = gone.ended(&mut agent).unwrap();
    assert!(code == Some(0) && said.contains("the target has ended"), "{said}");
    assert!(gone.text().ends_with("\"guard-ended\"}\n"));
    for file in [&timed.file, &gone.file] {
        let output = agent.cli(&["replay", file.to_str().unwrap()]).unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
}

#[test]
fn a_recording_that_cannot_begin_says_why_and_leaves_no_file() {
    let cgroup = FixtureCgroup::new("record-not").unwrap();
    let other = FixtureCgroup::new("record-other").unwrap();
    let agent = Agent::start(&observing(&cgroup)).unwrap();
    let file = agent.folder().join("trace");
    let path = file.to_str().unwrap();
    let record = |cgroup: &FixtureCgroup| -> Output {
        let target = format!("cgroup:{}", cgroup.path());
        agent.cli(&["record", &target, "-o", path, "--for", "1s"]).unwrap()
    };
    let output = record(&other);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && said.contains("is not guarded"), "{said}");
    assert!(!file.exists());
    fs::write(&file, "mine").unwrap();
    let output = record(&cgroup);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && said.contains("exists"), "{said}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
}

/// A file system of 64 KiB. Unmounted on drop.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("mcp-guard-test-").tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(folder.path());
        assert!(mount.status().unwrap().success());
        Self(folder)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// Thousands of births and ends.
fn storm(cgroup: &FixtureCgroup) {
    let mut births = Command::new(workload("spawn-workload").unwrap());
    births.args(["--case", "fork", "--seconds", "2"]).stdout(Stdio::null());
    assert!(cgroup.spawn(births).unwrap().wait().unwrap().success());
}

#[test]
fn a_full_disk_and_a_full_file_keep_whole_lines() {
    let cgroup = FixtureCgroup::new("record-full").unwrap();
    let mut agent = Agent::start(&observing(&cgroup)).unwrap();
    let disk = SmallDisk::new();
    let [full, small] = [disk.0.path().join("full"), agent.folder().join("small")];
    let mut full = Recording::begin(&mut agent, &cgroup, &full, &[]).unwrap();
    let mut small = Recording::begin(&mut agent, &cgroup, &small, &["--max-size", "8KiB"]).unwrap();
    storm(&cgroup);
    let (code, said) = small.ended(&mut agent).unwrap();
    assert!(code == Some(0) && said.contains("its largest size"), "{said}");
    let (code, said) = full.ended(&mut agent).unwrap();
    assert!(code == Some(1) && said.contains("cannot write more"), "{said}");
    assert!(small.text().len() <= 8 << 10);
    for text in [small.text(), full.text()] {
        assert!(text.ends_with('\n'));
        let report = replay(&text, Policy::default()).unwrap();
        assert!(report.events > 20, "{report:?}");
    }
}
