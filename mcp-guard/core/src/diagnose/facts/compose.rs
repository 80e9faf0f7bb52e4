//! Facts about a container's compose project: its labels, and the keys of its files that a limit depends on.
//! Nothing else of a file is kept, because compose files contain secrets.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::ComposeTool;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Compose {
    pub project: String,
    pub service: String,
    /// The tool that created the container.
    pub tool: ComposeTool,
    pub version: Option<String>,
    /// Absolute paths; the first is the base file.
    pub files: Vec<String>,
    /// Seconds since 1970 of the newest of them.
    pub modified: Option<u64>,
    /// None if the files were not asked for, and in a saved file of schema 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<Content>,
    /// The result for the files when they were saved. If there is `content`, it is judged again instead.
    #[serde(skip_serializing_if = "Says::is_not_asked")]
    pub says: Says,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "outcome")]
pub enum Content {
    /// No file was opened.
    Unread {
        why: String,
    },
    Read {
        files: Vec<ComposeFile>,
        variables: Variables,
    },
}

/// One file. Files are in the order in which compose reads them: later ones win.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComposeFile {
    pub path: String,
    pub keys: Keys,
}

/// The keys of one file that a limit depends on, with merge keys and aliases followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "outcome")]
pub enum Keys {
    Unread {
        why: String,
    },
    /// The file is not YAML.
    Broken {
        why: String,
    },
    Read {
        include: bool,
        service: Reached<ServiceKeys>,
        /// Limits of other services and of extensions.
        elsewhere: Vec<OtherLimit>,
    },
}

/// The end of a path of keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reached<T> {
    #[default]
    Absent,
    /// A key on the way has a tag (`!reset`, `!override`), which changes how compose merges it.
    Tagged {
        key: String,
        tag: String,
    },
    There(T),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceKeys {
    pub extends: bool,
    pub profiles: bool,
    pub pids_limit: Option<Written>,
    /// `deploy.resources.limits`.
    pub limits: Reached<LimitKeys>,
}

/// The keys of `deploy.resources.limits`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LimitKeys {
    pub pids: Option<Written>,
}

/// A value as it is written in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Written {
    /// Line number, from 1.
    pub line: u64,
    pub tag: Option<String>,
    /// The text, with variables not filled in; None for a list or a mapping.
    pub text: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherLimit {
    /// Line number, from 1.
    pub line: u64,
    /// `service NAME` or `extension NAME`.
    pub of: String,
}

/// The variables of the project's env files that the keys use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Variables {
    /// The reason why the env files are not known.
    pub unread: Option<String>,
    /// Seconds since 1970 of the newest of them.
    pub modified: Option<u64>,
    /// Values by name; None if a value is not a number, because it may be a secret.
    pub values: BTreeMap<String, Option<String>>,
}

/// The limit that the compose files declare for the service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "outcome")]
pub enum Says {
    Limit {
        value: i64,
        /// `pids_limit` or `deploy.resources.limits.pids`.
        key: String,
        file: String,
        /// Line number, from 1.
        line: u64,
        /// The value comes from a variable or its default; the shell that ran compose may have had another.
        #[serde(default)]
        filled: bool,
    },
    /// The service exists and has no limit.
    Nothing { elsewhere: Vec<String> },
    /// Compose rejects the file.
    Invalid { why: String },
    /// The files were not read, or use features that only compose itself resolves.
    Unknown { why: String },
    #[default]
    NotAsked,
}

impl Says {
    fn is_not_asked(&self) -> bool {
        *self == Self::NotAsked
    }
}
