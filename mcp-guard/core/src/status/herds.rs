//! The status of containers that have lost their clients.

use serde::{Deserialize, Serialize};

use crate::detect::herd::HerdFound;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HerdStatus {
    /// The engine's socket.
    pub engine: String,
    /// The image of its containers, or the label that they have in common.
    pub identity: String,
    /// How many of the containers have no client, at least.
    pub abandoned: usize,
    /// How many containers there are whose stdin has ended.
    pub ended: usize,
    /// The names of these containers, 50 at most.
    pub containers: Vec<String>,
    /// Connections that the engine holds although the client is gone.
    pub dead_connections: u64,
    /// Connections of living clients, any of which may lead to one of these containers.
    pub living_connections: u64,
    /// For how long the stdin of one of them has ended, at most.
    pub longest_seconds: u64,
}

/// An engine whose containers' clients could not be looked at the last time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnseenClients {
    /// The engine's socket.
    pub engine: String,
    /// How long ago they were seen, or should have been for the first time.
    pub seconds: u64,
}

impl From<&HerdFound> for HerdStatus {
    fn from(found: &HerdFound) -> Self {
        Self {
            engine: found.engine.clone(),
            identity: found.identity.clone(),
            abandoned: found.abandoned,
            ended: found.ended,
            containers: found.containers.clone(),
            dead_connections: found.connections.dead,
            living_connections: found.connections.living,
            longest_seconds: found.longest.as_secs(),
        }
    }
}
