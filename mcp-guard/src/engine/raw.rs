//! Requests over plain HTTP, whose answers are kept as they come.
//!
//! bollard's types have no place for what only Podman says (`HostConfig.Cgroups`), and one closed enum
//! that is new takes the whole answer with it. A diagnosis must live with both.

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

/// A change may take this many times the timeout: an update starts the runtime, and a stop waits for the
/// container.
const CHANGE: u32 = 3;
/// Bytes of an answer about one thing; an inspect of a container with a thousand labels is a fortieth.
const MAX_ANSWER: u64 = 16 << 20;
/// The same of a list.
const MAX_LIST: u64 = 64 << 20;
/// Characters of what it says of an error.
const MAX_MESSAGE: usize = 512;

/// The API of an engine at a socket. Paths are not escaped, and have no version of Docker's API: Docker 29 refuses those before 1.44, an
/// older one knows none after its own, and without one the newest that the engine speaks is meant.
pub struct Api {
    path: String,
    timeout: Duration,
    /// What its engine calls itself, once that is known.
    engine: Mutex<Option<&'static str>>,
}

impl Api {
    #[must_use]
    pub fn new(path: &str, timeout: Duration) -> Self {
        Self { path: path.to_owned(), timeout, engine: Mutex::new(None) }
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// For one answer.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// For messages.
    #[must_use]
    pub fn name(&self) -> String {
        let engine = *self.engine.lock().unwrap_or_else(PoisonError::into_inner);
        format!("{} at {}", engine.unwrap_or("the engine"), self.path)
    }

    pub fn is_served_by(&self, engine: &'static str) {
        *self.engine.lock().unwrap_or_else(PoisonError::into_inner) = Some(engine);
    }

    /// The JSON at a path; None where the engine says 404.
    pub(super) async fn get(&self, path: &str) -> Result<Option<Value>, Error> {
        read(self.request(&format!("GET {path}"), None, MAX_ANSWER).await?, &self.name())
    }

    /// The JSON list at a path, of which only what `T` names is kept.
    pub(super) async fn list<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, Error> {
        let found = read(self.request(&format!("GET {path}"), None, MAX_LIST).await?, &self.name());
        Ok(found?.unwrap_or_default())
    }

    /// A change; an error unless the engine says that it is made.
    pub(super) async fn post(&self, path: &str, body: Option<&Value>) -> Result<(), Error> {
        made(&self.request(&format!("POST {path}"), body, MAX_ANSWER).await?, &self.name())
    }

    /// `line`: method and path. `most`: bytes of the answer.
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
        let answer = answer.map_err(|_| failed(format!("no answer within {patience:?}")))?;
        let answer = answer.map_err(|error| failed(error.to_string()))?;
        if u64::try_from(answer.len()).is_ok_and(|length| length > most) {
            return Err(failed(format!("an answer larger than {most} bytes")));
        }
        parse(answer).ok_or_else(|| failed("an answer that is no HTTP".to_owned()))
    }
}

/// The path of a container in the API, by its id and nothing else.
pub(super) fn container(id: &str) -> Result<String, Error> {
    if !is_container_id(id) {
        return Err(Error::BadId(id.to_owned()));
    }
    Ok(format!("/containers/{id}"))
}

/// What an engine answered.
#[derive(Debug)]
struct HttpAnswer {
    status: String,
    body: Vec<u8>,
}

fn failed(engine: &str, why: String) -> Error {
    Error::Raw { engine: engine.to_owned(), why }
}

/// HTTP/1.0: the answer ends with the connection, and is never chunked.
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

fn parse(mut answer: Vec<u8>) -> Option<HttpAnswer> {
    const BREAK: &[u8] = b"\r\n\r\n";
    let end = answer.windows(BREAK.len()).position(|window| window == BREAK)?;
    let body = answer.split_off(end + BREAK.len());
    let head = String::from_utf8_lossy(&answer);
    let status = head.split(' ').nth(1).unwrap_or_default();
    Some(HttpAnswer { status: status.to_owned(), body })
}

fn read<T: DeserializeOwned>(answer: HttpAnswer, engine: &str) -> Result<Option<T>, Error> {
    match answer.status.as_str() {
        "200" => serde_json::from_slice(&answer.body)
            .map(Some)
            .map_err(|error| failed(engine, not_json(&error))),
        "404" => Ok(None),
        _ => Err(failed(engine, answer.refusal())),
    }
}

/// The error's own words may quote what it found.
fn not_json(error: &serde_json::Error) -> String {
    let what = if error.is_data() { "is not what was asked for" } else { "is no JSON" };
    format!("an answer that {what}: {}", escape(error.to_string().as_bytes(), MAX_MESSAGE))
}

fn made(answer: &HttpAnswer, engine: &str) -> Result<(), Error> {
    match answer.status.as_str() {
        // 304: it was so before.
        "200" | "201" | "204" | "304" => Ok(()),
        _ => Err(failed(engine, answer.refusal())),
    }
}

impl HttpAnswer {
    /// Status, and what the engine says of it.
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
        let answer = parse(answer.to_vec()).ok_or("no HTTP")?;
        read(answer, "s").map_err(|error| error.to_string())
    }

    #[test]
    fn an_answer_is_json_or_says_why_not() {
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
    fn a_change_is_made_or_the_engine_says_why_not() {
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
