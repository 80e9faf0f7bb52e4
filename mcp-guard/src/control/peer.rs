//! Only root of this host may ask the agent. The mode of the socket keeps other users out; this check
//! also covers a descriptor that was passed on, and root of a container that sees the socket.

use std::{
    fs, io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use rustix::fs::stat;
use tokio::net::UnixStream;

use crate::host::proc::fdinfo;

/// Why a peer gets no answer. The text completes "the agent refused the call: ".
#[derive(Debug, thiserror::Error)]
pub enum Stranger {
    #[error("it answers root only, and the caller is user {0}; run the command with sudo")]
    NotRoot(u32),
    #[error(
        "it answers only processes of its own pid namespace, and the caller is in another one, such \
         as that of a container; run the command on the host itself"
    )]
    Elsewhere,
    #[error("the caller has ended")]
    Ended,
    #[error("the caller cannot be identified: {0}")]
    Unknown(#[from] io::Error),
}

/// # Errors
/// The peer is another user, is in another pid namespace, or has ended.
pub fn check(stream: &UnixStream) -> Result<(), Stranger> {
    let peer = stream.peer_cred()?;
    if peer.uid() != 0 {
        return Err(Stranger::NotRoot(peer.uid()));
    }
    match pidfd(stream) {
        Ok(pidfd) => {
            let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
            check_info(&info)
        }
        // Before Linux 6.5, or the kernel keeps no handle on a peer that has ended.
        Err(_) => check_pid(peer.pid()),
    }
}

/// Returns a handle on the peer, whose pid another process may have by now (`SO_PEERPIDFD`, Linux 6.5).
#[expect(unsafe_code, reason = "rustix has no function for this option")]
fn pidfd(stream: &UnixStream) -> io::Result<OwnedFd> {
    let mut fd: libc::c_int = -1;
    let mut length = libc::socklen_t::try_from(size_of_val(&fd)).map_err(io::Error::other)?;
    let (level, option) = (libc::SOL_SOCKET, libc::SO_PEERPIDFD);
    let to = (&raw mut fd).cast();
    // SAFETY: `to` and `length` describe an integer that lives during the call.
    let failed =
        unsafe { libc::getsockopt(stream.as_raw_fd(), level, option, to, &raw mut length) };
    if failed != 0 || fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Checks what the kernel shows of a pidfd.
fn check_info(info: &str) -> Result<(), Stranger> {
    let pids: Vec<&str> = fdinfo::pids(info).take(2).collect();
    match pids[..] {
        ["-1", ..] => Err(Stranger::Ended),
        // Its namespace is not even below ours.
        ["0"] | [_, _] => Err(Stranger::Elsewhere),
        [_] => Ok(()),
        _ => Err(Stranger::Unknown(io::Error::other("the kernel does not show its pid"))),
    }
}

fn check_pid(pid: Option<i32>) -> Result<(), Stranger> {
    let pid = pid.filter(|pid| *pid > 0).ok_or(Stranger::Elsewhere)?;
    let namespace = |path: String| stat(path).map(|file| (file.st_dev, file.st_ino));
    let its = namespace(format!("/proc/{pid}/ns/pid")).map_err(|_| Stranger::Ended)?;
    let ours = namespace("/proc/self/ns/pid".to_owned()).map_err(io::Error::from)?;
    if ours == its { Ok(()) } else { Err(Stranger::Elsewhere) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_of_our_pid_namespace_has_one_pid() {
        let info = |pids: &str| check_info(&format!("pos:\t0\nPid:\t7\nNSpid:\t{pids}\n"));
        assert!(info("451").is_ok());
        for elsewhere in ["451\t1", "451\t7\t1", "0"] {
            assert!(matches!(info(elsewhere), Err(Stranger::Elsewhere)), "{elsewhere}");
        }
        assert!(matches!(info("-1"), Err(Stranger::Ended)));
        assert!(info("").is_err() && check_info("Pid:\t451\n").is_err());
    }

    #[tokio::test]
    async fn both_ways_find_this_process_in_its_own_namespace() {
        let (one, _other) = UnixStream::pair().unwrap();
        let peer = one.peer_cred().unwrap();
        assert!(check_pid(peer.pid()).is_ok());
        assert!(matches!(check_pid(Some(0)), Err(Stranger::Elsewhere)));
        // Linux 6.5 has it.
        if let Ok(pidfd) = pidfd(&one) {
            let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
            assert!(check_info(&fs::read_to_string(path).unwrap()).is_ok());
        }
        assert_eq!(check(&one).is_ok(), peer.uid() == 0);
    }
}
