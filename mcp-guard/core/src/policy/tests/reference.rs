//! Keeps the tables of `docs/policy.md` equal to the types of the policy.

use std::{borrow::Cow, fmt::Write as _, path::Path, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings, json_schema};
use serde::Serializer;
use serde_json::{Map, Value};

use super::super::{DurationText, Pattern, Policy};

/// The line from which the file is generated.
const BEGIN: &str = "<!-- keys: begin -->\n";

impl DurationText {
    /// Writes a default.
    pub(in crate::policy) fn serialize<S: Serializer>(
        duration: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        humantime_serde::serialize(duration, serializer)
    }
}

impl JsonSchema for DurationText {
    fn schema_name() -> Cow<'static, str> {
        "duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "duration" })
    }
}

impl JsonSchema for Pattern {
    fn schema_name() -> Cow<'static, str> {
        "pattern".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string" })
    }
}

fn schema() -> Schema {
    // Everything in place, without references.
    let settings =
        SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    SchemaGenerator::new(settings).into_root_schema_for::<Policy>()
}

/// The tables, in alphabetical order. `path` is the TOML table, empty at the top.
fn tables(text: &mut String, path: &str, schema: &Map<String, Value>) {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return };
    let (below, keys): (Vec<_>, Vec<_>) =
        properties.iter().partition(|(_, key)| table_of(key).is_some());
    let heading = if path.is_empty() { "Top of the file".to_owned() } else { format!("`{path}`") };
    if !keys.is_empty() {
        let about = schema.get("description").and_then(Value::as_str).filter(|_| !path.is_empty());
        let _ = write!(
            text,
            "\n### {heading}\n\n{}",
            about.map_or(String::new(), |about| format!("{}\n\n", line(about)))
        );
        let _ = writeln!(text, "| key | value | default | meaning |\n|---|---|---|---|");
        let required = schema.get("required").and_then(Value::as_array);
        let is_required = |name: &str| {
            required.is_some_and(|names| names.iter().any(|required| required == name))
        };
        for (name, key) in keys {
            let about = key.get("description").and_then(Value::as_str).unwrap_or_default();
            let default = if is_required(name) { "required".to_owned() } else { default(key) };
            let _ = writeln!(text, "| `{name}` | {} | {default} | {} |", kind(key), line(about));
        }
    }
    for (name, key) in below {
        let inner = path.trim_matches(['[', ']']);
        let name = if inner.is_empty() { name.clone() } else { format!("{inner}.{name}") };
        match table_of(key) {
            Some((table, true)) => tables(text, &format!("[[{name}]]"), table),
            Some((table, false)) => tables(text, &format!("[{name}]"), table),
            None => {}
        }
    }
}

/// The table that a key is; true for one of a list.
fn table_of(key: &Value) -> Option<(&Map<String, Value>, bool)> {
    let items = key.get("items").and_then(Value::as_object);
    let is_list = items.is_some();
    let table = items.or_else(|| key.as_object())?;
    table.contains_key("properties").then_some((table, is_list))
}

fn kind(key: &Value) -> String {
    let words = words(key);
    if !words.is_empty() {
        return words.iter().map(|word| format!("`\"{word}\"`")).collect::<Vec<_>>().join(", ");
    }
    let list = key["type"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let kinds: Vec<&str> = list.chain(key["type"].as_str()).collect();
    match kinds.first() {
        Some(&"integer") => "number".to_owned(),
        Some(&"array") => "list of texts".to_owned(),
        Some(_) if key["format"] == "duration" => "duration".to_owned(),
        _ => "text".to_owned(),
    }
}

/// The words that an enum allows, also where the key may be left out.
fn words(key: &Value) -> Vec<&str> {
    let list = |name: &str| key.get(name).and_then(Value::as_array).into_iter().flatten();
    let own = list("enum").filter_map(Value::as_str);
    let one = key.get("const").and_then(Value::as_str);
    let below = list("oneOf").chain(list("anyOf")).flat_map(words);
    own.chain(one).chain(below).collect()
}

fn default(key: &Value) -> String {
    match key.get("default") {
        None | Some(Value::Null) => "none".to_owned(),
        Some(Value::Array(list)) if list.is_empty() => "none".to_owned(),
        Some(value) => format!("`{value}`"),
    }
}

/// A doc comment on one line of a table.
fn line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

#[test]
fn the_policy_reference_shows_every_key_with_its_default() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/policy.md");
    let found = std::fs::read_to_string(&file).expect("docs/policy.md");
    let (head, _) = found.split_once(BEGIN).expect("the line that begins the tables");
    let mut expected = format!("{head}{BEGIN}");
    tables(&mut expected, "", schema().as_object().expect("a table"));
    assert!(!expected.contains("|  |"), "every key has a doc comment");
    if std::env::var_os("MCP_GUARD_BLESS").is_some() {
        std::fs::write(&file, expected).expect("docs/policy.md");
    } else {
        assert_eq!(found, expected, "docs/policy.md is out of date: run `cargo xtask docs`");
    }
}
