//! Containers, as engines describe them.

use std::collections::BTreeMap;

use mcp_guard_core::{
    diagnose::facts::{self, Compose, Unreadable},
    escape::escape,
    id::Pid,
    policy::Workload,
};
use serde_json::Value;

use crate::host::cgroup::Cgroup;

/// Most characters kept of a name, see `docker run --name`.
pub(super) const MAX_NAME: usize = 255;
/// Most characters kept of any other text.
pub(super) const MAX_TEXT: usize = 1024;
/// Most compose files, and most env files, of one project. If the labels name more, none is used.
pub const MAX_FILES: usize = 32;

/// A running container.
#[derive(Clone, Debug)]
pub struct Container {
    pub id: String,
    pub name: String,
    pub image: String,
    /// The digest of its image.
    pub image_id: String,
    pub stdin: StdinConfig,
    pub labels: BTreeMap<String, String>,
    /// Its first process, by its pid on the host.
    pub init: Pid,
    pub paused: bool,
    /// `HostConfig.PidsLimit`, if it sets a limit.
    pub limit: Option<u64>,
}

impl Container {
    /// Returns what rules of the policy are matched against.
    #[must_use]
    pub fn workload(&self, cgroup: &Cgroup) -> Workload {
        Workload {
            name: self.name.clone(),
            image: self.image.clone(),
            labels: self.labels.clone(),
            cgroup: cgroup.path().to_owned(),
        }
    }
}

/// The stdin that its creator asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StdinConfig {
    /// It has one: `docker run --interactive`.
    pub is_open: bool,
    /// It ends with the first client. Podman does not report this.
    pub is_once: bool,
    /// It is a terminal.
    pub is_terminal: bool,
}

/// Everything that a diagnosis asks an engine about one container.
#[derive(Clone, Debug, Default)]
pub struct Details {
    pub container: facts::ContainerFacts,
    /// Its compose labels, not escaped: for opening the files, not for display. The files are not
    /// read yet.
    pub compose: Option<Compose>,
    /// `com.docker.compose.project.working_dir`; empty if it is missing or too long for a path.
    pub working_dir: String,
    /// `com.docker.compose.project.environment_file`.
    pub environment_file: Option<String>,
    /// The part that could not be read from the engine.
    pub unread: Option<Unreadable>,
    /// Ids of its `docker exec` calls, which the engine can describe.
    pub(super) execs: Vec<String>,
}

/// One entry of an engine's list of containers.
#[derive(Clone, Debug, Default)]
pub struct Listed {
    pub id: String,
    pub name: String,
    pub image: String,
    /// The compose project.
    pub project: Option<String>,
    /// Host directories that it can write to.
    pub volumes: Vec<String>,
    /// Whether it has processes. A stopped container may still have left files behind.
    pub runs: bool,
}

pub(super) fn text(value: &Value) -> String {
    shown(value.as_str().unwrap_or_default(), MAX_TEXT)
}

pub(super) fn shown(text: &str, limit: usize) -> String {
    escape(text.as_bytes(), limit)
}
