//! The documented policy is valid, and its values are the defaults.

use mcp_guard_core::policy::{Mode, Policy, Response};

#[test]
fn the_example_shows_the_defaults() {
    let text = include_str!("../../../docs/policy.example.toml");
    let example = Policy::parse(text).expect("valid");
    let default = Policy::default();
    assert_eq!(example.mode, default.mode);
    assert_eq!(example.detect, default.detect);
    assert_eq!(example.respond, default.respond);
    assert_eq!(example.guard.len(), 3);
    assert_eq!(example.guard[1].highest, Response::Freeze, "the default `highest`");
    assert_eq!(example.launcher.len(), 1);
}

/// The package's policy changes nothing on a host. The example in its comment is valid too.
#[test]
fn the_shipped_policy_observes() {
    let text = include_str!("../../../package/etc/mcp-guard/policy.toml");
    let shipped = Policy::parse(text).expect("valid");
    assert_eq!((shipped.mode, shipped.guard.len()), (Mode::Observe, 0));
    let (above, shown) = text.split_once("# [[guard]]").expect("an example in a comment");
    let shown = format!("{above}[[guard]]{}", shown.replace("\n# ", "\n").replace("\n#\n", "\n"));
    let shown = Policy::parse(&shown).expect("valid without the comment signs");
    assert_eq!((shown.guard.len(), shown.guard[0].mode), (2, Some(Mode::Enforce)));
}
