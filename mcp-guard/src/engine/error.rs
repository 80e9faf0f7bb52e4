use std::time::Duration;

use bollard::errors::Error as Bollard;

/// Why an engine gave no answer. `engine` is its name in messages.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{engine} does not answer: {source}; is it running, and is --docker right?")]
    Away { engine: String, source: Bollard },
    #[error("{engine}: {source}")]
    Refused { engine: String, source: Bollard },
    #[error("{engine} did not answer within {within:?}")]
    Late { engine: String, within: Duration },
    /// A change that the engine was asked for, and may still make.
    #[error("{engine}: no answer within {within:?}")]
    Unanswered { engine: String, within: Duration },
    #[error("{engine}: {why}")]
    Raw { engine: String, why: String },
    #[error("{engine} cannot {what}")]
    Cannot { engine: String, what: &'static str },
    #[error("{0:?} is not a container id")]
    BadId(String),
    #[error("no container engine is configured")]
    NoEngine,
}

impl Error {
    /// Whether the engine was asked for a change that it may still make.
    #[must_use]
    pub fn is_unanswered_change(&self) -> bool {
        matches!(self, Self::Unanswered { .. })
    }

    /// Whether the engine answered that it has no container with that id.
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
