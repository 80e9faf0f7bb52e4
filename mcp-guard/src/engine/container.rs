//! What engines say of containers.

use std::collections::BTreeMap;

use mcp_guard_core::{
    diagnose::facts::{self, Compose, Unreadable},
    escape::escape,
    id::Pid,
};
use serde_json::Value;

/// Characters of a name that is kept, see `docker run --name`.
pub(super) const MAX_NAME: usize = 255;
/// Characters of any other text.
pub(super) const MAX_TEXT: usize = 1024;
/// Files of one compose project, and env files: whoever names more has them not read.
pub const MAX_FILES: usize = 32;

/// A running container.
#[derive(Clone, Debug)]
pub struct Container {
    pub id: String,
    pub name: String,
    pub image: String,
    pub labels: BTreeMap<String, String>,
    /// Its first process, as the host numbers it.
    pub init: Pid,
    pub paused: bool,
    /// `HostConfig.PidsLimit` where it is a limit.
    pub limit: Option<u64>,
}

/// One container, as its engine describes it.
#[derive(Clone, Debug, Default)]
pub struct Details {
    pub container: facts::ContainerFacts,
    /// What its labels say, as they say it: to open files by, and not to be shown. They are not read
    /// here.
    pub compose: Option<Compose>,
    /// `com.docker.compose.project.working_dir`; empty where it is no path.
    pub working_dir: String,
    /// `com.docker.compose.project.environment_file`.
    pub environment_file: Option<String>,
    /// What the engine would not say of it.
    pub unread: Option<Unreadable>,
    /// Its `docker exec` calls; they may be asked about.
    pub(super) execs: Vec<String>,
}

/// One line of the list of containers.
#[derive(Clone, Debug, Default)]
pub struct Listed {
    pub id: String,
    pub name: String,
    pub image: String,
    /// Of compose.
    pub project: Option<String>,
    /// Folders of the host that it can write to.
    pub volumes: Vec<String>,
    /// It has processes; a stopped one may still have left files.
    pub runs: bool,
}

pub(super) fn text(value: &Value) -> String {
    shown(value.as_str().unwrap_or_default(), MAX_TEXT)
}

pub(super) fn shown(text: &str, limit: usize) -> String {
    escape(text.as_bytes(), limit)
}
