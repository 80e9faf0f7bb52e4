//! Docker's API through bollard: lists containers, and describes one.

use std::collections::HashMap;

use bollard::{
    API_DEFAULT_VERSION, Docker,
    errors::Error as Bollard,
    models::ContainerInspectResponse,
    query_parameters::{InspectContainerOptions, ListContainersOptionsBuilder},
};
use mcp_guard_core::{container::is_container_id, id::Pid, target::Candidate};

use super::{
    Engine as _,
    container::{Container, MAX_NAME, StdinConfig},
    error::Error,
    socket::Socket,
};

/// A whole answer may take this many times the timeout, because bollard limits only the time until
/// it begins.
const WHOLE_ANSWER: u32 = 2;

impl Socket {
    pub(super) fn connect(&self) -> Result<Docker, Error> {
        // bollard applies this to the beginning of an answer, in whole seconds.
        let timeout = self.api.timeout();
        let seconds = timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0);
        Docker::connect_with_unix(self.api.path(), seconds, API_DEFAULT_VERSION)
            .map_err(|source| self.away(source))
    }

    fn away(&self, source: Bollard) -> Error {
        Error::Away { engine: self.name(), source }
    }

    pub(super) fn refused(&self, source: Bollard) -> Error {
        Error::Refused { engine: self.name(), source }
    }

    /// Lists every container, running or not. It lists only those that run while any container is
    /// in a state that bollard's closed enums do not know: only Podman has "stopped" (ended and not
    /// cleaned up).
    pub(super) async fn names(&self) -> Result<Vec<Candidate>, Error> {
        match self.list_names(ListContainersOptionsBuilder::default().all(true)).await {
            Err(Error::Away { source: Bollard::JsonDataError { .. }, .. }) => self.running().await,
            other => other,
        }
    }

    /// Lists every container that runs or is paused.
    pub(super) async fn running(&self) -> Result<Vec<Candidate>, Error> {
        let filters = HashMap::from([("status", vec!["running", "paused"])]);
        self.list_names(ListContainersOptionsBuilder::default().filters(&filters)).await
    }

    async fn list_names(
        &self,
        options: ListContainersOptionsBuilder,
    ) -> Result<Vec<Candidate>, Error> {
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
        let within = WHOLE_ANSWER * self.api.timeout();
        let answer = tokio::time::timeout(within, answer).await;
        answer.map_err(|_| Error::Late { engine: self.name(), within })
    }

    pub(super) async fn running_container(&self, id: &str) -> Result<Option<Container>, Error> {
        if !is_container_id(id) {
            return Err(Error::BadId(id.to_owned()));
        }
        let docker = self.connect()?;
        let asked = docker.inspect_container(id, None::<InspectContainerOptions>);
        let found = self.whole(asked).await?.map_err(|source| self.refused(source))?;
        Ok(running(id, found))
    }
}

fn running(id: &str, found: ContainerInspectResponse) -> Option<Container> {
    let state = found.state?;
    let init = u32::try_from(state.pid?).ok().filter(|pid| *pid > 0).map(Pid)?;
    let config = found.config.unwrap_or_default();
    let stdin = StdinConfig {
        is_open: config.open_stdin.unwrap_or_default(),
        is_once: config.stdin_once.unwrap_or_default(),
        is_terminal: config.tty.unwrap_or_default(),
    };
    let labels = config.labels.unwrap_or_default();
    let limit = found.host_config.and_then(|host| host.pids_limit);
    Some(Container {
        id: id.to_owned(),
        name: plain_name(&found.name.unwrap_or_default()),
        image: config.image.unwrap_or_default().chars().take(MAX_NAME).collect(),
        image_id: found.image.unwrap_or_default().chars().take(MAX_NAME).collect(),
        stdin,
        labels: labels.into_iter().collect(),
        init,
        paused: state.paused.unwrap_or(false),
        limit: limit.and_then(|limit| u64::try_from(limit).ok()).filter(|limit| *limit > 0),
    })
}

/// Returns a name without the slash that Docker puts before it, and cut to the length that is kept.
fn plain_name(name: &str) -> String {
    name.trim_start_matches('/').chars().take(MAX_NAME).collect()
}
