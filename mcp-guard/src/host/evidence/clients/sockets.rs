//! The connections that a process of an engine has accepted.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsRawFd as _, OwnedFd},
};

use mcp_guard_core::{
    evidence::{Channel, PollFlags},
    id::Pid,
};
use rustix::{
    fs::fstat,
    net::{
        AddressFamily, SocketAddrAny, SocketFlags, SocketType, getsockname, socket_with, sockopt,
    },
    process::{PidfdGetfdFlags, pidfd_getfd},
};

use super::super::flags;
use crate::host::process::{self, OpenProcess};

/// A connection that was accepted.
pub struct Accepted {
    /// The process that connected. `None` if that is not known, as of a connection over the network.
    pub by: Option<Pid>,
    pub flags: PollFlags,
}

struct EngineSocket {
    is_listening: bool,
    local: LocalEnd,
    accepted: Accepted,
}

/// The address of a socket of the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
enum LocalEnd {
    Unix(SocketAddrAny),
    Tcp {
        port: u16,
        /// The cookie of its network namespace (`SO_NETNS_COOKIE`). `None` before Linux 5.14.
        netns: Option<u64>,
    },
    /// A socket of another family.
    Other,
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
    Ok(accepted_of(all, own_netns()?))
}

/// Returns those sockets that were accepted, as far as that can be told.
fn accepted_of(all: Vec<EngineSocket>, home: Option<u64>) -> Vec<Accepted> {
    let (listening, rest): (Vec<_>, Vec<_>) = all.into_iter().partition(|one| one.is_listening);
    // The engine listens in the network namespaces of containers, too, for their DNS. A process that connects there is no client.
    let listening: Vec<_> = listening
        .into_iter()
        .map(|one| one.local)
        .filter(|local| !matches!(local, LocalEnd::Tcp { netns, .. } if *netns != home))
        .collect();
    let is_accepted =
        |one: &EngineSocket| one.local == LocalEnd::Other || listening.contains(&one.local);
    rest.into_iter().filter(is_accepted).map(|one| one.accepted).collect()
}

/// Returns the cookie of our network namespace. It is that of the engine: [`super::dockerd::find`] finds its socket
/// there.
fn own_netns() -> io::Result<Option<u64>> {
    netns(&socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
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
    let address = getsockname(&duplicate)?;
    let (local, by) = if family == AddressFamily::UNIX {
        (LocalEnd::Unix(address), connected_by(&duplicate)?)
    } else if let Ok(address) = SocketAddr::try_from(address) {
        (LocalEnd::Tcp { port: address.port(), netns: netns(&duplicate)? }, None)
    } else {
        (LocalEnd::Other, None)
    };
    Ok(Some(EngineSocket {
        is_listening: sockopt::socket_acceptconn(&duplicate)?,
        local,
        accepted: Accepted { by, flags: flags(&duplicate)? },
    }))
}

/// Returns the cookie of a socket's network namespace. `None` if this kernel does not have it.
#[expect(unsafe_code, reason = "rustix lacks this option")]
fn netns(socket: &OwnedFd) -> io::Result<Option<u64>> {
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of_val(&cookie)).map_err(io::Error::other)?;
    let to = (&raw mut cookie).cast();
    let (level, option) = (libc::SOL_SOCKET, libc::SO_NETNS_COOKIE);
    // SAFETY: `to` and `length` describe an integer that lives during the call.
    let failed =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, to, &raw mut length) };
    if failed == 0 {
        return Ok(Some(cookie));
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(None),
        error => Err(error),
    }
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
        net::{Shutdown, TcpListener, TcpStream},
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

    /// Makes a socket whose flags are its number.
    fn tcp(number: u16, is_listening: bool, port: u16, netns: Option<u64>) -> EngineSocket {
        EngineSocket {
            is_listening,
            local: LocalEnd::Tcp { port, netns },
            accepted: Accepted { by: None, flags: PollFlags(number) },
        }
    }

    #[test]
    fn a_connection_over_tcp_counts_if_it_came_in_where_the_engine_itself_listens() {
        for (what, netns, dns) in [("with cookies", Some(1), Some(2)), ("without", None, None)] {
            let sockets = vec![
                tcp(1, true, 2375, netns),
                tcp(2, false, 2375, netns),
                // It goes to a registry or a log server.
                tcp(3, false, 50000, netns),
                // The DNS of a container, which listens at any port.
                tcp(4, true, 40000, dns),
                tcp(5, false, 40000, dns),
                tcp(6, true, 2375, dns),
                tcp(7, false, 2375, dns),
                EngineSocket { local: LocalEnd::Other, ..tcp(8, false, 0, None) },
            ];
            let found = accepted_of(sockets, netns);
            let numbers: Vec<_> = found.iter().map(|one| one.flags.0).collect();
            // Where the namespaces cannot be told apart, too many connections count, and not too few.
            let expected = if dns.is_some() { &[2, 8][..] } else { &[2, 5, 7, 8] };
            assert_eq!(numbers, expected, "{what}");
        }
    }

    #[test]
    fn an_outgoing_connection_over_tcp_is_left_out() {
        let (engine, server) = (
            TcpListener::bind(("127.0.0.1", 0)).unwrap(),
            TcpListener::bind(("127.0.0.1", 0)).unwrap(),
        );
        let _client = TcpStream::connect(engine.local_addr().unwrap()).unwrap();
        let accepted_one = engine.accept().unwrap().0;
        let outgoing = TcpStream::connect(server.local_addr().unwrap()).unwrap();
        let me = process::this();
        let process = OpenProcess::open(me).unwrap();
        let fds = [engine.as_raw_fd(), accepted_one.as_raw_fd(), outgoing.as_raw_fd()];
        let fds = fds.map(|fd| u32::try_from(fd).unwrap());
        assert_eq!(accepted(&process, me, &fds).unwrap().len(), 1);
        assert_eq!(accepted(&process, me, &fds[..2]).unwrap().len(), 1);
        assert_eq!(accepted(&process, me, &fds[1..]).unwrap().len(), 0);
    }
}
