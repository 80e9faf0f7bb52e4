//! `/proc/PID/net/{tcp,tcp6,udp,udp6,unix}`: the sockets of a network namespace, see proc_pid_net(5).

use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketState {
    Listening,
    /// Nothing can arrive: a socket of TCP, or a Unix socket for streams, that is not connected.
    Unconnected,
    Connected,
    UnixConnected,
}

/// The states of all sockets of a namespace, by inode.
#[derive(Default)]
pub struct Sockets(BTreeMap<u64, SocketState>);

impl Sockets {
    #[must_use]
    pub fn state(&self, inode: u64) -> Option<SocketState> {
        self.0.get(&inode).copied()
    }

    /// Adds the sockets of `tcp` or `tcp6`. The states are those of `include/net/tcp_states.h`.
    pub fn add_tcp(&mut self, text: &str) {
        self.add(text, |state| match state {
            "07" => SocketState::Unconnected,
            "0A" => SocketState::Listening,
            _ => SocketState::Connected,
        });
    }

    /// Adds the sockets of `udp` or `udp6`. Datagrams may arrive at any of them.
    pub fn add_udp(&mut self, text: &str) {
        self.add(text, |_| SocketState::Connected);
    }

    fn add(&mut self, text: &str, state: impl Fn(&str) -> SocketState) {
        for line in text.lines().skip(1) {
            let mut words = line.split_whitespace();
            let (found, inode) = (words.nth(3), words.nth(5).and_then(|inode| inode.parse().ok()));
            if let (Some(found), Some(inode)) = (found, inode) {
                self.0.insert(inode, state(found));
            }
        }
    }

    /// Adds the sockets of `unix`. The flags and states are those of `net/unix/af_unix.c`.
    pub fn add_unix(&mut self, text: &str) {
        const ACCEPTS: u32 = 0x1_0000;
        for line in text.lines().skip(1) {
            let mut words = line.split_whitespace();
            let flags = words.nth(3).and_then(|flags| u32::from_str_radix(flags, 16).ok());
            let is_datagram = words.next() == Some("0002");
            let state = words.next();
            let inode = words.next().and_then(|inode| inode.parse().ok());
            let (Some(flags), Some(state), Some(inode)) = (flags, state, inode) else { continue };
            let has_address = words.next().is_some();
            let state = match state {
                _ if flags & ACCEPTS != 0 => SocketState::Listening,
                // Anybody may send to it who can reach its address.
                _ if is_datagram && has_address => SocketState::Connected,
                "01" => SocketState::Unconnected,
                _ => SocketState::UnixConnected,
            };
            self.0.insert(inode, state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_of_a_socket_is_known_by_its_inode() {
        let mut sockets = Sockets::default();
        sockets.add_tcp(
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
               0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 41 1 0 100 0\n\
               1: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 42 1 0 20 4\n\
               2: 00000000:0000 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 43 1 0 100 0\n\
               3: short\n",
        );
        sockets.add_udp(
            "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref\n\
              10: 00000000:0044 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 44 2 0 0\n",
        );
        sockets.add_unix(
            "Num       RefCount Protocol Flags    Type St Inode Path\n\
             0000000000000000: 00000003 00000000 00000000 0001 03 45\n\
             0000000000000000: 00000002 00000000 00010000 0001 01 46 /run/a.sock\n\
             0000000000000000: 00000002 00000000 00000000 0002 01 47 @x\n\
             0000000000000000: 00000002 00000000 00000000 0002 01 49\n\
             bad\n",
        );
        for (inode, expected) in [
            (41, Some(SocketState::Listening)),
            (42, Some(SocketState::Connected)),
            (43, Some(SocketState::Unconnected)),
            (44, Some(SocketState::Connected)),
            (45, Some(SocketState::UnixConnected)),
            (46, Some(SocketState::Listening)),
            (47, Some(SocketState::Connected)),
            (49, Some(SocketState::Unconnected)),
            (48, None),
        ] {
            assert_eq!(sockets.state(inode), expected, "{inode}");
        }
    }
}
