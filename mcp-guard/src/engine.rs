//! Container engines: Docker, and Podman's service of Docker's API, through bollard.
//!
//! What an engine says is a hint: a container's cgroup is found from its first process and compared
//! with the id. Only ids of 64 hex digits are ever sent to it, because bollard does not escape names.

mod details;
mod raw;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bollard::{
    API_DEFAULT_VERSION, Docker,
    models::{ContainerInspectResponse, EventMessage},
    query_parameters::{
        EventsOptionsBuilder, InspectContainerOptions, ListContainersOptionsBuilder,
    },
};
use futures_util::StreamExt as _;
use mcp_guard_core::{container::is_container_id, diagnose::facts, target::Candidate};
use serde_json::json;
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior},
};

pub use details::{Details, Listed, MAX_FILES};

/// Where Docker listens unless the operator says otherwise.
pub const DEFAULT_SOCKET: &str = "/var/run/docker.sock";
/// Seconds for an answer to begin.
const ANSWER: u64 = 10;
/// The same for it to end, which bollard leaves open.
const WHOLE_ANSWER: Duration = Duration::from_secs(20);
/// Between attempts to reach an engine that is away.
const RETRY: Duration = Duration::from_secs(2);
/// Characters of a name that is kept, see `docker run --name`.
const MAX_NAME: usize = 255;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("Docker at {socket} does not answer: {source}; is it running, and is --docker right?")]
    Away { socket: String, source: bollard::errors::Error },
    #[error("Docker: {0}")]
    Refused(#[from] bollard::errors::Error),
    #[error("Docker at {socket} did not answer within {WHOLE_ANSWER:?}")]
    Late { socket: String },
    #[error("Docker gives no container id for {0:?}")]
    BadId(String),
    #[error("the engine at {socket}: {why}")]
    Raw { socket: String, why: String },
}

/// A running container.
#[derive(Clone, Debug)]
pub struct Container {
    pub id: String,
    pub name: String,
    pub image: String,
    pub labels: BTreeMap<String, String>,
    /// Its first process, as the host numbers it.
    pub init: u32,
    pub paused: bool,
    /// `HostConfig.PidsLimit` where it is a limit.
    pub limit: Option<u64>,
}

/// A change the agent must know of.
#[derive(Clone, Debug)]
pub enum Change {
    Up(Container),
    Paused {
        id: String,
        paused: bool,
    },
    /// The engine itself, whenever it is reached anew.
    Described(Box<facts::Engine>),
    /// The engine cannot be reached; what is known stays in force.
    Away(String),
    Back,
}

/// One engine, by its socket. Each request connects anew, so that it may come and go.
#[derive(Clone)]
pub struct Engine {
    socket: String,
}

impl Engine {
    #[must_use]
    pub fn new(socket: &str) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> String {
        self.socket.clone()
    }

    fn connect(&self) -> Result<Docker, Error> {
        Docker::connect_with_unix(&self.socket, ANSWER, API_DEFAULT_VERSION)
            .map_err(|source| self.away(source))
    }

    fn away(&self, source: bollard::errors::Error) -> Error {
        Error::Away { socket: self.socket.clone(), source }
    }

    /// Every container, running or not; those that run, while another is in a state that only Podman
    /// has ("stopped": ended and not cleaned up), which bollard's closed enums do not know.
    ///
    /// # Errors
    /// The engine does not answer.
    pub async fn candidates(&self) -> Result<Vec<Candidate>, Error> {
        match self.list(ListContainersOptionsBuilder::default().all(true)).await {
            Err(Error::Away { source: bollard::errors::Error::JsonDataError { .. }, .. }) => {
                self.running().await
            }
            other => other,
        }
    }

    /// Every container that runs or is paused.
    async fn running(&self) -> Result<Vec<Candidate>, Error> {
        let filters = HashMap::from([("status", vec!["running", "paused"])]);
        self.list(ListContainersOptionsBuilder::default().filters(&filters)).await
    }

    async fn list(&self, options: ListContainersOptionsBuilder) -> Result<Vec<Candidate>, Error> {
        let docker = self.connect()?;
        let found = self.whole(docker.list_containers(Some(options.build()))).await?;
        let found = found.map_err(|source| self.away(source))?;
        let candidate = |one: bollard::models::ContainerSummary| {
            let name = one.names.unwrap_or_default().into_iter().next().unwrap_or_default();
            Some(Candidate { id: one.id?, name: plain_name(&name) })
        };
        Ok(found.into_iter().filter_map(candidate).collect())
    }

    async fn whole<T>(&self, answer: impl Future<Output = T>) -> Result<T, Error> {
        let answer = tokio::time::timeout(WHOLE_ANSWER, answer).await;
        answer.map_err(|_| Error::Late { socket: self.socket.clone() })
    }

    /// None where it does not run.
    ///
    /// # Errors
    /// The engine does not answer or knows no such container.
    pub async fn inspect(&self, id: &str) -> Result<Option<Container>, Error> {
        if !is_container_id(id) {
            return Err(Error::BadId(id.to_owned()));
        }
        let docker = self.connect()?;
        let asked = docker.inspect_container(id, None::<InspectContainerOptions>);
        Ok(running(id, self.whole(asked).await??))
    }

