//! The attribute that marks a hold as ours, and that others can write too.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mcp_guard::host::mark::{MarkFound, judge_without_key};
use mcp_guard_core::limit::Limit;

fuzz_target!(|value: &[u8]| match judge_without_key(value) {
    MarkFound::Unsigned(mark) => {
        let _ = mark.wrote_limit(Limit::Max);
        for text in [mark.incident.as_str(), &mark.reason] {
            assert!(!text.chars().any(char::is_control), "{text:?}");
        }
    }
    MarkFound::Ours(mark) => panic!("signed with no key: {mark:?}"),
    MarkFound::Nothing | MarkFound::Forged => {}
});
