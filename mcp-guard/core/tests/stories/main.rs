//! Long stories at the pace of real reports, as traces: leaks of every kind of server, and innocent work.

mod innocent;
mod leaks;
mod trace;
