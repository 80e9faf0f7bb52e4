//! Messages of the control socket, at both ends.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mcp_guard::control::{
    request::{Asked, read},
    wire::{Answer, Reply, Status},
};

fuzz_target!(|message: &[u8]| {
    if let Asked::Reply(reply) = read(message) {
        serde_json::to_vec(&reply).expect("a reply is JSON");
    }
    let Ok(reply) = serde_json::from_slice::<Reply>(message) else { return };
    let _ = serde_json::from_value::<Answer>(reply.parameters.clone());
    if let Ok(status) = serde_json::from_value::<Status>(reply.parameters) {
        let _ = mcp_guard::render::status(&status);
    }
});
