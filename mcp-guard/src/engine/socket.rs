//! An engine that serves Docker's API at a socket.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::Path,
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
use tokio::net::UnixStream;

use super::{
    Engine, EngineAnswer,
    container::{Container, Details, Listed},
    docker::Docker,
    error::Error,
    events::EngineEvents,
    flavour::Flavour,
    podman::Podman,
    raw::{Api, container},
};

/// An engine at a socket. Each request connects again, so the engine may stop and come back.
pub struct Socket {
    pub(super) api: Api,
    /// The kind of engine, by its latest answer. `None` before the first.
    flavour: Mutex<Option<&'static dyn Flavour>>,
    owner: Mutex<Option<u32>>,
}

impl Socket {
    #[must_use]
    pub fn new(path: &str, timeout: Duration) -> Self {
        Self { api: Api::new(path, timeout), flavour: Mutex::new(None), owner: Mutex::new(None) }
    }

    /// Finds out whose engine it is.
    ///
    /// # Errors
    /// If nobody listens.
    pub(super) async fn find_owner(&self) -> Result<(), Error> {
        let found = owner(self.api.path())
            .await
            .map_err(|source| Error::Away { engine: self.name(), source: source.into() })?;
        *self.owner.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
        Ok(())
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

    fn owner(&self) -> Option<u32> {
        *self.owner.lock().unwrap_or_else(PoisonError::into_inner)
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

    fn watch(&self, events: EngineEvents, again: Duration) -> BoxFuture<'_, ()> {
        self.follow(events, again).boxed()
    }
}

/// Returns the user who serves a socket, or who could put another one there: the owner of its folder,
/// or of the folder that it is linked to.
async fn owner(path: &str) -> io::Result<u32> {
    let served_by = UnixStream::connect(path).await?.peer_cred()?.uid();
    let folder = |path: &Path| fs::metadata(path.parent().unwrap_or(path)).map(|meta| meta.uid());
    let path = Path::new(path);
    let owners = [served_by, folder(path)?, folder(&fs::canonicalize(path)?)?];
    Ok(owners.into_iter().find(|uid| *uid != 0).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};

    use tokio::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn an_engine_is_that_of_its_server_or_of_the_owner_of_a_folder() {
        let me = rustix::process::geteuid().as_raw();
        let (place, users) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let path = |folder: &Path, name| folder.join(name).to_str().unwrap().to_owned();
        let real = path(place.path(), "docker.sock");
        assert!(owner(&real).await.is_err());
        let _listener = UnixListener::bind(&real).unwrap();
        assert_eq!(owner(&real).await.unwrap(), me);
        let linked = path(users.path(), "docker.sock");
        symlink(&real, &linked).unwrap();
        assert_eq!(owner(&linked).await.unwrap(), me);
        if me == 0 {
            chown(users.path(), Some(1000), None).unwrap();
            assert_eq!(owner(&linked).await.unwrap(), 1000, "this user could link to another");
            chown(users.path(), Some(0), None).unwrap();
            chown(place.path(), Some(1001), None).unwrap();
            assert_eq!(owner(&linked).await.unwrap(), 1001, "this user could replace it");
        }
    }
}
