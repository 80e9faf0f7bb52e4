//! The local control socket: Varlink's framing (JSON objects, each ended by a NUL byte), for root.
//!
//! `varlinkctl call /run/mcp-guard/control.sock io.mcpguard.Status '{}'` works as well as our CLI.

pub mod client;
pub mod lock;
pub mod server;
pub mod wire;
