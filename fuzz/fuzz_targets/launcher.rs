//! Command lines, which any process chooses for itself: NUL-separated bytes.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use mcp_guard_core::{
    launcher::{Launchers, Program, stranded_server},
    redact,
};

static LAUNCHERS: LazyLock<Launchers> = LazyLock::new(Launchers::default);

fuzz_target!(|argv: &[u8]| {
    let named = match LAUNCHERS.classify(argv) {
        Program::Launcher(identity) => Some(identity),
        Program::Shell | Program::Other => None,
    };
    for identity in named.into_iter().chain(stranded_server(argv)) {
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
