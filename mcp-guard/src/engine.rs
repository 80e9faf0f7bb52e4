//! Container engines behind one trait: they list containers, report changes and carry out orders.
//!
//! Docker, and Podman through its implementation of Docker's API, are both a `socket`. It uses
//! bollard if bollard's types suffice, and plain HTTP otherwise. An engine's answers are only
//! hints: a container's cgroup is found through its first process and compared with the container's
//! id. Only ids of 64 hex digits are ever sent, because bollard does not escape names.

mod client;
mod container;
mod details;
mod docker;
mod error;
mod events;
mod flavour;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod list;
mod podman;
mod raw;
mod socket;
mod speaker;
mod watch;

use futures_util::{FutureExt as _, future, future::BoxFuture};
use mcp_guard_core::{
    diagnose::facts::{self, Unreadable},
    id::Pid,
    target::Candidate,
};

pub use self::{
    container::{Container, Details, Listed, MAX_FILES, StdinConfig},
    error::Error,
    events::{EngineEvent, EngineEvents, EngineId, Rounds},
    list::{Candidates, Engines, LAST_WORD, Paused},
    speaker::Speaker,
};

/// The engine's socket unless the operator names another.
pub const DEFAULT_SOCKET: &str = "/var/run/docker.sock";
/// The time limit for an engine's answer unless the operator sets another.
pub const DEFAULT_TIMEOUT: &str = "10s";

/// An engine's answer, as a future.
pub type EngineAnswer<'a, T> = BoxFuture<'a, Result<T, Error>>;

/// A container engine. It may be down when mcp-guard starts, and come up later.
///
/// An engine that can only list names implements `socket`, `name` and `candidates` alone.
pub trait Engine: Send + Sync {
    /// The path of its socket, which identifies the engine in saved files.
    fn socket(&self) -> &str;

    /// Its name in messages: `Docker at /var/run/docker.sock`.
    fn name(&self) -> String;

    /// Returns whose engine it is. See [`Speaker::may_speak_for`].
    ///
    /// # Errors
    /// If that is not known. Then nothing that it says about a container counts.
    fn speaker(&self) -> EngineAnswer<'_, Speaker> {
        cannot(self.name(), "say whose it is")
    }

    /// Lists every container, running or not.
    ///
    /// # Errors
    /// If the engine does not answer.
    fn candidates(&self) -> EngineAnswer<'_, Vec<Candidate>>;

    /// Lists every container, running or not, with its image, compose project and writable volumes.
    ///
    /// # Errors
    /// If the engine does not answer.
    fn containers(&self) -> EngineAnswer<'_, Vec<Listed>> {
        cannot(self.name(), "describe its containers")
    }

    /// Returns the ids of all paused containers.
    ///
    /// # Errors
    /// If the engine does not answer.
    fn paused(&self) -> EngineAnswer<'_, Vec<String>> {
        cannot(self.name(), "describe its containers")
    }

    /// Describes a container. `None` if it does not run.
    ///
    /// # Errors
    /// If the engine does not answer, or knows no such container.
    fn inspect<'a>(&'a self, _id: &'a str) -> EngineAnswer<'a, Option<Container>> {
        cannot(self.name(), "describe its containers")
    }

    /// Describes everything about a container that a diagnosis needs. `None` if it is gone.
    ///
    /// # Errors
    /// If the engine does not answer.
    fn details<'a>(&'a self, _id: &'a str) -> EngineAnswer<'a, Option<Details>> {
        cannot(self.name(), "describe its containers")
    }

    /// Returns the host pids of running `docker exec` calls. If not all could be asked about, it
    /// also returns why.
    fn execs<'a>(&'a self, _details: &'a Details) -> BoxFuture<'a, (Vec<Pid>, Option<Unreadable>)> {
        future::ready((Vec::new(), None)).boxed()
    }

    /// Describes the engine itself.
    ///
    /// # Errors
    /// If it does not answer.
    fn describe(&self) -> EngineAnswer<'_, facts::EngineFacts> {
        cannot(self.name(), "describe itself")
    }

    /// Stores a container's limit and applies it.
    ///
    /// # Errors
    /// If the engine does not answer, or refuses.
    fn update_limit<'a>(&'a self, _id: &'a str, _limit: u64) -> EngineAnswer<'a, ()> {
        cannot(self.name(), "change a limit")
    }

    /// Stops a container as the engine's own `stop` does: it sends the stop signal, waits, then
    /// kills.
    ///
    /// # Errors
    /// If the engine refuses, or does not answer in time. It may still stop the container later.
    fn stop<'a>(&'a self, _id: &'a str) -> EngineAnswer<'a, ()> {
        cannot(self.name(), "stop a container")
    }

    /// Reports every running container, then changes, until the receiver is dropped. All containers
    /// are asked about again each time this interval has passed since the last answer.
    fn watch(&self, _events: EngineEvents, _rounds: Rounds) -> BoxFuture<'_, ()> {
        future::ready(()).boxed()
    }
}

fn cannot<'a, T: Send + 'a>(engine: String, what: &'static str) -> EngineAnswer<'a, T> {
    future::ready(Err(Error::Cannot { engine, what })).boxed()
}

#[cfg(test)]
mod tests;
