//! The connections that a process of an engine has accepted.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use mcp_guard_core::{
    evidence::{Channel, PollFlags},
    id::Pid,
};
use rustix::{
    fs::fstat,
    net::{AddressFamily, SocketAddrAny, SocketType, getsockname, sockopt},
    process::{PidfdGetfdFlags, pidfd_getfd},
};

use super::super::flags;
use crate::host::process::{self, OpenProcess};

/// A connection that was accepted.
pub struct Accepted {
    /// Who connected. `None` if that is not known, as of a connection over the network.
    pub by: Option<Pid>,
    pub flags: PollFlags,
}

struct EngineSocket {
    is_listening: bool,
    is_unix: bool,
    address: SocketAddrAny,
    accepted: Accepted,
}

/// Returns the connections among these descriptors of a process. Those that it made itself are left out where they can
/// be told apart.
pub fn accepted(process: &OpenProcess, pid: Pid, fds: &[u32]) -> io::Result<Vec<Accepted>> {
    let pidfd = process::pidfd(pid)?;
    let mut all = Vec::new();
    for fd in fds {
        let Some(channel) = link(process, *fd)?.as_deref().and_then(Channel::parse) else {
            continue;
        };
        if matches!(channel, Channel::Socket(_)) {
            all.extend(socket(&pidfd, *fd, channel)?);
        }
    }
    let (listening, rest): (Vec<_>, Vec<_>) = all.into_iter().partition(|one| one.is_listening);
    let is_accepted = |one: &EngineSocket| {
        !one.is_unix || listening.iter().any(|listening| listening.address == one.address)
    };
    Ok(rest.into_iter().filter(is_accepted).map(|one| one.accepted).collect())
}

/// Reads what a descriptor refers to. `None` if it is closed.
pub fn link(process: &OpenProcess, fd: u32) -> io::Result<Option<String>> {
    match process.descriptor(fd) {
        Ok(link) => Ok(Some(link)),
        Err(error) if process::is_gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Describes a socket of a process. `None` if it is closed, or has no connections.
fn socket(pidfd: &OwnedFd, fd: u32, channel: Channel) -> io::Result<Option<EngineSocket>> {
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    let duplicate = match pidfd_getfd(pidfd, fd, PidfdGetfdFlags::empty()) {
        Ok(duplicate) => duplicate,
        Err(rustix::io::Errno::BADF) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if fstat(&duplicate)?.st_ino != channel.inode() {
        return Ok(None);
    }
    let family = sockopt::socket_domain(&duplicate)?;
    let kind = sockopt::socket_type(&duplicate)?;
    let is_connection = matches!(kind, SocketType::STREAM | SocketType::SEQPACKET);
    if family == AddressFamily::NETLINK || !is_connection {
        return Ok(None);
    }
    let is_unix = family == AddressFamily::UNIX;
    Ok(Some(EngineSocket {
        is_listening: sockopt::socket_acceptconn(&duplicate)?,
        is_unix,
        address: getsockname(&duplicate)?,
        accepted: Accepted {
            by: if is_unix { connected_by(&duplicate)? } else { None },
            flags: flags(&duplicate)?,
        },
    }))
}

/// Returns who connected to a Unix socket (`SO_PEERCRED` of unix(7)). `None` if that process is in no pid namespace that
/// we see.
#[expect(unsafe_code, reason = "rustix has no place for the pid 0 of such a process")]
fn connected_by(socket: &OwnedFd) -> io::Result<Option<Pid>> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = libc::socklen_t::try_from(size_of_val(&peer)).map_err(io::Error::other)?;
    let to = (&raw mut peer).cast();
    let (level, option) = (libc::SOL_SOCKET, libc::SO_PEERCRED);
    // SAFETY: `to` and `length` describe a struct of integers that lives during the call.
    let failed =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, to, &raw mut length) };
    if failed != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u32::try_from(peer.pid).ok().filter(|pid| *pid > 0).map(Pid))
}

#[cfg(test)]
mod tests {
    use std::{
        net::Shutdown,
        os::unix::net::{UnixListener, UnixStream},
    };

    use super::*;

    #[test]
    fn what_was_accepted_is_told_from_what_was_connected() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("engine.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let [open, half_closed, dead] = std::array::from_fn(|_| {
            (UnixStream::connect(&path).unwrap(), listener.accept().unwrap().0)
        });
        half_closed.0.shutdown(Shutdown::Write).unwrap();
        drop(dead.0);
        let (_pair, _other) = UnixStream::pair().unwrap();
        let me = process::this();
        let process = OpenProcess::open(me).unwrap();
        let fds = [
            &listener.as_raw_fd(),
            &open.0.as_raw_fd(),
            &open.1.as_raw_fd(),
            &half_closed.1.as_raw_fd(),
            &dead.1.as_raw_fd(),
            &_pair.as_raw_fd(),
        ];
        let fds = fds.map(|fd| u32::try_from(*fd).unwrap());
        let found = accepted(&process, me, &fds).unwrap();
        assert!(found.iter().all(|one| one.by == Some(me)));
        let flags: Vec<_> = found.iter().map(|one| one.flags.0).collect();
        assert_eq!(flags, [0x4, 0x2005, 0x2015]);
    }
}
