//! systemd through its command-line tools.

use std::process::Command;

/// Runs a command that must succeed, and returns its trimmed output.
#[track_caller]
pub fn run(program: &str, words: &[&str]) -> String {
    let done = Command::new(program).args(words).output().expect("cannot start the program");
    let stderr = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{program} {words:?}: {}: {stderr}", done.status);
    String::from_utf8_lossy(&done.stdout).trim().to_owned()
}

#[track_caller]
pub fn systemctl(words: &[&str]) -> String {
    run("systemctl", words)
}

/// Returns the major version, the number that systemd's documentation uses.
pub fn version() -> u32 {
    let said = systemctl(&["--version"]);
    let version = said.split_whitespace().nth(1).and_then(|word| word.parse().ok());
    version.expect("systemctl did not print a version")
}

pub fn property(unit: &str, name: &str) -> String {
    systemctl(&["show", unit, "--property", name, "--value"])
}

/// Returns the manager's `DefaultTasksMax`.
pub fn default_tasks_max() -> String {
    systemctl(&["show", "--property", "DefaultTasksMax", "--value"])
}

/// Waits until systemd has handled everything in its queue, and so has done all pending writes.
pub fn settle() {
    systemctl(&["show", "--property", "Version"]);
}

pub fn daemon_reload() {
    systemctl(&["daemon-reload"]);
    settle();
}

/// Starts another unit in this slice and waits until it has ended.
pub fn start_in(slice: &str) {
    let slice = format!("--slice={slice}");
    run("systemd-run", &[&slice, "--wait", "--quiet", "--collect", "true"]);
    settle();
}

/// Makes every version of systemd apply its own values again: older versions do it on a reload, newer
/// ones when another unit starts in the slice.
pub fn reload_and_start_in(slice: &str) {
    daemon_reload();
    start_in(slice);
}
