//! Keeps the tables of `docs/policy.md`, and the JSON Schema in the package, equal to the types of the policy.

use std::{
    borrow::Cow,
    collections::BTreeSet,
    fmt::Write as _,
    path::{Path, PathBuf},
};

use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings, json_schema};
use serde_json::{Map, Value, json};

use super::super::{CgroupPattern, DurationText, File, Layer, Pattern, source::SourceLines};

/// The line from which the file is generated.
const BEGIN: &str = "<!-- keys: begin -->\n";

impl JsonSchema for DurationText {
    fn schema_name() -> Cow<'static, str> {
        "duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let examples = ["30s", "5min", "1h"];
        json_schema!({ "type": "string", "examples": examples, "x-kind": "duration" })
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

impl JsonSchema for CgroupPattern {
    fn schema_name() -> Cow<'static, str> {
        "cgroup".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^/" })
    }
}

/// The keys of a table that stands at the top, too.
fn same_as(path: &str) -> Schema {
    json_schema!({ "$ref": format!("#/properties/{path}") })
}

pub(in crate::policy) fn guard_detect(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "$ref": "#/properties/detect", "not": { "required": ["herd"] } })
}

pub(in crate::policy) fn respond(_: &mut SchemaGenerator) -> Schema {
    same_as("respond")
}

pub(in crate::policy) fn server(_: &mut SchemaGenerator) -> Schema {
    same_as("server")
}

/// The detectors that count servers.
pub(in crate::policy) fn server_detect(_: &mut SchemaGenerator) -> Schema {
    let known = ["burning", "burst", "crash", "disconnected", "duplicates", "growth"];
    let same = |name: &str| (name.to_owned(), same_as(&format!("detect/properties/{name}")).into());
    let properties: Map<String, Value> = known.iter().map(|name| same(name)).collect();
    json_schema!({ "type": "object", "properties": properties, "additionalProperties": false, "x-keys": "detect" })
}

fn schema() -> Schema {
    // Everything in place, without references.
    let settings =
        SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    SchemaGenerator::new(settings).into_root_schema_for::<File>()
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
            Some((table, Form::List)) => tables(text, &format!("[[{name}]]"), table),
            Some((table, Form::Table)) => tables(text, &format!("[{name}]"), table),
            Some((table, Form::Named)) => {
                tables(text, &format!("[{name}.\"IDENTITY\"]"), table);
            }
            None => {}
        }
    }
}

enum Form {
    Table,
    List,
    /// A table of tables, with names that a person chooses.
    Named,
}

/// The table that a key is.
fn table_of(key: &Value) -> Option<(&Map<String, Value>, Form)> {
    let (table, form) = match (key.get("items"), key.get("additionalProperties")) {
        (Some(items), _) => (items, Form::List),
        (None, Some(Value::Object(_))) => (&key["additionalProperties"], Form::Named),
        (None, _) => (key, Form::Table),
    };
    let table = table.as_object()?;
    let is_one = table.contains_key("properties") && !table.contains_key("x-keys");
    is_one.then_some((table, form))
}

fn kind(key: &Value) -> String {
    let same = key.get("$ref").and_then(Value::as_str);
    if let Some(table) = same.and_then(|path| path.strip_prefix("#/properties/")) {
        return format!("keys as in `[{table}]`");
    }
    if let Some(table) = key.get("x-keys").and_then(Value::as_str) {
        let names = key["properties"].as_object().into_iter().flat_map(Map::keys);
        let tables: Vec<_> = names.map(|name| format!("`[{table}.{name}]`")).collect();
        return format!("tables as {}", tables.join(", "));
    }
    let words = words(key);
    if !words.is_empty() {
        return words.iter().map(|word| format!("`\"{word}\"`")).collect::<Vec<_>>().join(", ");
    }
    let list = key["type"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let kinds: Vec<&str> = list.chain(key["type"].as_str()).collect();
    match kinds.first() {
        Some(&"integer") => "number".to_owned(),
        Some(&"boolean") => "`true`, `false`".to_owned(),
        Some(&"array") => "list of texts".to_owned(),
        Some(_) if key["x-kind"] == "duration" => "duration".to_owned(),
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
        Some(Value::Object(_)) => "none".to_owned(),
        Some(value) => format!("`{value}`"),
    }
}

/// A doc comment on one line of a table.
fn line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Compares a generated file with the one that is kept, or writes it.
fn is_kept(file: &str, expected: &str) {
    let path = repository().join(file);
    if std::env::var_os("MCP_GUARD_BLESS").is_some() {
        std::fs::write(&path, expected).expect(file);
        return;
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(found, expected, "{file} is out of date: run `cargo xtask docs`");
}

#[test]
fn the_policy_reference_shows_every_key_with_its_default() {
    let found = std::fs::read_to_string(repository().join("docs/policy.md")).expect("the file");
    let (head, _) = found.split_once(BEGIN).expect("the line that begins the tables");
    let mut expected = format!("{head}{BEGIN}");
    tables(&mut expected, "", schema().as_object().expect("a table"));
    assert!(!expected.contains("|  |"), "every key has a doc comment");
    is_kept("docs/policy.md", &expected);
}

#[test]
fn the_shipped_schema_is_that_of_the_types() {
    let mut schema = serde_json::to_value(schema()).expect("JSON");
    schema["title"] = json!("The policy of mcp-guard");
    let text = serde_json::to_string_pretty(&schema).expect("JSON") + "\n";
    is_kept("package/usr/share/mcp-guard/policy.schema.json", &text);
}

/// The names of all keys below a table of the schema, without those that refer to another table.
fn keys(path: &str, schema: &Map<String, Value>, found: &mut BTreeSet<String>) {
    for (name, key) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let name = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match table_of(key) {
            Some((table, _)) => keys(&name, table, found),
            None if key.get("$ref").is_none() && key.get("x-keys").is_none() => {
                found.insert(name);
            }
            None => {}
        }
    }
}

/// Every key of the schema stands in the example, and the example has no other.
#[test]
fn the_example_has_every_key() {
    let mut known = BTreeSet::new();
    keys("", schema().as_object().expect("a table"), &mut known);
    let text = include_str!("../../../../../docs/policy.example.toml");
    let tree = toml::de::DeTable::parse(text).expect("TOML");
    let (tree, mut layer) = (tree.get_ref(), Layer::default());
    let lines = SourceLines::of(0, text);
    layer.take(&lines, tree, &["guard", "server", "launcher"]).expect("values");
    let mut stated: BTreeSet<String> = layer.iter().map(|(key, _)| key.to_owned()).collect();
    for (list, without) in [("guard", ["detect", "respond", "server"]), ("launcher", [""; 3])] {
        for (_, table) in super::super::layer::tables(tree.get(list)) {
            let mut layer = Layer::default();
            layer.take(&lines, table, &without).expect("values");
            stated.extend(layer.iter().map(|(key, _)| format!("{list}.{key}")));
        }
    }
    for (_, entry) in tree["server"].get_ref().as_table().expect("entries") {
        let mut layer = Layer::default();
        let table = entry.get_ref().as_table().expect("an entry");
        layer.take(&lines, table, &["detect", "respond"]).expect("values");
        stated.extend(layer.iter().map(|(key, _)| format!("server.{key}")));
    }
    let both = (known.difference(&stated).count(), stated.difference(&known).count());
    assert_eq!((both, known), ((0, 0), stated));
}
