//! The local control socket: Varlink's framing (JSON objects, each ended by a NUL byte), for root.
//!
//! `varlinkctl call /run/mcp-guard/control.sock io.mcpguard.Status '{}'` works too.

pub mod client;
pub mod description;
pub mod lock;
mod peer;
pub mod request;
pub mod server;
#[cfg(test)]
mod tests;
mod varlink;
pub mod wire;
