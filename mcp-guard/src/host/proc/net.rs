//! `/proc/PID/net/{tcp,tcp6,udp,udp6}`: the sockets of a network namespace, see proc_pid_net(5).

use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketState {
    Listening,
    /// Nothing can arrive: a socket of TCP that is not connected.
    Unconnected,
    Connected,
}

/// The states of the sockets of a namespace, by inode.
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
        for (inode, expected) in [
            (41, Some(SocketState::Listening)),
            (42, Some(SocketState::Connected)),
            (43, Some(SocketState::Unconnected)),
            (44, Some(SocketState::Connected)),
            (48, None),
        ] {
            assert_eq!(sockets.state(inode), expected, "{inode}");
        }
    }
}
