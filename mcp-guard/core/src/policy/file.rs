//! The keys that one policy file may have.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Detect, Looks, Mode, Respond, Rule, ServerKeys};
use crate::server::Launcher;

/// The keys of a policy file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct File {
    /// The mode of each rule that has no `mode` of its own, and of all containers if there is no
    /// rule.
    pub mode: Mode,
    pub detect: Detect,
    pub respond: Respond,
    pub evidence: Looks,
    pub guard: Vec<Rule>,
    pub server: BTreeMap<String, ServerKeys>,
    pub launcher: Vec<Launcher>,
}
