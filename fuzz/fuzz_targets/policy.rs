//! The policy. Whatever is accepted can be applied: a short leak is replayed under it. The text that is
//! shown of it has the same meaning.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use mcp_guard_core::{
    policy::{Policy, Workload},
    replay::replay,
};

/// Forty servers of one package, five a second.
static LEAK: LazyLock<String> = LazyLock::new(|| {
    let mut trace = "{\"format\":\"spawn-trace/1\"}\n".to_owned();
    for child in 2..42_u64 {
        let t = child * 200_000_000;
        trace += &format!("{{\"t\":{t},\"e\":\"fork\",\"p\":1,\"c\":{child}}}\n");
        trace += &format!(
            "{{\"t\":{t},\"e\":\"exec\",\"p\":{child},\"argv\":[\"npx\",\"-y\",\"figma-mcp\"]}}\n"
        );
    }
    trace
});

fuzz_target!(|text: &str| {
    let Ok(policy) = Policy::parse(text) else { return };
    let name = "web".to_owned();
    let _ = policy.terms(&Workload { name, ..Workload::default() });
    let shown = Policy::parse(&policy.show()).expect("what is shown is a policy");
    assert_eq!(shown.guard.len(), policy.guard.len());
    (0..policy.guard.len()).map(Some).chain([None]).for_each(|rule| {
        assert_eq!(shown.scope(rule), policy.scope(rule));
    });
    replay(&LEAK, policy).expect("the trace is well-formed");
});
