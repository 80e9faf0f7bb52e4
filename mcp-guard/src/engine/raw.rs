//! A question to the engine whose answer is kept as it came.
//!
//! bollard's types have no place for what only Podman says (`HostConfig.Cgroups`), and one closed enum
//! that is new takes the whole answer with it. A diagnosis must live with both.

use std::time::Duration;

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

use super::Error;

/// Of the API: 1.40 is the first in which an update of a limit works.
const VERSION: &str = "v1.40";
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of an answer; an inspect of a container with a thousand labels is a tenth of it.
const MAX_ANSWER: u64 = 4 << 20;

/// The JSON at a path of the API; None where the engine says 404. `path` is not escaped.
pub async fn get(socket: &str, path: &str) -> Result<Option<Value>, Error> {
    let failed = |why: String| Error::Raw { socket: socket.to_owned(), why };
    let answer = tokio::time::timeout(PATIENCE, ask(socket, path)).await;
    let answer = answer.map_err(|_| failed(format!("no answer within {PATIENCE:?}")))?;
    let answer = answer.map_err(|error| failed(error.to_string()))?;
    parse(&answer).map_err(failed)
}

/// HTTP/1.0: the answer ends with the connection, and is never chunked.
async fn ask(socket: &str, path: &str) -> std::io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket).await?;
    let request = format!("GET /{VERSION}{path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
    Ok(answer)
}

fn parse(answer: &[u8]) -> Result<Option<Value>, String> {
    const BREAK: &[u8] = b"\r\n\r\n";
    let end = answer.windows(BREAK.len()).position(|window| window == BREAK);
    let (head, body) = answer.split_at(end.ok_or("an answer that is no HTTP")?);
    let head = String::from_utf8_lossy(head);
    let status = head.split(' ').nth(1).unwrap_or_default();
    match status {
        "200" => serde_json::from_slice(&body[BREAK.len()..])
            .map(Some)
            .map_err(|error| format!("an answer that is no JSON: {error}")),
        "404" => Ok(None),
        _ => Err(format!("status {}", status.escape_default())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_json_or_says_why_not() {
        let ok = b"HTTP/1.0 200 OK\r\nA: b\r\n\r\n{\"a\":null}";
        assert_eq!(parse(ok).unwrap().unwrap()["a"], Value::Null);
        assert_eq!(parse(b"HTTP/1.0 404 Not Found\r\n\r\n{}"), Ok(None));
        for bad in [
            &b""[..],
            b"HTTP/1.0 200 OK\r\n\r\n{",
            b"HTTP/1.0 500 Oh\r\n\r\n{}",
            b"\r\n\r\n",
            b"\xff\xfe\r\n\r\n{}",
        ] {
            assert!(parse(bad).is_err());
        }
    }
}
