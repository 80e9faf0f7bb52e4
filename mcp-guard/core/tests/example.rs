//! The documented policy is a true one: it parses, and its values are the defaults.

use mcp_guard_core::policy::{Policy, Response};

#[test]
fn the_example_shows_the_defaults() {
    let text = include_str!("../../../docs/policy.example.toml");
    let example = Policy::parse(text).expect("valid");
    let default = Policy::default();
    assert_eq!(example.mode, default.mode);
    assert_eq!(example.detect, default.detect);
    assert_eq!(example.respond, default.respond);
    assert_eq!(example.guard.len(), 3);
    assert_eq!(example.guard[1].highest, Response::Freeze, "the default rung");
    assert_eq!(example.launcher.len(), 1);
}
