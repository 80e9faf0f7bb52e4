//! The CLI's end of the socket. It blocks: one call, one answer.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use super::wire::{CallMessage, GetStatus, INTERFACE, Method, NO_SUCH_METHOD, Reply, Status};

/// Longest wait for an answer. The agent confirms a freeze, or fails, in less.
const ANSWER: Duration = Duration::from_secs(15);
/// Largest answer, in bytes: only root can answer, and the state of a thousand guards must fit.
const MAX_ANSWER: u64 = 1 << 30;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No agent listens.
    #[error("no agent answers at {0}")]
    NoAgent(String),
    #[error("the agent answers root only; run the command with sudo")]
    NotRoot,
    #[error(
        "the agent did not answer within {ANSWER:?}; see `systemctl status mcp-guard` and its log"
    )]
    Late,
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
    let mut stream = UnixStream::connect(path).map_err(|error| {
        if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) {
            return Error::NoAgent(path.display().to_string());
        }
        let is_root = error.kind() != io::ErrorKind::PermissionDenied;
        if is_root { Error::Io(error) } else { Error::NotRoot }
    })?;
    stream.set_read_timeout(Some(ANSWER))?;
    let method = format!("{INTERFACE}.{}", M::NAME);
    let parameters = serde_json::to_value(parameters).map_err(io::Error::from)?;
    let mut message =
        serde_json::to_vec(&CallMessage { method, parameters }).map_err(io::Error::from)?;
    message.push(0);
    let failed = |error: io::Error| match error.raw_os_error() {
        Some(libc::EAGAIN) => Error::Late,
        Some(libc::EPIPE | libc::ECONNRESET) => Error::Cut,
        Some(_) | None => Error::Io(error),
    };
    stream.write_all(&message).map_err(failed)?;
    let mut answer = Vec::new();
    let read = BufReader::new(stream).take(MAX_ANSWER).read_until(0, &mut answer);
    read.map_err(failed)?;
    answer.pop_if(|last| *last == 0).ok_or(Error::Cut)?;
    let reply: Reply = serde_json::from_slice(&answer).map_err(io::Error::from)?;
    match reply.error {
        None => Ok(serde_json::from_value(reply.parameters).map_err(io::Error::from)?),
        Some(error) if error == NO_SUCH_METHOD => Err(Error::Older),
        Some(error) => {
            let reason = reply.parameters["reason"].as_str().map(str::to_owned);
            Err(Error::Refused(reason.unwrap_or(error)))
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
