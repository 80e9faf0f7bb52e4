//! Typed ids. Each id has its own type, so that one cannot be passed as another.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Defines types that print and serialize as their plain number.
macro_rules! numbers {
    ($($(#[$doc:meta])* pub struct $name:ident(pub $number:ty);)*) => {$(
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $number);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}

numbers! {
    /// Slot of a guard in the BPF maps. A slot is reused only long after its guard is gone.
    pub struct GuardId(pub u32);

    /// A process, by its pid on the host. 0 means no process.
    pub struct Pid(pub u32);

    /// A cgroup, by the inode number of its directory.
    pub struct CgroupId(pub u64);

    /// Start time of a process, in clock ticks since boot.
    pub struct Ticks(pub u64);
}

/// A process with its start time, which tells it from another one that gets its pid later.
pub type Started = (Pid, Ticks);

/// Identifies one effect. The answer to the effect carries the same ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Issues tickets, starting at 1.
#[derive(Clone, Debug, Default)]
pub struct Tickets(u64);

impl Tickets {
    pub fn draw(&mut self) -> Ticket {
        self.0 += 1;
        Ticket(self.0)
    }
}

/// Number that the agent gives to one operator request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// Incident id in the audit log: the agent's run and the ticket of the effect.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incident(String);

impl Incident {
    #[must_use]
    pub fn new(run: &str, ticket: Ticket) -> Self {
        Self(format!("{run}-{ticket}"))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Incident {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Display for Incident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
