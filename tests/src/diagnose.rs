//! `mcp-guard diagnose`, asked about containers under test.

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

/// What `diagnose --json` says, with the exit code that goes with it.
#[track_caller]
pub fn diagnose(container: &Container) -> Report {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = container.engine.socket().expect("a socket");
    let mut command = command(folder.path(), &socket).expect("a command");
    let done = command.args(["diagnose", "--json", &container.name]).output().expect("an answer");
    let said = String::from_utf8_lossy(&done.stderr);
    let report: Report = serde_json::from_slice(&done.stdout).unwrap_or_else(|_| panic!("{said}"));
    let expected = i32::from(!report.findings.is_empty());
    assert_eq!(done.status.code(), Some(expected), "{said}");
    report
}

/// The same; this is the first finding.
#[track_caller]
pub fn first(container: &Container, code: Code) -> Report {
    let report = diagnose(container);
    let found = report.findings.first().map(|finding| finding.code);
    assert_eq!(found, Some(code), "{report:#?}");
    report
}

/// The same; nothing is wrong, and this is said first.
#[track_caller]
pub fn fine(container: &Container, code: Code) -> Report {
    let report = diagnose(container);
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
    assert_eq!(report.ok.first().map(|fine| fine.code), Some(code), "{:#?}", report.ok);
    report
}

/// Writes a file until it is of a later second than a container. File systems look at a coarser clock
/// than engines.
#[track_caller]
pub fn younger(file: &Path, container: &Container, write: impl Fn()) {
    let created = created(container);
    wait_until("the file is younger", || {
        write();
        Ok(fs::metadata(file)?.mtime() > created)
    })
    .expect("a clock that runs");
}

/// Seconds since 1970 at which the engine says that it made a container.
fn created(container: &Container) -> i64 {
    // Podman prints it by its own words, and its JSON has RFC 3339 as Docker's has.
    let text = container.inspect("json .Created").expect("inspect");
    let text = text.trim_matches('"');
    let date = Command::new("date").args(["-d", text, "+%s"]).output().expect("date");
    String::from_utf8_lossy(&date.stdout).trim().parse().expect("seconds")
}

/// A folder with a compose file of one service, and the labels that compose leaves for it.
pub struct Project(tempfile::TempDir);

impl Project {
    #[expect(clippy::new_without_default, reason = "it makes a folder")]
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    pub fn folder(&self) -> &Path {
        self.0.path()
    }

    pub fn file(&self) -> PathBuf {
        self.folder().join("compose.yml")
    }

    /// The limit of the service `web`.
    pub fn write(&self, limit: u64) {
        let text = format!("services:\n  web:\n    image: x\n    pids_limit: {limit}\n");
        fs::write(self.file(), text).expect("a file");
    }

    /// The same, in a later second than the container was made.
    #[track_caller]
    pub fn write_after(&self, container: &Container, limit: u64) {
        younger(&self.file(), container, || self.write(limit));
    }

    /// Options of `docker run`.
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
