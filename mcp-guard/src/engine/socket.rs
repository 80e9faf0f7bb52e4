//! An engine that serves Docker's API at a socket.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures_util::{FutureExt as _, future::BoxFuture};
use mcp_guard_core::{
    diagnose::facts::{self, Unreadable},
    id::Pid,
    target::Candidate,
};
use serde_json::Value;

use super::{
    Engine, EngineAnswer,
    container::{Container, Details, Listed},
    docker::Docker,
    error::Error,
    events::{EngineEvents, Rounds},
    flavour::Flavour,
    podman::Podman,
    raw::{Api, container},
    speaker::Speaker,
};

/// An engine at a socket. Each request connects again, so the engine may stop and come back.
pub struct Socket {
    pub(super) api: Api,
    /// The kind of engine, by its latest answer. `None` before the first.
    flavour: Mutex<Option<&'static dyn Flavour>>,
}

impl Socket {
    #[must_use]
    pub fn new(path: &str, timeout: Duration) -> Self {
        Self { api: Api::new(path, timeout), flavour: Mutex::new(None) }
    }

    fn known(&self) -> Option<&'static dyn Flavour> {
        *self.flavour.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the engine which kind it is, unless that is known.
    pub(super) async fn flavour(&self) -> Result<&'static dyn Flavour, Error> {
        match self.known() {
            Some(known) => Ok(known),
            None => Ok(self.remember(&self.api.get("/version").await?.unwrap_or_default())),
        }
    }

    /// Stores which kind of engine it is, from its answer to `/version`.
    pub(super) fn remember(&self, version: &Value) -> &'static dyn Flavour {
        let components = version["Components"].as_array();
        let is_podman = components.into_iter().flatten().any(|one| one["Name"] == "Podman Engine");
        let found: &dyn Flavour = if is_podman { &Podman } else { &Docker };
        self.api.is_served_by(found.name());
        *self.flavour.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
        found
    }
}

impl Engine for Socket {
    fn socket(&self) -> &str {
        self.api.path()
    }

    fn name(&self) -> String {
        self.api.name()
    }

    fn speaker(&self) -> EngineAnswer<'_, Speaker> {
        let away =
            |source: std::io::Error| Error::Away { engine: self.name(), source: source.into() };
        async move { Speaker::at(self.api.path()).await.map_err(away) }.boxed()
    }

    fn candidates(&self) -> EngineAnswer<'_, Vec<Candidate>> {
        self.names().boxed()
    }

    fn containers(&self) -> EngineAnswer<'_, Vec<Listed>> {
        self.lines().boxed()
    }

    fn paused(&self) -> EngineAnswer<'_, Vec<String>> {
        self.all_paused().boxed()
    }

    fn inspect<'a>(&'a self, id: &'a str) -> EngineAnswer<'a, Option<Container>> {
        self.running_container(id).boxed()
    }

    fn details<'a>(&'a self, id: &'a str) -> EngineAnswer<'a, Option<Details>> {
        self.all_of(id).boxed()
    }

    fn execs<'a>(&'a self, details: &'a Details) -> BoxFuture<'a, (Vec<Pid>, Option<Unreadable>)> {
        self.running_execs(details).boxed()
    }

    fn describe(&self) -> EngineAnswer<'_, facts::EngineFacts> {
        self.itself().boxed()
    }

    fn update_limit<'a>(&'a self, id: &'a str, limit: u64) -> EngineAnswer<'a, ()> {
        async move {
            let container = container(id)?;
            self.flavour().await?.update_limit(&self.api, &container, limit).await
        }
        .boxed()
    }

    fn stop<'a>(&'a self, id: &'a str) -> EngineAnswer<'a, ()> {
        async move { self.api.post(&format!("{}/stop", container(id)?), None).await }.boxed()
    }

    fn watch(&self, events: EngineEvents, rounds: Rounds) -> BoxFuture<'_, ()> {
        self.follow(events, rounds).boxed()
    }
}
