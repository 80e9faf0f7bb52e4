//! Saved facts, which may come from somebody else: read, judged, shown, and a limit planned from them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mcp_guard::render;
use mcp_guard_core::{
    diagnose::{facts::Facts, judge},
    repair::{Wanted, plan},
};

fuzz_target!(|text: &[u8]| {
    let Ok(facts) = serde_json::from_slice::<Facts>(text) else { return };
    let report = judge(&facts);
    let shown = render::report(&report, false);
    let hidden = |one: char| one.is_control() && one != '\n';
    assert!(!shown.contains(hidden), "{shown:?}");
    let _ = render::table(std::slice::from_ref(&report));
    serde_json::to_string(&report).expect("a report is JSON");
    for limit in [None, Some(1), Some(100)] {
        for force in [false, true] {
            let _ = plan(&facts, Wanted { limit, force, headroom: 20 });
        }
    }
    let saved = serde_json::to_vec(&facts.clone().without_secrets()).expect("facts can be saved");
    serde_json::from_slice::<Facts>(&saved).expect("saved facts can be read");
});
