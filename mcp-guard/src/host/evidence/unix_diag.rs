//! Asks the kernel about a Unix socket, see sock_diag(7). No file below `/proc` has its peer.

use std::{io, os::fd::OwnedFd};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

// From linux/netlink.h, linux/sock_diag.h and linux/unix_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const UDIAG_SHOW_NAME: u32 = 1;
const UDIAG_SHOW_PEER: u32 = 4;
const UNIX_DIAG_NAME: u16 = 0;
const UNIX_DIAG_PEER: u16 = 2;
const HEADER: usize = 16;
/// `struct unix_diag_msg`.
const MESSAGE: usize = 16;
/// `TCP_LISTEN` of include/net/tcp_states.h.
const LISTENS: u8 = 10;

/// A Unix socket, as the kernel shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnixSocket {
    pub is_listening: bool,
    /// It is for datagrams, and has an address: anybody may send to it who can reach that.
    pub is_addressed: bool,
    /// The inode. `None` if it is not connected, or its peer is gone.
    pub peer: Option<u64>,
}

/// A connection to the kernel that answers about the sockets of one network namespace: that of the
/// thread that opened it.
pub struct UnixDiag(OwnedFd);

impl UnixDiag {
    pub fn open() -> io::Result<Self> {
        let (kind, flags) = (SocketType::RAW, SocketFlags::CLOEXEC);
        Ok(Self(socket_with(AddressFamily::NETLINK, kind, flags, Some(netlink::SOCK_DIAG))?))
    }

    /// Returns the inode of the peer. `None` if there is no such socket here, or it has no peer.
    pub fn peer(&self, inode: u64) -> io::Result<Option<u64>> {
        Ok(self.socket(inode)?.and_then(|socket| socket.peer))
    }

    /// Returns a Unix socket. `None` if there is none with this inode here.
    pub fn socket(&self, inode: u64) -> io::Result<Option<UnixSocket>> {
        let Ok(inode) = u32::try_from(inode) else { return Ok(None) };
        send(&self.0, &request(inode), SendFlags::empty())?;
        let mut answer = [0; 512];
        // The kernel answers before it returns from the request.
        let (_, length) = recv(&self.0, &mut answer, RecvFlags::DONTWAIT)?;
        Ok(socket_in(answer.get(..length).unwrap_or_default(), inode))
    }
}

fn request(inode: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + 24);
    bytes.extend((HEADER as u32 + 24).to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST.to_ne_bytes());
    // Sequence number and port: there is one request at a time.
    bytes.extend([0; 8]);
    bytes.extend([u8::try_from(libc::AF_UNIX).unwrap_or_default(), 0, 0, 0]);
    // All states. A cookie of -1 stands for any.
    for word in [u32::MAX, inode, UDIAG_SHOW_NAME | UDIAG_SHOW_PEER, u32::MAX, u32::MAX] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes
}

/// Reads an answer about the socket `inode`. `None` if it is none, or is cut.
fn socket_in(answer: &[u8], inode: u32) -> Option<UnixSocket> {
    let half = |at: usize| Some(u16::from_ne_bytes(answer.get(at..at + 2)?.try_into().ok()?));
    let word = |at: usize| Some(u32::from_ne_bytes(answer.get(at..at + 4)?.try_into().ok()?));
    let is_it = half(4)? == SOCK_DIAG_BY_FAMILY && word(HEADER + 4)? == inode;
    if !is_it || answer.len() < usize::try_from(word(0)?).ok()? {
        return None;
    }
    let (kind, state) = (*answer.get(HEADER + 1)?, *answer.get(HEADER + 2)?);
    let mut socket = UnixSocket { is_listening: state == LISTENS, is_addressed: false, peer: None };
    let mut at = HEADER + MESSAGE;
    // An attribute without a length ends the list.
    while let Some(length) = half(at).map(usize::from).filter(|length| *length >= 4) {
        match half(at + 2)? {
            UNIX_DIAG_NAME => socket.is_addressed = i32::from(kind) == libc::SOCK_DGRAM,
            // A peer that is gone, but not forgotten yet, has no inode any more.
            UNIX_DIAG_PEER => socket.peer = Some(word(at + 4)?.into()).filter(|peer| *peer != 0),
            _ => {}
        }
        at += length.next_multiple_of(4);
    }
    Some(socket)
}

