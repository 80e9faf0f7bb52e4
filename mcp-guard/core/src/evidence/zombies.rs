//! Processes that have ended and are not reaped.

use std::fmt;

use crate::{escape::visible, id::Pid};

/// The zombies of a guard, as one look found them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unreaped {
    /// Tasks that count against the limit and do not live.
    pub zombies: u64,
    /// The parent of most of them, if it is known.
    pub reaper: Option<Reaper>,
}

impl Unreaped {
    /// Fewer matter nowhere.
    pub const FEWEST: u64 = 5;
}

/// A process that does not reap its children.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reaper {
    pub pid: Pid,
    /// The name of its program, as the process says it.
    pub name: String,
    /// It is the first process of its pid namespace, and so the parent of all orphans in it.
    pub is_init: bool,
}

impl fmt::Display for Reaper {
    /// Says what to do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({}) does not reap its children", self.pid, visible(&self.name))?;
        if self.is_init {
            f.write_str("; start the container with an init (docker run --init)")?;
        }
        Ok(())
    }
}
