//! Events that engines send to the agent.

use mcp_guard_core::diagnose::facts;
use tokio::sync::mpsc;

use super::{container::Container, speaker::Speaker};

/// An engine's position in the list of engines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct EngineId(pub(super) usize);

/// A change that an engine reports to the agent.
#[derive(Clone, Debug)]
pub enum EngineEvent {
    Up {
        by: Speaker,
        container: Container,
    },
    Paused {
        by: Speaker,
        id: String,
        paused: bool,
    },
    /// The engine's own description, sent each time the engine is reached again.
    Described(Box<facts::EngineFacts>),
    /// The engine cannot be reached. Everything that it reported before still counts.
    Away(String),
    Back,
}

/// The channel on which one engine reports its containers.
#[derive(Clone)]
pub struct EngineEvents {
    from: EngineId,
    to: mpsc::Sender<(EngineId, EngineEvent)>,
}

impl EngineEvents {
    #[must_use]
    pub fn new(from: EngineId, to: mpsc::Sender<(EngineId, EngineEvent)>) -> Self {
        Self { from, to }
    }

    /// Sends an event, after waiting for room in the channel. Does nothing if the receiver is gone.
    pub async fn send(&self, event: EngineEvent) {
        let _ = self.to.send((self.from, event)).await;
    }

    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.to.is_closed()
    }
}
