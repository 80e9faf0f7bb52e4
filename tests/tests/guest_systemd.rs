//! Facts about systemd and pids.max that the pure tests take for granted.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]

use std::{
    fs,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use mcp_guard_tests::{
    fact,
    systemd::{daemon_reload, property, run, start_in, systemctl, version},
};
use rustix::fs::{XattrFlags, getxattr, setxattr};

const TASKS_MAX: &str = "60";
/// A limit that is written to the file without systemd.
const RAW: &str = "33";
/// An xattr like our mark, which must outlive everything that systemd does to the unit.
const MARK: &str = "trusted.mcp-guard.test";

/// A transient service that sleeps, in a slice of its own, so that units that start in other slices do not
/// affect it. Stopped when dropped.
struct Unit {
    name: String,
    slice: String,
    cgroup: PathBuf,
}

impl Unit {
    fn start() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("mcp-guard-test-{}-{next}.service", std::process::id());
        // A dash in the name of a slice would put it into other slices.
        let slice = format!("mcpguardtest{next}.slice");
        // Made first, so that it is dropped, and the service stopped, even if a later step fails.
        let mut unit = Self { name: name.clone(), slice: slice.clone(), cgroup: PathBuf::new() };
        let (of_unit, of_slice) = (format!("--unit={name}"), format!("--slice={slice}"));
        let tasks_max = format!("--property=TasksMax={TASKS_MAX}");
        // With Type=exec, the unit is started only when its program runs.
        let words = [&of_unit, &of_slice, &tasks_max, "--property=Type=exec", "sleep", "600"];
        run("systemd-run", &words);
        let path = unit.property("ControlGroup");
        assert_eq!(path, format!("/{slice}/{name}"));
        unit.cgroup = PathBuf::from(format!("/sys/fs/cgroup{path}"));
        assert_eq!((unit.pids_max().as_str(), unit.property("TasksMax").as_str()), ("60", "60"));
        unit
    }

    fn property(&self, name: &str) -> String {
        property(&self.name, name)
    }

    fn set(&self, property: &str) {
        systemctl(&["set-property", "--runtime", &self.name, property]);
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.cgroup.join(file)).unwrap().trim().to_owned()
    }

    fn pids_max(&self) -> String {
        self.read("pids.max")
    }

    /// Writes a file of the cgroup directly, as the agent's clamp does.
    fn write(&self, file: &str, value: &str) {
        fs::write(self.cgroup.join(file), value).unwrap();
        assert_eq!(self.read(file), value);
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        // A frozen process does not act on SIGTERM.
        let _ = fs::write(self.cgroup.join("cgroup.freeze"), "0");
        // The slice stays when its last unit stops.
        for name in [&self.name, &self.slice] {
            let stopped = Command::new("systemctl").args(["stop", name]).status();
            if !std::thread::panicking() {
                assert!(stopped.unwrap().success(), "{name} is left behind");
            }
        }
    }
}

#[test]
fn a_raw_limit_is_lost_after_a_daemon_reload() {
    let version = version();
    fact::record("systemd", version).unwrap();
    let unit = Unit::start();
    unit.write("pids.max", RAW);
    start_in(&unit.slice);
    assert_eq!(unit.pids_max(), RAW, "without a reload, a start in the same slice changes nothing");
    assert_eq!(unit.property("TasksMax"), TASKS_MAX, "systemd does not read the file");

    daemon_reload();
    let at_once = unit.pids_max() == TASKS_MAX;
    if !at_once {
        assert_eq!(unit.pids_max(), RAW);
        start_in("system.slice");
        assert_eq!(unit.pids_max(), RAW, "a start in another slice changes nothing");
        start_in(&unit.slice);
        assert_eq!(unit.pids_max(), TASKS_MAX, "a start in the same slice applies TasksMax again");
    }
    fact::record("daemon-reload", if at_once { "at once" } else { "at the next start" }).unwrap();
    match version {
        ..=255 => assert!(at_once, "systemd {version}"),
        256 | 257 => assert!(!at_once, "systemd {version}"),
        // Either of the two. The asserts above have checked it.
        _ => {}
    }
}

#[test]
fn tasks_max_persists_and_any_property_change_applies_it_again() {
    let unit = Unit::start();
    unit.set("TasksMax=40");
    assert_eq!((unit.pids_max().as_str(), unit.property("TasksMax").as_str()), ("40", "40"));
    daemon_reload();
    start_in(&unit.slice);
    assert_eq!((unit.pids_max().as_str(), unit.property("TasksMax").as_str()), ("40", "40"));

    unit.write("pids.max", RAW);
    unit.set("CPUWeight=50");
    assert_eq!(unit.pids_max(), "40", "an unrelated property applies TasksMax again");
}

#[test]
fn a_freeze_and_a_mark_survive_where_a_raw_limit_does_not() {
    let unit = Unit::start();
    setxattr(&unit.cgroup, MARK, b"ours", XattrFlags::CREATE).unwrap();
    unit.write("cgroup.freeze", "1");
    unit.write("pids.max", RAW);
    daemon_reload();
    start_in(&unit.slice);
    unit.set("CPUWeight=50");
    assert_eq!(unit.pids_max(), TASKS_MAX, "systemd has written to this cgroup");
    assert_eq!(unit.read("cgroup.freeze"), "1");
    let mut value = [0; 16];
    let length = getxattr(&unit.cgroup, MARK, &mut value[..]).unwrap();
    assert_eq!(&value[..length], b"ours");
}
