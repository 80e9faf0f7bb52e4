//! Container engines: a list of sources of names, events and orders behind one trait.
//!
//! Docker, and Podman's service of Docker's API, are one `socket`: bollard where its types suffice,
//! else plain HTTP. What an engine says is a hint: a container's cgroup is found from its first process
//! and compared with the id. Only ids of 64 hex digits are ever sent, because bollard does not escape
//! names.

mod client;
mod container;
mod details;
mod docker;
mod error;
mod events;
mod flavour;
mod list;
mod podman;
mod raw;
mod socket;
mod watch;

use std::time::Duration;

use futures_util::{FutureExt as _, future, future::BoxFuture};
use mcp_guard_core::{
    diagnose::facts::{self, Unreadable},
    id::Pid,
    target::Candidate,
};

pub use self::{
    container::{Container, Details, Listed, MAX_FILES},
    error::Error,
    events::{EngineEvent, EngineEvents, EngineId},
    list::{Candidates, Engines, LAST_WORD},
};

/// Where Docker listens unless the operator says otherwise.
pub const DEFAULT_SOCKET: &str = "/var/run/docker.sock";
/// How long an engine may take to answer unless the operator says otherwise.
pub const DEFAULT_TIMEOUT: &str = "10s";

/// What an engine answers, sooner or later.
pub type EngineAnswer<'a, T> = BoxFuture<'a, Result<T, Error>>;

/// A container engine. It may be down at the start and come later.
///
/// An engine that can do no more than list names implements the first three.
pub trait Engine: Send + Sync {
    /// Where it listens, which identifies it in saved files.
    fn socket(&self) -> &str;

    /// As messages name it: `Docker at /var/run/docker.sock`.
    fn name(&self) -> String;

    /// Every container, running or not.
    ///
    /// # Errors
    /// The engine does not answer.
    fn candidates(&self) -> EngineAnswer<'_, Vec<Candidate>>;

    /// Every container, running or not, with what its neighbours are judged by.
    ///
    /// # Errors
    /// The engine does not answer.
    fn containers(&self) -> EngineAnswer<'_, Vec<Listed>> {
        cannot(self.name(), "describe its containers")
    }

    /// A container; None where it does not run.
    ///
    /// # Errors
    /// The engine does not answer, or knows no such container.
    fn inspect<'a>(&'a self, _id: &'a str) -> EngineAnswer<'a, Option<Container>> {
        cannot(self.name(), "describe its containers")
    }

    /// All that a diagnosis asks about a container; None where it is gone.
    ///
    /// # Errors
    /// The engine does not answer.
    fn details<'a>(&'a self, _id: &'a str) -> EngineAnswer<'a, Option<Details>> {
        cannot(self.name(), "describe its containers")
    }

    /// Host pids of the `docker exec` calls that run; those found before it took too long.
    fn execs<'a>(&'a self, _details: &'a Details) -> BoxFuture<'a, (Vec<Pid>, Option<Unreadable>)> {
        future::ready((Vec::new(), None)).boxed()
    }

    /// The engine itself.
    ///
    /// # Errors
    /// It does not answer.
    fn describe(&self) -> EngineAnswer<'_, facts::EngineFacts> {
        cannot(self.name(), "describe itself")
    }

    /// Stores a limit of a container and puts it in force.
    ///
    /// # Errors
    /// The engine does not answer, or refuses.
    fn update_limit<'a>(&'a self, _id: &'a str, _limit: u64) -> EngineAnswer<'a, ()> {
        cannot(self.name(), "change a limit")
    }

    /// Stops a container, as the engine's own `stop` does: its signal, then its patience, then a kill.
    ///
    /// # Errors
    /// The engine refuses, or does not answer. It may still stop a container that takes its time.
    fn stop<'a>(&'a self, _id: &'a str) -> EngineAnswer<'a, ()> {
        cannot(self.name(), "stop a container")
    }

    /// Tells of every running container, then of changes, until nobody listens. Every container is
    /// asked about again this time after the last answer.
    fn watch(&self, _events: EngineEvents, _again: Duration) -> BoxFuture<'_, ()> {
        future::ready(()).boxed()
    }
}

fn cannot<'a, T: Send + 'a>(engine: String, what: &'static str) -> EngineAnswer<'a, T> {
    future::ready(Err(Error::Cannot { engine, what })).boxed()
}

#[cfg(test)]
mod tests;