    /// Writes a limit: Docker stores it, tells systemd, and writes pids.max.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub async fn update_limit(&self, id: &str, limit: u64) -> Result<(), Error> {
        raw::post(&self.socket, &update_path(id)?, &json!({ "PidsLimit": limit })).await
    }

    /// The same in Podman, whose service of Docker's API would reset the restart policy.
    ///
    /// # Errors
    /// As for [`Engine::update_limit`].
    pub async fn update_limit_of_podman(&self, id: &str, limit: u64) -> Result<(), Error> {
        let body = json!({ "pids": { "limit": limit } });
        raw::post_to_podman(&self.socket, &update_path(id)?, &body).await
    }

    /// Tells of every running container, then of changes, for as long as anybody listens. After an
    /// error it begins again with all of them: no event is needed to be right. `again`: after this
    /// time a container is asked about once more for which there was no answer.
    pub async fn watch(self, changes: mpsc::Sender<Change>, again: Duration) {
        let mut away = false;
        while !changes.is_closed() {
            match self.follow(&changes, &mut away, again).await {
                Ok(()) => tracing::debug!("Docker ended its event stream"),
                Err(error) if !away => {
                    away = true;
                    let _ = changes.send(Change::Away(error.to_string())).await;
                }
                Err(_) => {}
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn follow(
        &self,
        changes: &mpsc::Sender<Change>,
        away: &mut bool,
        again: Duration,
    ) -> Result<(), Error> {
        // Closed enums in bollard: an event of another type would end the stream. Beginning before
        // the list is read, so that a container which starts in between is in one of the two.
        let filters = HashMap::from([("type", vec!["container"])]);
        let since = seconds_since_1970().saturating_sub(1).to_string();
        let options = EventsOptionsBuilder::default().filters(&filters).since(&since).build();
        let docker = self.connect()?;
        let mut unanswered = BTreeSet::new();
        for candidate in self.running().await? {
            self.tell(candidate.id, changes, &mut unanswered).await;
        }
        if std::mem::take(away) {
            let _ = changes.send(Change::Back).await;
        }
        if let Ok(described) = self.describe().await {
            let _ = changes.send(Change::Described(Box::new(described))).await;
        }
        let mut events = docker.events(Some(options));
        let mut again = tokio::time::interval_at(Instant::now() + again, again);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(event) => self.heed(event?, changes, &mut unanswered).await,
                    None => return Ok(()),
                },
                _ = again.tick(), if !unanswered.is_empty() => {
                    for id in std::mem::take(&mut unanswered) {
                        self.tell(id, changes, &mut unanswered).await;
                    }
                }
            }
        }
    }

    async fn heed(
        &self,
        event: EventMessage,
        changes: &mpsc::Sender<Change>,
        unanswered: &mut BTreeSet<String>,
    ) {
        let Some(id) = event.actor.and_then(|actor| actor.id).filter(|id| is_container_id(id))
        else {
            return;
        };
        match event.action.as_deref() {
            Some("start" | "update") => self.tell(id, changes, unanswered).await,
            Some(action @ ("pause" | "unpause")) => {
                let paused = action == "pause";
                let _ = changes.send(Change::Paused { id, paused }).await;
            }
            _ => {}
        }
    }

    /// `unanswered` gets the container if there is no answer about it.
    async fn tell(
        &self,
        id: String,
        changes: &mpsc::Sender<Change>,
        unanswered: &mut BTreeSet<String>,
    ) {
        match self.inspect(&id).await {
            Ok(Some(container)) => {
                let _ = changes.send(Change::Up(container)).await;
            }
            Ok(None) => {}
            // Gone between the list and the question.
            Err(Error::Refused(bollard::errors::Error::DockerResponseServerError {
                status_code: 404,
                ..
            })) => {}
            Err(error) => {
                tracing::warn!(id, %error, "container not inspected, so not guarded yet");
                unanswered.insert(id);
            }
        }
    }
}

fn update_path(id: &str) -> Result<String, Error> {
    if !is_container_id(id) {
        return Err(Error::BadId(id.to_owned()));
    }
    Ok(format!("/containers/{id}/update"))
}

fn running(id: &str, found: ContainerInspectResponse) -> Option<Container> {
    let state = found.state?;
    let init = u32::try_from(state.pid?).ok().filter(|pid| *pid > 0)?;
    let config = found.config.unwrap_or_default();
    let labels = config.labels.unwrap_or_default();
    let limit = found.host_config.and_then(|host| host.pids_limit);
    Some(Container {
        id: id.to_owned(),
        name: plain_name(&found.name.unwrap_or_default()),
        image: config.image.unwrap_or_default().chars().take(MAX_NAME).collect(),
        labels: labels.into_iter().collect(),
        init,
        paused: state.paused.unwrap_or(false),
        limit: limit.and_then(|limit| u64::try_from(limit).ok()).filter(|limit| *limit > 0),
    })
}

/// The engine's clock is the host's.
fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Docker puts a slash before names.
fn plain_name(name: &str) -> String {
    name.trim_start_matches('/').chars().take(MAX_NAME).collect()
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
