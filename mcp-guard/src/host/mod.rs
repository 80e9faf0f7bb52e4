//! Adapters to the running kernel.

pub mod bpf;
pub mod btf;
pub mod cgroup;
pub mod clock;
pub mod facts;
pub mod kernel;
pub mod layout;
pub mod mark;
pub mod poll;
pub mod process;
