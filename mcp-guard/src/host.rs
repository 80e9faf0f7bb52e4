//! Adapters to the running kernel and to systemd.

pub mod automount;
pub mod bpf;
pub mod btf;
pub mod census;
pub mod cgroup;
pub mod cgroupfs;
pub mod chain;
pub mod clock;
pub mod evidence;
pub mod facts;
pub mod kernel;
pub mod layout;
mod mapped;
pub mod mark;
pub mod observer;
pub mod patience;
pub mod pidns;
pub mod poll;
pub mod proc;
pub mod process;
pub mod storage;
pub mod systemd;
pub mod way;
