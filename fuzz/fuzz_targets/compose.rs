//! Compose files, which belong to users, and what they declare.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use mcp_guard_core::diagnose::{
    compose::{judged, keys, used_variables},
    facts::{Compose, ComposeFile, ComposeTool, Content, Variables},
};

fuzz_target!(|text: &str| {
    let all = BTreeMap::from([
        ("LIMIT".to_owned(), "25".to_owned()),
        ("OTHER".to_owned(), "a secret".to_owned()),
    ]);
    let path = "/srv/compose.yml".to_owned();
    let files = vec![ComposeFile { path, keys: keys(text, "web") }];
    let values = used_variables(&files, &all);
    let variables = Variables { values, ..Variables::default() };
    let content = Some(Content::Read { files, variables });
    for (tool, version) in [
        (ComposeTool::Docker, Some("2.26.1")),
        (ComposeTool::Docker, Some("1.29.2")),
        (ComposeTool::PodmanCompose, None),
    ] {
        let version = version.map(str::to_owned);
        let content = content.clone();
        let found = judged(&Compose { tool, version, content, ..Compose::default() });
        let saved = serde_json::to_string(&found).expect("facts can be saved");
        assert!(!saved.contains("a secret"), "{saved}");
        let read: Compose = serde_json::from_str(&saved).expect("saved facts can be read");
        assert_eq!(read, found);
    }
});
