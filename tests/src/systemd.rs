//! systemd, asked as a person would.

use std::process::Command;

/// A command that must succeed; what it printed, trimmed.
#[track_caller]
pub fn run(program: &str, words: &[&str]) -> String {
    let done = Command::new(program).args(words).output().expect("it starts");
    let stderr = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{program} {words:?}: {}: {stderr}", done.status);
    String::from_utf8_lossy(&done.stdout).trim().to_owned()
}

#[track_caller]
pub fn systemctl(words: &[&str]) -> String {
    run("systemctl", words)
}

/// The number that all of systemd's own documents use.
pub fn version() -> u32 {
    let said = systemctl(&["--version"]);
    said.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("a version")
}

pub fn property(unit: &str, name: &str) -> String {
    systemctl(&["show", unit, "--property", name, "--value"])
}

/// Of the manager.
pub fn default_tasks_max() -> String {
    systemctl(&["show", "--property", "DefaultTasksMax", "--value"])
}

/// Returns when systemd has nothing else queued: what it had to write, it has written.
pub fn settle() {
    systemctl(&["show", "--property", "Version"]);
}

pub fn daemon_reload() {
    systemctl(&["daemon-reload"]);
    settle();
}

/// Starts another unit in this slice, and waits for its end.
pub fn start_in(slice: &str) {
    let slice = format!("--slice={slice}");
    run("systemd-run", &[&slice, "--wait", "--quiet", "--collect", "true"]);
    settle();
}

/// What makes each systemd apply its own values again: the older at once, the newer when another unit
/// starts in the slice.
pub fn reload_and_start_in(slice: &str) {
    daemon_reload();
    start_in(slice);
}
