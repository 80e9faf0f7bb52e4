//! Container engines: Docker, and Podman's service of Docker's API, through bollard.
//!
//! What an engine says is a hint: a container's cgroup is found from its first process and compared
//! with the id. Only ids of 64 hex digits are ever sent to it, because bollard does not escape names.

mod details;
mod raw;
mod watch;

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use bollard::{
    API_DEFAULT_VERSION, Docker,
    models::ContainerInspectResponse,
    query_parameters::{InspectContainerOptions, ListContainersOptionsBuilder},
};
use mcp_guard_core::{container::is_container_id, diagnose::facts, target::Candidate};
use serde_json::json;

pub use details::{Details, Listed, MAX_FILES};

/// Where Docker listens unless the operator says otherwise.
pub const DEFAULT_SOCKET: &str = "/var/run/docker.sock";
/// Seconds for an answer to begin.
const ANSWER: u64 = 10;
/// The same for it to end, which bollard leaves open.
const WHOLE_ANSWER: Duration = Duration::from_secs(20);
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

/// Docker puts a slash before names.
fn plain_name(name: &str) -> String {
    name.trim_start_matches('/').chars().take(MAX_NAME).collect()
}

#[cfg(test)]
mod tests;
