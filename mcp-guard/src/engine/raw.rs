//! A question or a request to the engine whose answer is kept as it came.
//!
//! bollard's types have no place for what only Podman says (`HostConfig.Cgroups`), and one closed enum
//! that is new takes the whole answer with it. A diagnosis must live with both.

use std::time::Duration;

use mcp_guard_core::escape::escape;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

use super::Error;

/// Of Docker's API: 1.40 is the first in which an update of a limit works.
const DOCKER: &str = "/v1.40";
/// Podman's own, beside Docker's: 4.0 is older than what any supported system has.
const LIBPOD: &str = "/v4.0.0/libpod";
const PATIENCE: Duration = Duration::from_secs(5);
/// An update starts the runtime, which takes its time on a busy host.
const PATIENCE_FOR_CHANGES: Duration = Duration::from_secs(30);
/// Bytes of an answer; an inspect of a container with a thousand labels is a tenth of it.
const MAX_ANSWER: u64 = 4 << 20;
/// Characters of what it says of an error.
const MAX_MESSAGE: usize = 512;

/// The JSON at a path of Docker's API; None where the engine says 404. `path` is not escaped.
pub async fn get(socket: &str, path: &str) -> Result<Option<Value>, Error> {
    read(request(socket, &format!("GET {DOCKER}{path}"), None).await?, socket)
}

/// The same of Podman's own API.
pub async fn get_of_podman(socket: &str, path: &str) -> Result<Option<Value>, Error> {
    read(request(socket, &format!("GET {LIBPOD}{path}"), None).await?, socket)
}

/// A change through Docker's API; an error unless the engine says that it is made.
pub async fn post(socket: &str, path: &str, body: &Value) -> Result<(), Error> {
    made(request(socket, &format!("POST {DOCKER}{path}"), Some(body)).await?, socket)
}

/// The same through Podman's own API.
pub async fn post_to_podman(socket: &str, path: &str, body: &Value) -> Result<(), Error> {
    made(request(socket, &format!("POST {LIBPOD}{path}"), Some(body)).await?, socket)
}

/// What an engine answered.
#[derive(Debug)]
struct Answer {
    status: String,
    body: Vec<u8>,
}

/// `line`: method and path.
async fn request(socket: &str, line: &str, body: Option<&Value>) -> Result<Answer, Error> {
    let failed = |why: String| failed(socket, why);
    let patience = if body.is_some() { PATIENCE_FOR_CHANGES } else { PATIENCE };
    let answer = tokio::time::timeout(patience, ask(socket, line, body)).await;
    let answer = answer.map_err(|_| failed(format!("no answer within {patience:?}")))?;
    let answer = answer.map_err(|error| failed(error.to_string()))?;
    parse(&answer).ok_or_else(|| failed("an answer that is no HTTP".to_owned()))
}

fn failed(socket: &str, why: String) -> Error {
    Error::Raw { socket: socket.to_owned(), why }
}

/// HTTP/1.0: the answer ends with the connection, and is never chunked.
async fn ask(socket: &str, line: &str, body: Option<&Value>) -> std::io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket).await?;
    let body = body.map_or_else(String::new, Value::to_string);
    let length = body.len();
    let request = format!(
        "{line} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
    Ok(answer)
}

fn parse(answer: &[u8]) -> Option<Answer> {
    const BREAK: &[u8] = b"\r\n\r\n";
    let end = answer.windows(BREAK.len()).position(|window| window == BREAK)?;
    let (head, body) = answer.split_at(end);
    let head = String::from_utf8_lossy(head);
    let status = head.split(' ').nth(1).unwrap_or_default();
    Some(Answer { status: status.to_owned(), body: body[BREAK.len()..].to_vec() })
}

fn read(answer: Answer, socket: &str) -> Result<Option<Value>, Error> {
    match answer.status.as_str() {
        "200" => serde_json::from_slice(&answer.body)
            .map(Some)
            .map_err(|error| failed(socket, format!("an answer that is no JSON: {error}"))),
        "404" => Ok(None),
        _ => Err(failed(socket, answer.refusal())),
    }
}

fn made(answer: Answer, socket: &str) -> Result<(), Error> {
    match answer.status.as_str() {
        "200" | "201" | "204" => Ok(()),
        _ => Err(failed(socket, answer.refusal())),
    }
}

impl Answer {
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
        let answer = parse(answer).ok_or("no HTTP")?;
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
        let post = |answer: &[u8]| made(parse(answer).unwrap(), "s").map_err(|e| e.to_string());
        assert_eq!(post(b"HTTP/1.0 200 OK\r\n\r\n{\"Warnings\":null}"), Ok(()));
        assert_eq!(post(b"HTTP/1.0 201 Created\r\n\r\nabc\n"), Ok(()));
        let refused = post(b"HTTP/1.0 409 Oh\r\n\r\n{\"message\":\"not \x1b now\"}");
        assert!(refused.is_err());
        let refused = post(b"HTTP/1.0 409 Oh\r\n\r\n{\"message\":\"not now\"}").unwrap_err();
        assert!(refused.contains("status 409: not now"), "{refused}");
    }
}
