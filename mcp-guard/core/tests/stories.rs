//! Long stories at the pace of real reports, as traces: leaks of every kind of server, and innocent work.

#[path = "stories/innocent.rs"]
mod innocent;
#[path = "stories/leaks.rs"]
mod leaks;
#[path = "stories/trace.rs"]
mod trace;
