//! Events that engines send to the agent.

use std::{pin::Pin, time::Duration};

use mcp_guard_core::diagnose::facts;
use tokio::{
    sync::{mpsc, watch},
    time::{Sleep, sleep},
};

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

/// When all containers are asked about again: after an interval, or because somebody asks for it.
#[derive(Clone, Debug)]
pub struct Rounds {
    interval: Duration,
    asks: watch::Sender<()>,
    asked: watch::Receiver<()>,
}

impl Default for Rounds {
    fn default() -> Self {
        let (asks, asked) = watch::channel(());
        Self { interval: Duration::MAX, asks, asked }
    }
}

impl Rounds {
    /// Returns rounds with this interval, that can be asked for together with these.
    #[must_use]
    pub fn every(&self, interval: Duration) -> Self {
        Self { interval, ..self.clone() }
    }

    pub fn ask(&self) {
        self.asks.send_replace(());
    }

    /// Returns the end of an interval that begins now.
    #[must_use]
    pub fn interval(&self) -> Pin<Box<Sleep>> {
        Box::pin(sleep(self.interval))
    }

    /// Waits for the end of the interval, or until somebody asks. An earlier question counts too.
    pub async fn due(&mut self, end: &mut Pin<Box<Sleep>>) {
        tokio::select! {
            () = end => {}
            // The sender is a part of this value.
            _ = self.asked.changed() => {}
        }
    }
}
