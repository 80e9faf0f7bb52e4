//! The packets between the agent and the warden. Both are of one build, so the format has no version.
//!
//! A packet is an operation, a detail, and the number of a server in little-endian order. Fields that an
//! operation does not use are zero.

/// Bytes of a packet.
pub const LENGTH: usize = 10;
/// Files of a server that come with a `Hold`, before the pidfds.
pub const FILES: usize = 4;
/// Most pidfds of a `Hold`.
pub const MOST_PIDFDS: usize = 32;
/// Most descriptors of a packet.
pub const MOST_DESCRIPTORS: usize = FILES + MOST_PIDFDS;

pub type Packet = [u8; LENGTH];

/// A packet from the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToWarden {
    /// Keep a server's descriptors. They come with it in this order: the child's `cgroup.freeze` to write, its
    /// `cgroup.procs` to read, the parent's `cgroup.procs` to write, the server's stdin, and its pidfds.
    Hold { number: u64 },
    /// Watch the stdin and the pidfds from now on. It follows the freeze, because a wake before that would be lost.
    Arm { number: u64 },
    /// Forget a server, and close its descriptors.
    Drop { number: u64 },
    /// The agent's loop runs.
    Beat,
}

/// A packet from the warden.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromWarden {
    /// It has thawed a server.
    Woke { number: u64, by: WokenBy },
    /// It does not watch this server: it holds as many as it can, has this number already, holds no such server,
    /// has woken it before, or cannot watch its stdin. It may not have thawed it.
    Refused { number: u64 },
    /// The answer to each `Beat`.
    Beat,
}

/// The reason for a wake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WokenBy {
    /// The client wrote to the stdin.
    Request,
    /// The client closed the stdin.
    HungUp,
    /// A process of the server ended.
    Ended,
    /// The agent's beats stopped.
    Silence,
}

/// A packet that is not one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    #[error("a packet has {0} bytes instead of {LENGTH}")]
    Length(usize),
    #[error("a packet has the unknown operation {0} or detail {1}")]
    Unknown(u8, u8),
    #[error("a packet about server {number} has {found} descriptors")]
    Descriptors { number: u64, found: usize },
}

impl ToWarden {
    #[must_use]
    pub fn encode(self) -> Packet {
        match self {
            Self::Hold { number } => packet(1, 0, number),
            Self::Arm { number } => packet(2, 0, number),
            Self::Drop { number } => packet(3, 0, number),
            Self::Beat => packet(4, 0, 0),
        }
    }

    /// `descriptors`: the number of those that came with it.
    ///
    /// # Errors
    /// The packet is not one of these, or has other descriptors.
    pub fn decode(bytes: &[u8], descriptors: usize) -> Result<Self, PacketError> {
        let decoded = match parts(bytes)? {
            (1, 0, number) => Self::Hold { number },
            (2, 0, number) => Self::Arm { number },
            (3, 0, number) => Self::Drop { number },
            (4, 0, 0) => Self::Beat,
            (operation, detail, _) => return Err(PacketError::Unknown(operation, detail)),
        };
        let (number, wanted) = match decoded {
            Self::Hold { number } => (number, FILES + 1..=MOST_DESCRIPTORS),
            Self::Arm { number } | Self::Drop { number } => (number, 0..=0),
            Self::Beat => (0, 0..=0),
        };
        if !wanted.contains(&descriptors) {
            return Err(PacketError::Descriptors { number, found: descriptors });
        }
        Ok(decoded)
    }
}

impl FromWarden {
    #[must_use]
    pub fn encode(self) -> Packet {
        match self {
            Self::Woke { number, by } => packet(1, by.detail(), number),
            Self::Refused { number } => packet(2, 0, number),
            Self::Beat => packet(3, 0, 0),
        }
    }

    /// # Errors
    /// The packet is not one of these.
    pub fn decode(bytes: &[u8]) -> Result<Self, PacketError> {
        match parts(bytes)? {
            (1, 1, number) => Ok(Self::Woke { number, by: WokenBy::Request }),
            (1, 2, number) => Ok(Self::Woke { number, by: WokenBy::HungUp }),
            (1, 3, number) => Ok(Self::Woke { number, by: WokenBy::Ended }),
            (1, 4, number) => Ok(Self::Woke { number, by: WokenBy::Silence }),
            (2, 0, number) => Ok(Self::Refused { number }),
            (3, 0, 0) => Ok(Self::Beat),
            (operation, detail, _) => Err(PacketError::Unknown(operation, detail)),
        }
    }
}

