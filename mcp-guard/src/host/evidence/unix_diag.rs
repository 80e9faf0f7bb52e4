//! Asks the kernel for the peer of a Unix socket, see sock_diag(7). No file below `/proc` has it.

use std::{io, os::fd::OwnedFd};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

// From linux/netlink.h, linux/sock_diag.h and linux/unix_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const UDIAG_SHOW_PEER: u32 = 4;
const UNIX_DIAG_PEER: u16 = 2;
const HEADER: usize = 16;
/// `struct unix_diag_msg`.
const MESSAGE: usize = 16;

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
        let Ok(inode) = u32::try_from(inode) else { return Ok(None) };
        send(&self.0, &request(inode), SendFlags::empty())?;
        let mut answer = [0; 512];
        // The kernel answers before it returns from the request.
        let (_, length) = recv(&self.0, &mut answer, RecvFlags::DONTWAIT)?;
        Ok(peer_in(answer.get(..length).unwrap_or_default(), inode))
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
    for word in [u32::MAX, inode, UDIAG_SHOW_PEER, u32::MAX, u32::MAX] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes
}

/// Reads the peer out of an answer about the socket `inode`.
fn peer_in(answer: &[u8], inode: u32) -> Option<u64> {
    let half = |at: usize| Some(u16::from_ne_bytes(answer.get(at..at + 2)?.try_into().ok()?));
    let word = |at: usize| Some(u32::from_ne_bytes(answer.get(at..at + 4)?.try_into().ok()?));
    let is_it = half(4)? == SOCK_DIAG_BY_FAMILY && word(HEADER + 4)? == inode;
    if !is_it {
        return None;
    }
    let mut at = HEADER + MESSAGE;
    loop {
        let length = usize::from(half(at)?);
        if half(at + 2)? == UNIX_DIAG_PEER {
            // A peer that is gone, but not forgotten yet, has no inode any more.
            return word(at + 4).map(u64::from).filter(|peer| *peer != 0);
        }
        if length < 4 {
            return None;
        }
        at += length.next_multiple_of(4);
    }
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
    fn no_prefix_of_an_answer_is_taken_for_one() {
        let mut answer = vec![0; HEADER + MESSAGE];
        answer[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        answer[HEADER + 4..HEADER + 8].copy_from_slice(&7_u32.to_ne_bytes());
        for (kind, value) in [(0_u16, 1_u32), (UNIX_DIAG_PEER, 9)] {
            answer.extend(8_u16.to_ne_bytes());
            answer.extend(kind.to_ne_bytes());
            answer.extend(value.to_ne_bytes());
        }
        assert_eq!(peer_in(&answer, 7), Some(9));
        assert_eq!(peer_in(&answer, 8), None);
        for end in 0..answer.len() {
            assert_eq!(peer_in(&answer[..end], 7), None, "{end}");
        }
        // An attribute without a length ends the search.
        answer[HEADER + MESSAGE..HEADER + MESSAGE + 2].copy_from_slice(&[0, 0]);
        assert_eq!(peer_in(&answer, 7), None);
    }
}
