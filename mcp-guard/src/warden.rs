//! A second, tiny process of ours that wakes suspended servers. It holds duplicates of a server's descriptors,
//! and thaws the server when its client writes, when one of its processes ends, or when the agent is gone or
//! hangs. So the agent may die at any moment without leaving a server asleep.

pub mod client;
pub mod process;
pub mod protocol;
