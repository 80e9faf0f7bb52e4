//! The CLI's end of the socket. Blocking: one question, one answer.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::wire::{MAX_MESSAGE, Reply, Request};

/// Longer than the agent needs to confirm a freeze or to fail.
const ANSWER: Duration = Duration::from_secs(15);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No agent listens.
    #[error("no agent answers at {0}")]
    NoAgent(String),
    #[error("the agent's answer: {0}")]
    Io(#[from] io::Error),
    #[error("the agent refused the call: {0}")]
    Refused(String),
}

/// # Errors
/// No agent listens, or it refuses.
pub fn call<T: DeserializeOwned>(path: &Path, method: &str, parameters: Value) -> Result<T, Error> {
    let mut stream = UnixStream::connect(path).map_err(|error| {
        if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) {
            return Error::NoAgent(path.display().to_string());
        }
        Error::Io(error)
    })?;
    stream.set_read_timeout(Some(ANSWER))?;
    let method = format!("{}.{method}", super::wire::INTERFACE);
    let mut message =
        serde_json::to_vec(&Request { method, parameters }).map_err(io::Error::from)?;
    message.push(0);
    stream.write_all(&message)?;
    let mut answer = Vec::new();
    BufReader::new(stream).take(MAX_MESSAGE as u64).read_until(0, &mut answer)?;
    answer.pop_if(|last| *last == 0);
    let reply: Reply = serde_json::from_slice(&answer).map_err(io::Error::from)?;
    match reply.error {
        None => Ok(serde_json::from_value(reply.parameters).map_err(io::Error::from)?),
        Some(error) => {
            let reason = reply.parameters["reason"].as_str().map(str::to_owned);
            Err(Error::Refused(reason.unwrap_or(error)))
        }
    }
}
