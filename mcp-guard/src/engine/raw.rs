//! Requests over plain HTTP, with answers as untyped JSON.
//!
//! bollard's types lack what only Podman sends (`HostConfig.Cgroups`), and one unknown value of a
//! closed enum makes bollard reject the whole answer. A diagnosis must cope with both.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use mcp_guard_core::{container::is_container_id, escape::escape};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

use super::error::Error;

/// A change may take this many times the timeout: an update starts the runtime, and a stop waits
/// for the container.
const CHANGE: u32 = 3;
/// Most bytes of an answer about one object. The description of a container with a thousand labels
/// takes a fortieth of this.
const MAX_ANSWER: u64 = 16 << 20;
/// Most bytes of an answer that is a list.
const MAX_LIST: u64 = 64 << 20;
/// Most characters kept of an engine's error message.
const MAX_MESSAGE: usize = 512;

/// The HTTP API of an engine at a socket.
///
/// Paths are not escaped. They contain no version of Docker's API: Docker 29 rejects versions
/// before 1.44, an older Docker rejects versions after its own, and without a version the engine
/// uses its newest.
pub struct Api {
    path: String,
    timeout: Duration,
    /// The engine's name, once it is known.
    engine: Mutex<Option<&'static str>>,
}

impl Api {
    #[must_use]
    pub fn new(path: &str, timeout: Duration) -> Self {
        Self { path: path.to_owned(), timeout, engine: Mutex::new(None) }
    }

    /// The path of the socket.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The time limit for one answer.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The engine's name in messages.
    #[must_use]
    pub fn name(&self) -> String {
        let engine = *self.engine.lock().unwrap_or_else(PoisonError::into_inner);
        format!("{} at {}", engine.unwrap_or("the engine"), self.path)
    }

    pub fn is_served_by(&self, engine: &'static str) {
        *self.engine.lock().unwrap_or_else(PoisonError::into_inner) = Some(engine);
    }

    /// Gets the JSON at a path. `None` if the engine answers 404.
    pub(super) async fn get(&self, path: &str) -> Result<Option<Value>, Error> {
        read(self.request(&format!("GET {path}"), None, MAX_ANSWER).await?, &self.name())
    }

    /// Gets the JSON list at a path. Only the fields of `T` are kept.
    pub(super) async fn list<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, Error> {
        let found = read(self.request(&format!("GET {path}"), None, MAX_LIST).await?, &self.name());
        Ok(found?.unwrap_or_default())
    }

    /// Requests a change. Returns an error unless the engine confirms that it was made.
    pub(super) async fn post(&self, path: &str, body: Option<&Value>) -> Result<(), Error> {
        made(&self.request(&format!("POST {path}"), body, MAX_ANSWER).await?, &self.name())
    }

    /// Sends a request. `line` is the method and path, `most` the largest size of the answer in
    /// bytes.
    async fn request(
        &self,
        line: &str,
        body: Option<&Value>,
        most: u64,
    ) -> Result<HttpAnswer, Error> {
        let failed = |why: String| failed(&self.name(), why);
        let is_change = line.starts_with("POST ");
        let patience = if is_change { CHANGE * self.timeout() } else { self.timeout() };
        let answer = tokio::time::timeout(patience, ask(self.path(), line, body, most)).await;
        let answer = answer.map_err(|_| {
            let engine = self.name();
            match is_change {
                true => Error::Unanswered { engine, within: patience },
                false => Error::Raw { engine, why: format!("no answer within {patience:?}") },
            }
        })?;
        let answer = answer.map_err(|error| failed(error.to_string()))?;
        if u64::try_from(answer.len()).is_ok_and(|length| length > most) {
            return Err(failed(format!("the answer is larger than {most} bytes")));
        }
        parse(answer).ok_or_else(|| failed("the answer is not HTTP".to_owned()))
    }
}

/// Returns the path of a container in the API. Accepts nothing but a full id.
pub(super) fn container(id: &str) -> Result<String, Error> {
    if !is_container_id(id) {
        return Err(Error::BadId(id.to_owned()));
    }
    Ok(format!("/containers/{id}"))
}

/// An engine's answer.
#[derive(Debug)]
pub(super) struct HttpAnswer {
    status: String,
    body: Vec<u8>,
}

