//! The subjects of rules, and the terms that a rule gives them.

use std::collections::BTreeMap;

use super::{Mode, Response};

/// The subject that rules are matched against: a container, or a cgroup that no engine knows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Workload {
    pub name: String,
    pub image: String,
    pub labels: BTreeMap<String, String>,
    pub cgroup: String,
}

/// The part of the policy that applies to one guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    pub mode: Mode,
    pub highest: Response,
    /// The limit to enforce, if the policy names one.
    pub pids_limit: Option<u64>,
    /// The place of its rule in [`Policy::guard`](super::Policy::guard).
    pub rule: Option<usize>,
}

impl Terms {
    /// Returns terms that no rule has set.
    #[must_use]
    pub fn new(mode: Mode, highest: Response) -> Self {
        Self { mode, highest, pids_limit: None, rule: None }
    }

    /// Returns the terms of a cgroup that the policy does not name.
    #[must_use]
    pub fn nothing() -> Self {
        Self::new(Mode::Observe, Response::Record)
    }
}
