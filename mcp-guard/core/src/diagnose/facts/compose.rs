//! What is known of a container's compose project: its labels, and what of its files a limit depends on.
//! Nothing else of a file is kept, because compose files hold secrets.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::ComposeTool;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Compose {
    pub project: String,
    pub service: String,
    /// What made the container.
    pub tool: ComposeTool,
    pub version: Option<String>,
    /// Full paths, the first is the base.
    pub files: Vec<String>,
    /// Seconds since 1970 of the newest of them.
    pub modified: Option<u64>,
    /// None where the files were not asked for, and in a saved file of schema 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<Content>,
    /// What the files came to when they were saved. Where there is content, that is judged again.
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

/// One file, in the order in which compose reads them: later ones win.
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
    /// It is no YAML.
    Broken {
        why: String,
    },
    Read {
        include: bool,
        service: Reached<ServiceKeys>,
        /// Limits that are not this service's.
        elsewhere: Vec<OtherLimit>,
    },
}

/// What is at the end of a path of keys.
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

/// Of `deploy.resources.limits`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LimitKeys {
    pub pids: Option<Written>,
}

/// A value as the file has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Written {
    /// From 1.
    pub line: u64,
    pub tag: Option<String>,
    /// Variables not filled in; None where it is a list or a mapping.
    pub text: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherLimit {
    /// From 1.
    pub line: u64,
    /// `service NAME` or `extension NAME`.
    pub of: String,
}

/// Of the project's env files, the variables that the keys use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Variables {
    /// Why the env files are not known.
    pub unread: Option<String>,
    /// Seconds since 1970 of the newest of them.
    pub modified: Option<u64>,
    /// None where the value is no number: it may be a secret.
    pub values: BTreeMap<String, Option<String>>,
}

/// What the compose files say of the service's limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "outcome")]
pub enum Says {
    Limit {
        value: i64,
        /// `pids_limit` or `deploy.resources.limits.pids`.
        key: String,
        file: String,
        /// From 1.
        line: u64,
        /// A variable or its default stands there: the shell that ran compose may have had another.
        #[serde(default)]
        filled: bool,
    },
    /// The service is there and has no limit.
    Nothing { elsewhere: Vec<String> },
    /// The file does not load.
    Invalid { why: String },
    /// Not read, or it uses what only compose itself resolves.
    Unknown { why: String },
    #[default]
    NotAsked,
}

impl Says {
    fn is_not_asked(&self) -> bool {
        *self == Self::NotAsked
    }
}
