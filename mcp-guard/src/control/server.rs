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

/// Connections served at once; further ones wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 16;
/// After a connection that could not be taken.
const REFUSED: Duration = Duration::from_millis(100);

/// A call and where its reply goes.
pub struct Waiting {
    pub call: Call,
    pub reply: oneshot::Sender<Reply>,
}

/// Listens with mode 0600. A socket file that is there belongs to an agent that is gone: the caller
/// holds the lock.
///
/// # Errors
/// The socket cannot be made.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    if path.as_os_str().as_bytes().len() > 107 {
        return Err(io::Error::other("the path of a socket has at most 107 bytes (unix(7))"));
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves for as long as the loop takes calls.
pub async fn serve(listener: UnixListener, calls: mpsc::Sender<Waiting>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    while !calls.is_closed() {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let calls = calls.clone();
                tokio::spawn(async move {
                    if let Err(error) = converse(stream, calls).await {
                        tracing::debug!(%error, "control connection");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "control socket");
                // Without a free descriptor it says so at once, again and again.
                sleep(REFUSED).await;
            }
        }
    }
}

async fn converse(mut stream: UnixStream, calls: mpsc::Sender<Waiting>) -> io::Result<()> {
    // The file's mode keeps others out; this also covers a descriptor that was passed on.
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
    let gone = "the target went away before an answer came, or the agent is stopping";
    answer.await.unwrap_or_else(|_| failed(gone))
}
