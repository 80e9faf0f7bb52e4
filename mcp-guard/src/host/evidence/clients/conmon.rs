//! conmon, the parent of each container of Podman: clients connect to its socket, and it has one end of the container's
//! stdin. It closes that when the client has ended its input, unless the container was started in the background.

use std::io;

use mcp_guard_core::{
    evidence::{Channel, ClientIs},
    id::{Pid, Ticks},
};

use super::sockets::{self, link};
use crate::host::{observer::Observer, proc::fdinfo, process::OpenProcess};

const MOST_DESCRIPTORS: usize = 1024;

/// Returns the state of a container's client if its stdin has ended. `init`: its first process, and when that began.
pub fn client(id: &str, init: (Pid, Ticks), observer: &Observer) -> io::Result<Option<ClientIs>> {
    let other = || io::Error::new(io::ErrorKind::NotFound, "its parent is not its conmon");
    let stat = OpenProcess::open(init.0)?.stat()?;
    if stat.start != init.1 {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    let pid = stat.parent;
    let conmon = OpenProcess::open(pid)?;
    if conmon.comm()? != b"conmon" {
        return Err(other());
    }
    let seen = observer.observe(vec![pid]).pop().ok_or_else(other)?;
    if seen.start_ticks != conmon.start_ticks()? || !is_of(id, &seen.command.argv) {
        return Err(other());
    }
    let fds = conmon.descriptors(MOST_DESCRIPTORS)?;
    // The connections come first: a client that ends its input meanwhile is alive.
    let clients = sockets::accepted(&conmon, pid, &fds)?;
    for fd in fds {
        let is_pipe = link(&conmon, fd)?.as_deref().and_then(Channel::parse);
        if matches!(is_pipe, Some(Channel::Pipe(_))) && is_stdin(&conmon.fdinfo(fd)?) {
            return Ok(None);
        }
    }
    let lives = clients.iter().any(|one| !one.flags.is_hung_up());
    Ok(Some(if lives { ClientIs::Alive } else { ClientIs::Gone }))
}

/// Whether a pipe of conmon is the container's stdin: it writes to no other one, and without waiting. One that it
/// inherited may look the same, which makes the stdin look open.
fn is_stdin(info: &str) -> bool {
    fdinfo::is_write_only(info) && fdinfo::is_nonblocking(info)
}

/// Whether it is the conmon of this container: its arguments are `-c ID`.
fn is_of(id: &str, arguments: &[u8]) -> bool {
    let mut arguments = arguments.split(|byte| *byte == 0);
    arguments.any(|one| one == b"-c") && arguments.next() == Some(id.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stdin_and_the_container_are_recognised() {
        // conmon 2.1 shows these.
        for (flags, expected) in [("02004001", true), ("02000000", false), ("01", false)] {
            assert_eq!(
                is_stdin(&format!("pos:\t0\nflags:\t{flags}\nmnt_id:\t15\n")),
                expected,
                "{flags}"
            );
        }
        let arguments = b"/usr/bin/conmon\0--api-version\x001\0-c\0abc\0-u\0abc\0";
        assert!(is_of("abc", arguments) && !is_of("abcd", arguments) && !is_of("", b""));
    }
}
