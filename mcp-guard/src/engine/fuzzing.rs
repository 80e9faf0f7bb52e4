//! Parses the answers of an engine from bytes, for the fuzz targets.

use serde_json::Value;

use super::{
    container::{Details, Listed},
    details::{ListLine, describe, details, listed},
    docker::Docker,
    error::Error,
    raw,
};

/// The engine's name in errors.
const ENGINE: &str = "Docker";

fn value<T: serde::de::DeserializeOwned>(answer: &[u8]) -> Result<Option<T>, Error> {
    let parsed = raw::parse(answer.to_vec());
    parsed.map_or(Ok(None), |answer| raw::read(answer, ENGINE))
}

/// Parses the answer about one container, and the same as a description of the engine.
///
/// # Errors
/// If it is not an answer to such a request.
pub fn answer(answer: &[u8]) -> Result<Option<Details>, Error> {
    let Some(found) = value::<Value>(answer)? else { return Ok(None) };
    describe("/var/run/docker.sock", &Docker, &found, &found);
    Ok(Some(details("", &found)))
}

/// Parses the answer that lists containers.
///
/// # Errors
/// If it is not an answer to such a request.
pub fn list(answer: &[u8]) -> Result<Vec<Listed>, Error> {
    let found: Vec<ListLine> = value(answer)?.unwrap_or_default();
    Ok(found.into_iter().filter_map(listed).collect())
}

/// Parses the answer to a change.
///
/// # Errors
/// If the engine did not confirm the change.
pub fn change(answer: &[u8]) -> Result<(), Error> {
    raw::parse(answer.to_vec()).map_or(Ok(()), |answer| raw::made(&answer, ENGINE))
}
