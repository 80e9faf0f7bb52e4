//! Answers of a container engine. What a person sees of them has no control character.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mcp_guard::engine::fuzzing;

fuzz_target!(|answer: &[u8]| {
    if let Ok(Some(found)) = fuzzing::answer(answer) {
        let shown = &found.container;
        for text in [&shown.name, &shown.image, &shown.cgroup_parent, &shown.runtime] {
            assert!(!text.chars().any(char::is_control), "{text:?}");
        }
    }
    for listed in fuzzing::list(answer).into_iter().flatten() {
        assert_eq!(listed.id.len(), 64);
        assert!(!listed.name.chars().any(char::is_control), "{:?}", listed.name);
    }
    let _ = fuzzing::change(answer);
});
