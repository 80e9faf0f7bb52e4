//! Only root of this host may ask the agent. The mode of the socket keeps other users out; this check
//! also covers a descriptor that was passed on, and root of a container that sees the socket.

use std::io;

use rustix::fs::stat;
use tokio::net::UnixStream;

/// # Errors
/// The peer is another user, is in another pid namespace, or has ended.
pub fn check(stream: &UnixStream) -> io::Result<()> {
    let peer = stream.peer_cred()?;
    if peer.uid() != 0 {
        return Err(io::Error::other("the peer is not root"));
    }
    // No pid: it is not even in a namespace below ours.
    let pid = peer.pid().filter(|pid| *pid > 0).ok_or_else(elsewhere)?;
    let (ours, its) = (stat("/proc/self/ns/pid")?, stat(format!("/proc/{pid}/ns/pid"))?);
    if (ours.st_dev, ours.st_ino) == (its.st_dev, its.st_ino) { Ok(()) } else { Err(elsewhere()) }
}

fn elsewhere() -> io::Error {
    io::Error::other("the peer is in a container")
}
