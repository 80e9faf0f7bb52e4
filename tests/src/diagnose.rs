//! Runs `mcp-guard diagnose` on containers under test.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use mcp_guard_core::diagnose::{code::Code, report::Report};

use crate::{
    agent::command,
    docker::{Container, wait_until},
};

/// Runs `diagnose --json`, checks that its exit code fits its findings, and returns the report.
#[track_caller]
pub fn diagnose(container: &Container) -> Report {
    let folder = tempfile::tempdir().expect("cannot create a folder");
    let socket = container.engine.socket().expect("the engine has no socket");
    let mut command = command(folder.path(), &socket).expect("mcp-guard is not built");
    command.args(["diagnose", "--json", &container.name]);
    let done = command.output().expect("cannot start mcp-guard");
    let said = String::from_utf8_lossy(&done.stderr);
    let report: Report = serde_json::from_slice(&done.stdout).unwrap_or_else(|_| panic!("{said}"));
    let expected = i32::from(!report.findings.is_empty());
    assert_eq!(done.status.code(), Some(expected), "{said}");
    report
}

/// Like [`diagnose()`], and asserts that the first finding has this code.
#[track_caller]
pub fn first(container: &Container, code: Code) -> Report {
    let report = diagnose(container);
    let found = report.findings.first().map(|finding| finding.code);
    assert_eq!(found, Some(code), "{report:#?}");
    report
}

/// Like [`diagnose()`], and asserts that there are no findings and that the first `ok` entry has
/// this code.
#[track_caller]
pub fn fine(container: &Container, code: Code) -> Report {
    let report = diagnose(container);
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
    assert_eq!(report.ok.first().map(|fine| fine.code), Some(code), "{:#?}", report.ok);
    report
}

/// Writes a file until its time is at least a second later than the container's. File systems use a
/// coarser clock than engines.
#[track_caller]
pub fn younger(file: &Path, container: &Container, write: impl Fn()) {
    let created = created(container);
    wait_until("the file is younger", || {
        write();
        Ok(fs::metadata(file)?.mtime() > created)
    })
    .expect("the file did not become younger than the container");
}

/// Returns when the engine created a container, in seconds since 1970.
fn created(container: &Container) -> i64 {
    // Podman prints a format of its own, but its JSON has RFC 3339, like Docker's.
    let text = container.inspect("json .Created").expect("cannot inspect the container");
    let text = text.trim_matches('"');
    let date = Command::new("date").args(["-d", text, "+%s"]).output().expect("cannot start date");
    String::from_utf8_lossy(&date.stdout).trim().parse().expect("date did not print seconds")
}

/// A folder with a compose file of one service, and the labels that compose sets for it.
pub struct Project(tempfile::TempDir);

impl Project {
    #[expect(clippy::new_without_default, reason = "it makes a folder")]
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("cannot create a folder"))
    }

    pub fn folder(&self) -> &Path {
        self.0.path()
    }

    pub fn file(&self) -> PathBuf {
        self.folder().join("compose.yml")
    }

    /// Writes the compose file with this limit for the service `web`.
    pub fn write(&self, limit: u64) {
        let text = format!("services:\n  web:\n    image: x\n    pids_limit: {limit}\n");
        fs::write(self.file(), text).expect("cannot write the compose file");
    }

    /// Writes the compose file in a later second than the container's creation.
    #[track_caller]
    pub fn write_after(&self, container: &Container, limit: u64) {
        younger(&self.file(), container, || self.write(limit));
    }

    /// Returns the labels as options of `docker run`.
    pub fn labels(&self) -> Vec<String> {
        let label = |name: &str, value: &str| format!("--label=com.docker.compose.{name}={value}");
        vec![
            label("project", "shop"),
            label("service", "web"),
            label("version", "2.26.1"),
            label("project.working_dir", &self.folder().display().to_string()),
            label("project.config_files", &self.file().display().to_string()),
        ]
    }
}
