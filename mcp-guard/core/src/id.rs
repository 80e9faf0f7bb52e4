//! Numbers that name things, each a type of its own so that none is taken for another.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Types that are a number and no more: so they are shown, sent and saved.
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
    /// A guard's slot in the kernel's maps; reused only long after the guard is gone.
    pub struct GuardId(pub u32);

    /// A process, by its number on the host; 0 where there is none.
    pub struct Pid(pub u32);

    /// A cgroup, by the inode number of its directory.
    pub struct CgroupId(pub u64);

    /// When a process started, in clock ticks since the boot.
    pub struct Ticks(pub u64);
}

/// Names one effect. What becomes of the effect comes back under the same ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Draws tickets, from 1.
#[derive(Clone, Debug, Default)]
pub struct Tickets(u64);

impl Tickets {
    pub fn draw(&mut self) -> Ticket {
        self.0 += 1;
        Ticket(self.0)
    }
}

/// One request of an operator, as the agent numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// What an operator reads in the audit log: the run of the agent, and the ticket of the effect.
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
