//! What engines tell the agent, and where.

use mcp_guard_core::diagnose::facts;
use tokio::sync::mpsc;

use super::container::Container;

/// An engine's place in the list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct EngineId(pub(super) usize);

/// An event the agent must know of.
#[derive(Clone, Debug)]
pub enum EngineEvent {
    Up(Container),
    Paused {
        id: String,
        paused: bool,
    },
    /// The engine itself, whenever it is reached again.
    Described(Box<facts::EngineFacts>),
    /// The engine cannot be reached; what is known stays in force.
    Away(String),
    Back,
}

/// Where an engine tells of its containers.
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

    /// Waits for room. A listener that is gone is no loss.
    pub async fn send(&self, event: EngineEvent) {
        let _ = self.to.send((self.from, event)).await;
    }

    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.to.is_closed()
    }
}
