//! The CLI's end of the socket. It blocks, one call for one answer, but for a recording.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

use super::wire::{
    CallMessage, GetStatus, INTERFACE, MAX_MESSAGE, Method, NO_SUCH_METHOD, RecordTrace, Reply,
    Status, TracePart,
};

/// Largest answer, in bytes: only root can answer, and the state of a thousand guards must fit.
const MAX_ANSWER: u64 = 1 << 30;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No agent listens.
    #[error("no agent answers at {0}")]
    NoAgent(String),
    #[error("the agent answers root only; run the command with sudo")]
    NotRoot,
    #[error("the agent did not answer within {0:?}; see `systemctl status mcp-guard` and its log")]
    Late(Duration),
    #[error(
        "the agent ended the connection without an answer: it has just ended, or it is of an older \
         version and answers no process outside its pid namespace, such as that of a container; try \
         again on the host itself"
    )]
    Cut,
    #[error("cannot talk to the agent: {0}")]
    Io(#[from] io::Error),
    #[error(
        "the agent is of an older version, and does not know this call; restart it with `systemctl \
         restart mcp-guard`, which ends all freezes and clamps"
    )]
    Older,
    #[error("the agent refused the call: {0}")]
    Refused(String),
}

/// Asks the agent for its status.
///
/// # Errors
/// No agent listens, or it refuses.
pub fn status(path: &Path) -> Result<Status, Error> {
    call(path, &GetStatus {})
}

/// Calls a method of the agent.
///
/// # Errors
/// No agent listens, or it refuses.
pub fn call<M: Method>(path: &Path, parameters: &M) -> Result<M::Reply, Error> {
    let mut stream = UnixStream::connect(path).map_err(|error| unconnected(path, error))?;
    stream.set_read_timeout(Some(M::PATIENCE))?;
    let message = message(parameters, None)?;
    let failed = |error: io::Error| match error.raw_os_error() {
        Some(libc::EAGAIN) => Error::Late(M::PATIENCE),
        Some(libc::EPIPE | libc::ECONNRESET) => Error::Cut,
        Some(_) | None => Error::Io(error),
    };
    stream.write_all(&message).map_err(failed)?;
    let mut answer = Vec::new();
    let read = BufReader::new(stream).take(MAX_ANSWER).read_until(0, &mut answer);
    read.map_err(failed)?;
    answer.pop_if(|last| *last == 0).ok_or(Error::Cut)?;
    let reply: Reply = serde_json::from_slice(&answer).map_err(io::Error::from)?;
    answered::<M>(reply)
}

fn unconnected(path: &Path, error: io::Error) -> Error {
    if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) {
        return Error::NoAgent(path.display().to_string());
    }
    let is_root = error.kind() != io::ErrorKind::PermissionDenied;
    if is_root { Error::Io(error) } else { Error::NotRoot }
}

fn message<M: Method>(parameters: &M, more: Option<bool>) -> io::Result<Vec<u8>> {
    let method = format!("{INTERFACE}.{}", M::NAME);
    let parameters = serde_json::to_value(parameters)?;
    let mut message = serde_json::to_vec(&CallMessage { method, parameters, more })?;
    message.push(0);
    Ok(message)
}

fn answered<M: Method>(reply: Reply) -> Result<M::Reply, Error> {
    match reply.error {
        None => Ok(serde_json::from_value(reply.parameters).map_err(io::Error::from)?),
        Some(error) if error == NO_SUCH_METHOD => Err(Error::Older),
        Some(error) => {
            let reason = reply.parameters["reason"].as_str().map(str::to_owned);
            Err(Error::Refused(reason.unwrap_or(error)))
        }
    }
}

/// A recording under way. The agent ends it when this is dropped.
pub struct TraceParts {
    stream: tokio::net::UnixStream,
    received: Vec<u8>,
    is_over: bool,
}

impl TraceParts {
    /// Begins a recording. Returns the first lines with it.
    ///
    /// # Errors
    /// No agent listens, or it refuses.
    pub async fn begin(path: &Path, asked: &RecordTrace) -> Result<(String, Self), Error> {
        let stream = tokio::net::UnixStream::connect(path).await;
        let stream = stream.map_err(|error| unconnected(path, error))?;
        let mut parts = Self { stream, received: Vec::new(), is_over: false };
        parts.stream.write_all(&message(asked, Some(true))?).await?;
        let first = timeout(RecordTrace::PATIENCE, parts.next())
            .await
            .map_err(|_| Error::Late(RecordTrace::PATIENCE))??;
        Ok((first.ok_or(Error::Cut)?, parts))
    }

    /// Returns the next lines, or `None` behind the last ones. If it is not waited for, nothing is lost.
    ///
    /// # Errors
    /// The agent has ended the connection, or refuses.
    pub async fn next(&mut self) -> Result<Option<String>, Error> {
        if self.is_over {
            return Ok(None);
        }
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == 0) {
                let mut answer: Vec<u8> = self.received.drain(..=end).collect();
                answer.pop();
                let reply: Reply = serde_json::from_slice(&answer).map_err(io::Error::from)?;
                self.is_over = reply.continues != Some(true);
                let TracePart { lines } = answered::<RecordTrace>(reply)?;
                return Ok(Some(lines));
            }
            if self.received.len() > MAX_MESSAGE {
                return Err(Error::Io(io::Error::other("a part of the trace is too long")));
            }
            if self.stream.read_buf(&mut self.received).await? == 0 {
                return Err(Error::Cut);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixListener, thread};

    use super::{super::wire::GetServers, *};

    #[test]
    fn a_call_that_an_older_agent_does_not_know_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let older = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            BufReader::new(&stream).read_until(0, &mut Vec::new()).unwrap();
            let reply = Reply {
                error: Some(NO_SUCH_METHOD.to_owned()),
                parameters: serde_json::json!({ "method": "io.mcpguard.Servers" }),
                continues: None,
            };
            let mut bytes = serde_json::to_vec(&reply).unwrap();
            bytes.push(0);
            stream.write_all(&bytes).unwrap();
        });
        let answer = call(&path, &GetServers { cgroup_id: None, identity: None });
        older.join().unwrap();
        let said = answer.unwrap_err().to_string();
        assert!(said.contains("older version") && said.contains("systemctl restart mcp-guard"));
    }
}
