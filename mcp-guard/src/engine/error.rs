use std::time::Duration;

use bollard::errors::Error as Bollard;

/// Why an engine's answer is not there. `engine` names it for a person.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{engine} does not answer: {source}; is it running, and is --docker right?")]
    Away { engine: String, source: Bollard },
    #[error("{engine}: {source}")]
    Refused { engine: String, source: Bollard },
    #[error("{engine} did not answer within {within:?}")]
    Late { engine: String, within: Duration },
    #[error("{engine}: {why}")]
    Raw { engine: String, why: String },
    #[error("{engine} cannot {what}")]
    Cannot { engine: String, what: &'static str },
    #[error("{0:?} is no container id")]
    BadId(String),
    #[error("there is no engine")]
    NoEngine,
}

impl Error {
    /// The engine answered that it has no container of that id.
    #[must_use]
    pub fn is_unknown_container(&self) -> bool {
        matches!(
            self,
            Self::Refused {
                source: Bollard::DockerResponseServerError { status_code: 404, .. },
                ..
            }
        )
    }
}
