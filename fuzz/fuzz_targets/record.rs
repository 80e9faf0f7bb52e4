//! Records of the kernel's ring.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use mcp_guard_common::{Kind, decode};
use mcp_guard_core::server::{CommandLine, Grammar};

static GRAMMAR: LazyLock<Grammar> = LazyLock::new(Grammar::default);

fuzz_target!(|record: &[u8]| {
    let Ok(record) = decode(record) else { return };
    assert_eq!(record.argv.len(), usize::from(record.event.argv_len));
    if record.kind == Kind::Exec {
        let (argv, exe) = (record.argv.to_vec(), Some(record.exe.to_vec()));
        let _ = GRAMMAR.identify(&CommandLine { argv, exe, cwd: None });
    }
});