fn failed(engine: &str, why: String) -> Error {
    Error::Raw { engine: engine.to_owned(), why }
}

/// Sends one HTTP/1.0 request: the answer ends with the connection, and is never chunked.
async fn ask(
    socket: &str,
    line: &str,
    body: Option<&Value>,
    most: u64,
) -> std::io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket).await?;
    let body = body.map_or_else(String::new, Value::to_string);
    let length = body.len();
    let request = format!(
        "{line} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(most + 1).read_to_end(&mut answer).await?;
    Ok(answer)
}

pub(super) fn parse(mut answer: Vec<u8>) -> Option<HttpAnswer> {
    const BREAK: &[u8] = b"\r\n\r\n";
    let end = answer.windows(BREAK.len()).position(|window| window == BREAK)?;
    let body = answer.split_off(end + BREAK.len());
    let head = String::from_utf8_lossy(&answer);
    let status = head.split(' ').nth(1).unwrap_or_default();
    Some(HttpAnswer { status: status.to_owned(), body })
}

pub(super) fn read<T: DeserializeOwned>(
    answer: HttpAnswer,
    engine: &str,
) -> Result<Option<T>, Error> {
    match answer.status.as_str() {
        "200" => serde_json::from_slice(&answer.body)
            .map(Some)
            .map_err(|error| failed(engine, not_json(&error))),
        "404" => Ok(None),
        _ => Err(failed(engine, answer.refusal())),
    }
}

/// Describes an answer that cannot be parsed. The error's text is escaped, because it may quote the
/// answer.
fn not_json(error: &serde_json::Error) -> String {
    let what = if error.is_data() { "does not have the expected form" } else { "is not JSON" };
    format!("the answer {what}: {}", escape(error.to_string().as_bytes(), MAX_MESSAGE))
}

pub(super) fn made(answer: &HttpAnswer, engine: &str) -> Result<(), Error> {
    match answer.status.as_str() {
        // 304: nothing had to change.
        "200" | "201" | "204" | "304" => Ok(()),
        _ => Err(failed(engine, answer.refusal())),
    }
}

impl HttpAnswer {
    /// Returns the status and the engine's own message.
    fn refusal(&self) -> String {
        let said: Option<Value> = serde_json::from_slice(&self.body).ok();
        let message = said.as_ref().and_then(|said| said["message"].as_str()).unwrap_or_default();
        let message = escape(message.as_bytes(), MAX_MESSAGE);
        format!("status {}: {message}", escape(self.status.as_bytes(), MAX_MESSAGE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(answer: &[u8]) -> Result<Option<Value>, String> {
        let answer = parse(answer.to_vec()).ok_or("not HTTP")?;
        read(answer, "s").map_err(|error| error.to_string())
    }

    #[test]
    fn an_answer_that_is_not_json_is_an_error() {
        let ok = b"HTTP/1.0 200 OK\r\nA: b\r\n\r\n{\"a\":null}";
        assert_eq!(get(ok).unwrap().unwrap()["a"], Value::Null);
        assert_eq!(get(b"HTTP/1.0 404 Not Found\r\n\r\n{}"), Ok(None));
        for bad in [
            &b""[..],
            b"HTTP/1.0 200 OK\r\n\r\n{",
            b"HTTP/1.0 500 Oh\r\n\r\n{}",
            b"\r\n\r\n",
            b"\xff\xfe\r\n\r\n{}",
        ] {
            assert!(get(bad).is_err());
        }
    }

    #[test]
    fn the_error_of_a_refused_change_has_the_engines_reason() {
        let post =
            |answer: &[u8]| made(&parse(answer.to_vec()).unwrap(), "s").map_err(|e| e.to_string());
        assert_eq!(post(b"HTTP/1.0 200 OK\r\n\r\n{\"Warnings\":null}"), Ok(()));
        assert_eq!(post(b"HTTP/1.0 201 Created\r\n\r\nabc\n"), Ok(()));
        let refused = post(b"HTTP/1.0 409 Oh\r\n\r\n{\"message\":\"not \x1b now\"}");
        assert!(refused.is_err());
        let refused = post(b"HTTP/1.0 409 Oh\r\n\r\n{\"message\":\"not now\"}").unwrap_err();
        assert!(refused.contains("status 409: not now"), "{refused}");
    }
}
