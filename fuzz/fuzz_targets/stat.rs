//! Files of `/proc`, in which a process chooses its own name.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mcp_guard::host::proc::{self, stat::Stat, status};

fuzz_target!(|text: &[u8]| {
    if let Some(stat) = Stat::parse(text) {
        assert!(!stat.ending || stat.threads <= 1);
    }
    let _ = status::may_trace(text);
    if let Ok(text) = std::str::from_utf8(text) {
        let _ = proc::tasks(text);
    }
});
