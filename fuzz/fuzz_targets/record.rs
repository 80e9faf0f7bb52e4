//! Records of the kernel's ring.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use mcp_guard_common::{Kind, decode};
use mcp_guard_core::server::Grammar;

static GRAMMAR: LazyLock<Grammar> = LazyLock::new(Grammar::default);

fuzz_target!(|record: &[u8]| {
    let Ok((kind, event, argv)) = decode(record) else { return };
    assert_eq!(argv.len(), usize::from(event.argv_len));
    if kind == Kind::Exec {
        let _ = GRAMMAR.identify(&argv.to_vec().into());
    }
});
