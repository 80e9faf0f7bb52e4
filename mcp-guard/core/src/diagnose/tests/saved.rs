//! Saved facts of this schema and of the previous one.

use super::super::{
    compose::{keys, used_variables},
    facts::{ComposeFile, Content, SCHEMA, Source, Variables},
};
use super::*;

/// A snapshot that was saved with schema 1.
const SCHEMA_1: &str = include_str!("schema_1.json");

#[test]
fn facts_of_schema_1_are_judged_as_before() {
    let facts: Facts = serde_json::from_str(SCHEMA_1).unwrap();
    let compose = facts.compose.as_ref().unwrap();
    assert_eq!((facts.schema, &compose.content), (1, &None));
    assert!(matches!(compose.says, Says::Limit { value: 25, filled: true, .. }));
    let sources: Vec<&Source> = facts.unreadable.iter().map(|one| &one.what).collect();
    assert_eq!(sources[0], &Source::UnitOfCgroup);
    assert_eq!(sources[1], &Source::Other("a source of another version".to_owned()));
    let report = judge(&facts);
    assert_eq!(codes(&report), [Code::NotRecreated]);
    assert_eq!(report.findings[0].certainty, Possible, "a variable was filled in");
    assert_eq!((report.declared, report.effective_limit), (Some(25), Some(4760)));
    assert_eq!(report.places[0].r#where, "/srv/shop/compose.yml:4");
    // Saving it again loses nothing.
    let again: Facts = serde_json::from_value(serde_json::to_value(&facts).unwrap()).unwrap();
    assert_eq!(again, facts);
}

/// Facts of the container in `SCHEMA_1`, in the current schema.
fn schema_2(text: &str, environment: &[(&str, &str)]) -> Facts {
    let mut facts: Facts = serde_json::from_str(SCHEMA_1).unwrap();
    facts.schema = SCHEMA;
    let compose = facts.compose.as_mut().unwrap();
    compose.says = Says::NotAsked;
    let path = compose.files[0].clone();
    let files = vec![ComposeFile { path, keys: keys(text, "web") }];
    let all = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let values = used_variables(&files, &all.collect());
    let variables = Variables { values, ..Variables::default() };
    compose.content = Some(Content::Read { files, variables });
    facts
}

#[test]
fn compose_files_are_judged_from_saved_facts() {
    let text = "services:\n  web:\n    image: hunter2\n    pids_limit: \"${LIMIT:-25}\"\n";
    let saved = serde_json::to_string(&schema_2(text, &[("TOKEN", "hunter2")])).unwrap();
    assert!(!saved.contains("\"says\"") && !saved.contains("hunter2"), "{saved}");
    let facts: Facts = serde_json::from_str(&saved).unwrap();
    let old: Facts = serde_json::from_str(SCHEMA_1).unwrap();
    assert_eq!(judge(&facts), judge(&old), "both schemas give the same report for the same file");
    // Only the file in the facts decides, not an earlier result.
    let facts = schema_2("services: {web: {image: x}}", &[]);
    assert_eq!(codes(&judge(&facts)), [Code::NeverDeclared]);
    let facts = schema_2("services: {web: {pids_limit: $LIMIT}}", &[("LIMIT", "40")]);
    assert_eq!(judge(&facts).declared, Some(40));
}
