//! Command lines, which any process chooses for itself: NUL-separated bytes.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use mcp_guard_core::{
    redact,
    server::{Grammar, Start},
};

static GRAMMAR: LazyLock<Grammar> = LazyLock::new(Grammar::default);

fuzz_target!(|argv: &[u8]| {
    let named = match GRAMMAR.identify(&argv.to_vec().into()) {
        Start::Server(named) => Some(named.identity),
        Start::Shell | Start::Wrapper => None,
    };
    if let Some(identity) = named {
        assert!(!identity.is_empty(), "an identity has a name");
        assert!(!identity.chars().any(char::is_control), "{identity:?}");
        assert!(identity.len() <= 4096, "{} bytes", identity.len());
    }
    if let Ok(text) = std::str::from_utf8(argv) {
        let words: Vec<&str> = text.split('\0').collect();
        assert_eq!(redact::words(words.iter().copied()).len(), words.len());
        let _ = redact::text(text);
    }
});
