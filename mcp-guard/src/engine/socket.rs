//! An engine that serves Docker's API at a socket.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures_util::{FutureExt as _, future::BoxFuture};
use mcp_guard_core::{
    container::is_container_id,
    diagnose::facts::{self, Unreadable},
    target::Candidate,
};
use serde_json::Value;

use super::{
    Answer, Changes, Container, Details, Engine, Error, Listed,
    flavour::{self, Flavour},
};

/// Each request connects again, so that the engine may come and go.
pub struct Socket {
    path: String,
    timeout: Duration,
    /// Which engine it is, as it last said. None before its first word.
    flavour: Mutex<Option<&'static dyn Flavour>>,
}

impl Socket {
    #[must_use]
    pub fn new(path: &str, timeout: Duration) -> Self {
        Self { path: path.to_owned(), timeout, flavour: Mutex::new(None) }
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// For one answer.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    fn known(&self) -> Option<&'static dyn Flavour> {
        *self.flavour.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the engine which it is, unless it has said so before.
    pub(super) async fn flavour(&self) -> Result<&'static dyn Flavour, Error> {
        match self.known() {
            Some(known) => Ok(known),
            None => Ok(self.remember(&self.get("/version").await?.unwrap_or_default())),
        }
    }

    pub(super) fn remember(&self, version: &Value) -> &'static dyn Flavour {
        let found = flavour::of(version);
        *self.flavour.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
        found
    }
}

/// The path of a container in the API, by its id and nothing else.
pub(super) fn container(id: &str) -> Result<String, Error> {
    if !is_container_id(id) {
        return Err(Error::BadId(id.to_owned()));
    }
    Ok(format!("/containers/{id}"))
}

impl Engine for Socket {
    fn socket(&self) -> &str {
        &self.path
    }

    fn name(&self) -> String {
        let name = self.known().map_or("the engine", |flavour| flavour.name());
        format!("{name} at {}", self.path)
    }

    fn candidates(&self) -> Answer<'_, Vec<Candidate>> {
        self.names().boxed()
    }

    fn containers(&self) -> Answer<'_, Vec<Listed>> {
        self.lines().boxed()
    }

    fn inspect<'a>(&'a self, id: &'a str) -> Answer<'a, Option<Container>> {
        self.running_container(id).boxed()
    }

    fn details<'a>(&'a self, id: &'a str) -> Answer<'a, Option<Details>> {
        self.all_of(id).boxed()
    }

    fn execs<'a>(&'a self, details: &'a Details) -> BoxFuture<'a, (Vec<u32>, Option<Unreadable>)> {
        self.running_execs(details).boxed()
    }

    fn describe(&self) -> Answer<'_, facts::Engine> {
        self.itself().boxed()
    }

    fn update_limit<'a>(&'a self, id: &'a str, limit: u64) -> Answer<'a, ()> {
        async move {
            let container = container(id)?;
            self.flavour().await?.update_limit(self, &container, limit).await
        }
        .boxed()
    }

    fn stop<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        async move { self.post(&format!("{}/stop", container(id)?), None).await }.boxed()
    }

    fn watch(&self, changes: Changes, again: Duration) -> BoxFuture<'_, ()> {
        self.follow(changes, again).boxed()
    }
}