impl WokenBy {
    fn detail(self) -> u8 {
        match self {
            Self::Request => 1,
            Self::HungUp => 2,
            Self::Ended => 3,
            Self::Silence => 4,
        }
    }
}

fn packet(operation: u8, detail: u8, number: u64) -> Packet {
    let [a, b, c, d, e, f, g, h] = number.to_le_bytes();
    [operation, detail, a, b, c, d, e, f, g, h]
}

fn parts(bytes: &[u8]) -> Result<(u8, u8, u64), PacketError> {
    let packet = Packet::try_from(bytes).map_err(|_| PacketError::Length(bytes.len()))?;
    let [operation, detail, number @ ..] = packet;
    Ok((operation, detail, u64::from_le_bytes(number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NUMBER: u64 = 0x0123_4567_89ab_cdef;

    #[test]
    fn orders_are_decoded_as_they_were_encoded() {
        for (order, operation, descriptors) in [
            (ToWarden::Hold { number: NUMBER }, 1, 5),
            (ToWarden::Hold { number: 0 }, 1, 36),
            (ToWarden::Arm { number: NUMBER }, 2, 0),
            (ToWarden::Drop { number: u64::MAX }, 3, 0),
            (ToWarden::Beat, 4, 0),
        ] {
            let bytes = order.encode();
            assert_eq!(bytes[..2], [operation, 0]);
            assert_eq!(ToWarden::decode(&bytes, descriptors), Ok(order));
        }
        let bytes = ToWarden::Hold { number: NUMBER }.encode();
        assert_eq!(bytes, [1, 0, 0xef, 0xcd, 0xab, 0x89, 0x67, 0x45, 0x23, 0x01]);
    }

    #[test]
    fn reports_are_decoded_as_they_were_encoded() {
        for (report, operation, detail) in [
            (FromWarden::Woke { number: NUMBER, by: WokenBy::Request }, 1, 1),
            (FromWarden::Woke { number: 0, by: WokenBy::HungUp }, 1, 2),
            (FromWarden::Woke { number: 1, by: WokenBy::Ended }, 1, 3),
            (FromWarden::Woke { number: u64::MAX, by: WokenBy::Silence }, 1, 4),
            (FromWarden::Refused { number: NUMBER }, 2, 0),
            (FromWarden::Beat, 3, 0),
        ] {
            let bytes = report.encode();
            assert_eq!(bytes[..2], [operation, detail]);
            assert_eq!(FromWarden::decode(&bytes), Ok(report));
        }
    }

    #[test]
    fn packets_of_another_length_are_errors() {
        for length in [0, 1, LENGTH - 1, LENGTH + 1, 64] {
            let bytes = [1; 64];
            let error = PacketError::Length(length);
            assert_eq!(ToWarden::decode(&bytes[..length], 5), Err(error));
            assert_eq!(FromWarden::decode(&bytes[..length]), Err(error));
        }
    }

    #[test]
    fn unknown_operations_and_details_are_errors() {
        for (operation, detail, number) in [(0, 0, 1), (5, 0, 1), (255, 0, 0), (2, 1, 1), (4, 0, 1)]
        {
            let decoded = ToWarden::decode(&packet(operation, detail, number), 0);
            assert_eq!(decoded, Err(PacketError::Unknown(operation, detail)));
        }
        for (operation, detail, number) in
            [(0, 0, 1), (1, 0, 1), (1, 5, 1), (2, 1, 1), (3, 0, 1), (4, 0, 0)]
        {
            let decoded = FromWarden::decode(&packet(operation, detail, number));
            assert_eq!(decoded, Err(PacketError::Unknown(operation, detail)));
        }
    }

    #[test]
    fn another_number_of_descriptors_is_an_error() {
        for (order, number, found) in [
            (ToWarden::Hold { number: 7 }, 7, 0),
            (ToWarden::Hold { number: 7 }, 7, 4),
            (ToWarden::Hold { number: 7 }, 7, 37),
            (ToWarden::Arm { number: 8 }, 8, 1),
            (ToWarden::Drop { number: 9 }, 9, 5),
            (ToWarden::Beat, 0, 1),
        ] {
            let decoded = ToWarden::decode(&order.encode(), found);
            assert_eq!(decoded, Err(PacketError::Descriptors { number, found }));
        }
    }
}
