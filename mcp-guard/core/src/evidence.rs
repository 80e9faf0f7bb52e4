//! Evidence about one server: whether its client can still reach it, and whether it waits for its
//! client and for nothing else; and about the clients of containers. It is read by `host::evidence` of the agent and judged here.
//!
//! A fact that cannot be read is unknown, and unknown never counts as proof.

mod abandoned;
mod clients;
mod connection;
mod known;
mod quiescence;
mod zombies;

pub use self::{
    abandoned::is_busy,
    clients::{
        ClientIs, ClientProcess, ClientProgram, ClientsLook, Connections, EndedStdin,
        InteractiveContainer,
    },
    connection::{Channel, Channels, Connection, PollFlags},
    known::{Activity, Contact, Known, ServerSeen, StdioAtExec, Use},
    quiescence::{
        AtWork, EpollSet, FileLock, OpenChannel, PeerIs, ProcessLook, Quiescence, Runtime,
        ThreadLook, TreeLook, Wait, Waker, at_work, is_reached_by_stdio_alone,
    },
    zombies::{Reaper, Unreaped},
};
