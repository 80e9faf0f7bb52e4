//! The engines, and what they said of themselves and their containers.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
};

use mcp_guard_core::diagnose::facts;

use crate::{
    control::wire::EngineState,
    engine::{Container, EngineId, Engines},
};

/// Containers remembered as not found.
const MAX_UNFOUND: usize = 1024;

pub(super) struct KnownEngines {
    pub all: Engines,
    pub state: EngineState,
    /// What each engine said of itself when it was last reached.
    pub described: BTreeMap<EngineId, facts::EngineFacts>,
    /// Containers whose cgroup could not be found, which was said.
    unfound: BTreeSet<String>,
}

impl KnownEngines {
    pub fn new(all: Engines) -> Self {
        let state = match all.is_empty() {
            true => EngineState::None,
            false => EngineState::Connecting,
        };
        Self { all, state, described: BTreeMap::new(), unfound: BTreeSet::new() }
    }

    /// A container was told of, so its engine is there.
    pub fn is_reached(&mut self) {
        if self.state == EngineState::Connecting {
            self.state = EngineState::Connected;
        }
    }

    /// Says that the cgroup of a container is not found: once, because its engine tells of it again and
    /// again.
    pub fn say_unfound(&mut self, container: Container, error: &dyn Display) {
        if self.unfound.len() >= MAX_UNFOUND {
            self.unfound.clear();
        }
        if self.unfound.insert(container.id) {
            tracing::warn!(name = container.name, %error, "container not guarded");
        }
    }

    pub fn found(&mut self, id: &str) {
        self.unfound.remove(id);
    }
}
