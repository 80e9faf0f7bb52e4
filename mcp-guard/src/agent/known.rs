//! The engines, and what they reported about themselves and their containers.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
};

use mcp_guard_core::diagnose::facts;

use crate::{
    control::wire::EngineState,
    engine::{Container, EngineId, Engines},
};

/// Most containers remembered as not found.
const MAX_UNFOUND: usize = 1024;

pub(super) struct KnownEngines {
    pub all: Engines,
    pub state: EngineState,
    /// Each engine's description, from when it was last reached.
    pub described: BTreeMap<EngineId, facts::EngineFacts>,
    /// Containers whose missing cgroup has been logged.
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

    /// Notes that an engine is reachable, because it reported a container.
    pub fn is_reached(&mut self) {
        if self.state == EngineState::Connecting {
            self.state = EngineState::Connected;
        }
    }

    /// Logs that a container's cgroup is not found. It is logged once, because the engine reports the
    /// container again and again.
    pub fn warn_not_found(&mut self, container: Container, error: &dyn Display) {
        if self.unfound.len() >= MAX_UNFOUND {
            self.unfound.clear();
        }
        if self.unfound.insert(container.id) {
            tracing::warn!(name = container.name, %error, "cannot guard the container: its cgroup is not found");
        }
    }

    pub fn found(&mut self, id: &str) {
        self.unfound.remove(id);
    }
}
