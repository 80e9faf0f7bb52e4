//! The agent's end of the socket.

use std::{fs, io, os::unix::ffi::OsStrExt as _, path::Path, sync::Arc, time::Duration};

use rustix::{fs::Mode, process::umask};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc, oneshot},
    time::{sleep, timeout},
};

use super::{
    peer,
    request::{Asked, read},
    wire::{Call, MAX_MESSAGE, Reply, TracePart, failed},
};

/// Most connections served at once. Further ones wait in the kernel's queue.
pub const MAX_CONNECTIONS: usize = 16;
/// Longest time for one message to arrive, or for one reply to be taken. A client waits longer for its
/// answer, so it gets a place in time even if others keep theirs and say nothing.
const IDLE: Duration = Duration::from_secs(5);
/// Longest time for one part of a trace to be taken. What does not fit into the queue meanwhile is left out.
const PART_TAKEN: Duration = Duration::from_secs(60);
/// Most parts of a trace that wait to be sent.
const PARTS: usize = 32;
/// Pause after a connection that could not be accepted.
const PAUSE: Duration = Duration::from_millis(100);

/// A call, and the channel for its reply.
pub struct Waiting {
    pub call: Call,
    pub reply: oneshot::Sender<Reply>,
    /// Takes the parts of a trace after the first, which is the reply. Only for [`Call::Record`].
    pub parts: Option<mpsc::Sender<String>>,
}

/// The answer to one message: a reply, and the parts of a trace that follow it.
struct AnswerInParts {
    reply: Reply,
    parts: Option<mpsc::Receiver<String>>,
}

impl From<Reply> for AnswerInParts {
    fn from(reply: Reply) -> Self {
        Self { reply, parts: None }
    }
}

/// Listens on a socket of mode 0600. An existing socket file is removed: it belongs to an agent that is
/// gone, because the caller holds the lock.
///
/// # Errors
/// The socket cannot be created.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    if path.as_os_str().as_bytes().len() > 107 {
        return Err(io::Error::other(
            "the path is longer than the 107 bytes that a socket allows (unix(7))",
        ));
    }
    // A change of mode after the bind would leave it open to others for a moment.
    let usual = umask(Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    umask(usual);
    listener
}

/// Serves clients until the loop takes no more calls.
pub async fn serve(listener: UnixListener, calls: mpsc::Sender<Waiting>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    while !calls.is_closed() {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let calls = calls.clone();
                tokio::spawn(async move {
                    if let Err(error) = converse(stream, calls).await {
                        tracing::debug!(%error, "control connection failed");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a control connection");
                // Without a free descriptor, accept(2) fails again and again without waiting.
                sleep(PAUSE).await;
            }
        }
    }
}

async fn converse(mut stream: UnixStream, calls: mpsc::Sender<Waiting>) -> io::Result<()> {
    let stranger = peer::check(&stream).err();
    let mut received = Vec::new();
    while let Some(message) = timeout(IDLE, next_message(&mut stream, &mut received)).await?? {
        let AnswerInParts { reply, parts } = match &stranger {
            Some(stranger) => failed(&stranger.to_string()).into(),
            None => answer(&message, &calls).await,
        };
        send(&mut stream, &reply, IDLE).await?;
        if let Some(parts) = parts {
            send_parts(&mut stream, &mut received, parts).await?;
        }
        if let Some(stranger) = stranger {
            return Err(io::Error::other(stranger));
        }
    }
    Ok(())
}

/// Reads one message. `None` if the client has ended the connection.
async fn next_message(
    stream: &mut UnixStream,
    received: &mut Vec<u8>,
) -> io::Result<Option<Vec<u8>>> {
    loop {
        if let Some(end) = received.iter().position(|byte| *byte == 0) {
            let mut message: Vec<u8> = received.drain(..=end).collect();
            message.pop();
            return Ok(Some(message));
        }
        if received.len() > MAX_MESSAGE {
            return Err(io::Error::other("message too long"));
        }
        if stream.read_buf(received).await? == 0 {
            return Ok(None);
        }
    }
}

async fn send(stream: &mut UnixStream, reply: &Reply, longest: Duration) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(reply).map_err(io::Error::other)?;
    bytes.push(0);
    timeout(longest, stream.write_all(&bytes)).await?
}

/// Sends the parts of a trace until the last one, or until the client ends the connection or says anything else.
async fn send_parts(
    stream: &mut UnixStream,
    received: &mut Vec<u8>,
    mut parts: mpsc::Receiver<String>,
) -> io::Result<()> {
    loop {
        let part = tokio::select! {
            part = parts.recv() => part,
            next = next_message(stream, received) => {
                next?;
                return Err(io::Error::other("the recording was ended by its client"));
            }
        };
        let continues = Some(part.is_some());
        let lines = part.unwrap_or_default();
        let parameters = serde_json::to_value(TracePart { lines }).map_err(io::Error::other)?;
        send(stream, &Reply { error: None, parameters, continues }, PART_TAKEN).await?;
        if continues == Some(false) {
            return Ok(());
        }
    }
}

async fn answer(message: &[u8], calls: &mpsc::Sender<Waiting>) -> AnswerInParts {
    let call = match read(message) {
        Asked::Reply(reply) => return reply.into(),
        Asked::Call(call) => call,
    };
    let (reply, answer) = oneshot::channel();
    let (parts, rest) = match &call {
        Call::Record(_) => Some(mpsc::channel(PARTS)).unzip(),
        Call::Status
        | Call::Servers(_)
        | Call::ReloadPolicy
        | Call::PolicyInForce
        | Call::Freeze { .. }
        | Call::Thaw { .. }
        | Call::Kill { .. }
        | Call::Suspend(_)
        | Call::Resume(_)
        | Call::Reap(_)
        | Call::Panic => (None, None),
    };
    if calls.send(Waiting { call, reply, parts }).await.is_err() {
        return failed("the agent is stopping").into();
    }
    let gone = "the target is gone or the agent is stopping, and the outcome is not known";
    let reply = answer.await.unwrap_or_else(|_| failed(gone));
    let parts = rest.filter(|_| reply.continues == Some(true));
    AnswerInParts { reply, parts }
}
