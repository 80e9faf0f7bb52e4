//! The agent's end of the socket.

use std::{
    fs, io,
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::Path,
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc, oneshot},
    time::sleep,
};

use super::{
    request::{Asked, read},
    wire::{Call, MAX_MESSAGE, Reply, failed},
};

/// Most connections served at once. Further ones wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 16;
/// Pause after a connection that could not be accepted.
const PAUSE: Duration = Duration::from_millis(100);

/// A call, and the channel for its reply.
pub struct Waiting {
    pub call: Call,
    pub reply: oneshot::Sender<Reply>,
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
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
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
    // The file's mode keeps other users out. This check also covers a descriptor that was passed on.
    if stream.peer_cred()?.uid() != 0 {
        return Err(io::Error::other("the peer is not root"));
    }
    let mut received = Vec::new();
    loop {
        while let Some(end) = received.iter().position(|byte| *byte == 0) {
            let message: Vec<u8> = received.drain(..=end).collect();
            let reply = answer(&message[..end], &calls).await;
            let mut bytes = serde_json::to_vec(&reply).map_err(io::Error::other)?;
            bytes.push(0);
            stream.write_all(&bytes).await?;
        }
        if received.len() > MAX_MESSAGE {
            return Err(io::Error::other("message too long"));
        }
        if stream.read_buf(&mut received).await? == 0 {
            return Ok(());
        }
    }
}

async fn answer(message: &[u8], calls: &mpsc::Sender<Waiting>) -> Reply {
    let call = match read(message) {
        Asked::Reply(reply) => return reply,
        Asked::Call(call) => call,
    };
    let (reply, answer) = oneshot::channel();
    if calls.send(Waiting { call, reply }).await.is_err() {
        return failed("the agent is stopping");
    }
    let gone = "the target is gone or the agent is stopping, and the outcome is not known";
    answer.await.unwrap_or_else(|_| failed(gone))
}