#[cfg(test)]
mod tests {
    use std::os::{fd::AsRawFd as _, unix::net::UnixStream};

    use super::*;

    fn inode(socket: &UnixStream) -> u64 {
        let link = std::fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
        let link = link.to_str().unwrap();
        link.strip_prefix("socket:[").unwrap().strip_suffix(']').unwrap().parse().unwrap()
    }

    #[test]
    fn the_kernel_names_the_peer_of_a_socket() {
        let (one, other) = UnixStream::pair().unwrap();
        let diag = UnixDiag::open().unwrap();
        assert_eq!(diag.peer(inode(&one)).unwrap(), Some(inode(&other)));
        assert_eq!(diag.peer(inode(&other)).unwrap(), Some(inode(&one)));
        let gone = inode(&other);
        drop(other);
        assert_eq!(diag.peer(inode(&one)).unwrap(), None);
        assert_eq!(diag.peer(gone).unwrap(), None);
        assert_eq!(diag.peer(u64::MAX).unwrap(), None);
    }

    #[test]
    fn the_kernel_tells_how_a_socket_can_be_reached() {
        use std::os::unix::net::{UnixDatagram, UnixListener};
        let folder = tempfile::tempdir().unwrap();
        let diag = UnixDiag::open().unwrap();
        let seen = |fd: i32| {
            let link = std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
            let inode = link.to_str().unwrap().trim_matches(|c: char| !c.is_ascii_digit());
            let socket = diag.socket(inode.parse().unwrap()).unwrap().unwrap();
            (socket.is_listening, socket.is_addressed, socket.peer.is_some())
        };
        let listener = UnixListener::bind(folder.path().join("a")).unwrap();
        assert_eq!(seen(listener.as_raw_fd()), (true, false, false));
        let (one, _other) = UnixStream::pair().unwrap();
        assert_eq!(seen(one.as_raw_fd()), (false, false, true));
        let bound = UnixDatagram::bind(folder.path().join("b")).unwrap();
        assert_eq!(seen(bound.as_raw_fd()), (false, true, false));
        let unbound = UnixDatagram::unbound().unwrap();
        assert_eq!(seen(unbound.as_raw_fd()), (false, false, false));
        let (one, _other) = UnixDatagram::pair().unwrap();
        assert_eq!(seen(one.as_raw_fd()), (false, false, true));
    }

    #[test]
    fn no_prefix_of_an_answer_is_taken_for_one() {
        let mut answer = vec![0; HEADER + MESSAGE];
        answer[..4].copy_from_slice(&(HEADER as u32 + MESSAGE as u32 + 16).to_ne_bytes());
        answer[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        answer[HEADER + 4..HEADER + 8].copy_from_slice(&7_u32.to_ne_bytes());
        for (kind, value) in [(3_u16, 1_u32), (UNIX_DIAG_PEER, 9)] {
            answer.extend(8_u16.to_ne_bytes());
            answer.extend(kind.to_ne_bytes());
            answer.extend(value.to_ne_bytes());
        }
        let peer = |answer: &[u8], inode| Some(socket_in(answer, inode)?.peer);
        assert_eq!(peer(&answer, 7), Some(Some(9)));
        assert_eq!(peer(&answer, 8), None);
        for end in 0..answer.len() {
            assert_eq!(peer(&answer[..end], 7), None, "{end}");
        }
        // An attribute without a length ends the list.
        answer[HEADER + MESSAGE..HEADER + MESSAGE + 2].copy_from_slice(&[0, 0]);
        assert_eq!(peer(&answer, 7), Some(None));
    }
}
