//! The policy in force as a person reads it: as TOML with the origin of each value, and as a list of changes.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use toml::{Table, Value};

use super::{
    File, Layer, Leaf, Looks, Mode, Policy, Respond, ValueOrigin,
    stated::{RuleLayer, ServerEntry},
};
use crate::escape::visible_within;

/// Most bytes shown of one change.
const MOST_SHOWN: usize = 512;
/// Column at which the origins begin, if the values leave room.
const COLUMN: usize = 44;
/// The keys of a rule that say what it matches.
pub(super) const MATCHERS: [&str; 7] =
    ["name", "image", "label", "compose_project", "compose_service", "unit", "cgroup"];

/// The keys that have a default.
#[derive(Serialize)]
struct Defaults {
    mode: Mode,
    detect: super::Detect,
    respond: Respond,
    evidence: Looks,
}

/// Returns the default of each key that has one.
pub(super) fn defaults() -> BTreeMap<String, Value> {
    let File { mode, detect, respond, evidence, .. } = File::default();
    let all = Defaults { mode, detect, respond, evidence };
    let mut found = BTreeMap::new();
    // Each of these types is written as TOML.
    if let Ok(table) = Table::try_from(&all) {
        flatten("", table, &mut found);
    }
    found
}

fn flatten(path: &str, table: Table, found: &mut BTreeMap<String, Value>) {
    for (key, value) in table {
        let path = format!("{path}{key}");
        if let Value::Table(below) = value {
            flatten(&format!("{path}."), below, found);
        } else {
            found.insert(path, value);
        }
    }
}

/// Returns a name as a key of TOML.
pub(super) fn quoted(name: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if !name.is_empty() && name.chars().all(is_bare) {
        return name.to_owned();
    }
    serde_json::Value::from(name).to_string().replace('\u{7f}', "\\u007f")
}

/// Returns what a rule matches, such as `name = "a*", unit = "b"`.
pub(super) fn title(rule: &Layer) -> String {
    let one = |key: &&str| Some(format!("{key} = {}", rule.get(key)?.value));
    MATCHERS.iter().filter_map(one).collect::<Vec<_>>().join(", ")
}

/// Lines of TOML, each with a comment.
#[derive(Default)]
struct Lines(Vec<(String, String)>);

impl Lines {
    fn push(&mut self, text: String, comment: String) {
        self.0.push((text, comment));
    }

    fn begin(&mut self, header: String, comment: String) {
        self.push(String::new(), String::new());
        self.push(header, comment);
    }

    /// Adds values, and the header of each table before its first key. `prefix`: the path of the table that they are in.
    fn values(&mut self, prefix: &str, values: &BTreeMap<String, (Value, String)>) {
        let split = |key: &str| match key.rsplit_once('.') {
            Some((table, key)) => (table.to_owned(), key.to_owned()),
            None => (String::new(), key.to_owned()),
        };
        let mut all: Vec<_> = values.iter().map(|(key, value)| (split(key), value)).collect();
        // A key without a table would belong to the table above it.
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        let mut table = String::new();
        for ((inside, key), (value, origin)) in all {
            if inside != table {
                self.begin(format!("[{prefix}{inside}]"), String::new());
                table = inside;
            }
            self.push(format!("{key} = {value}"), origin.clone());
        }
    }

    fn render(self) -> String {
        let mut text = String::new();
        for (line, comment) in self.0 {
            if comment.is_empty() {
                text += &format!("{line}\n");
            } else {
                text += &format!("{line:<COLUMN$}  # {comment}\n");
            }
        }
        text
    }
}

impl Policy {
    /// Returns where a value stands, as `FILE:LINE`.
    #[must_use]
    pub fn place(&self, origin: &ValueOrigin) -> String {
        let file = self.stated.files.get(origin.file).map_or("", String::as_str);
        let separator = if file.is_empty() { "line " } else { ":" };
        format!("{file}{separator}{}", origin.line)
    }

    fn placed(&self, layer: &Layer) -> BTreeMap<String, (Value, String)> {
        let one = |(key, leaf): (&str, &Leaf)| {
            (key.to_owned(), (leaf.value.clone(), self.place(&leaf.origin)))
        };
        layer.iter().map(one).collect()
    }

    /// Returns the policy in force as one file, with the origin of each value in a comment.
    #[must_use]
    pub fn show(&self) -> String {
        let mut lines = Lines::default();
        let default = |value: Value| (value, "default".to_owned());
        let mut all: BTreeMap<_, _> =
            defaults().into_iter().map(|(key, value)| (key, default(value))).collect();
        all.extend(self.placed(&self.stated.all));
        lines.values("", &all);
        for entry in &self.stated.servers {
            self.show_server(&mut lines, "", entry);
        }
        for rule in &self.stated.rules {
            self.show_rule(&mut lines, rule, &all["mode"]);
        }
        for launcher in &self.stated.launchers {
            lines.begin("[[launcher]]".to_owned(), String::new());
            lines.values("launcher.", &self.placed(launcher));
        }
        lines.render()
    }

    fn show_server(&self, lines: &mut Lines, prefix: &str, entry: &ServerEntry) {
        let name = format!("{prefix}server.{}", quoted(entry.pattern.text()));
        let values = self.placed(&entry.layer);
        if values.contains_key("ignore") || values.is_empty() {
            lines.begin(format!("[{name}]"), String::new());
        }
        lines.values(&format!("{name}."), &values);
    }

    fn show_rule(&self, lines: &mut Lines, rule: &RuleLayer, mode: &(Value, String)) {
        lines.begin("[[guard]]".to_owned(), String::new());
        let mut values = self.placed(&rule.layer);
        values.entry("mode".to_owned()).or_insert_with(|| mode.clone());
        let highest = Value::from(super::rule::default_highest().to_string());
        values.entry("highest".to_owned()).or_insert((highest, "default".to_owned()));
        lines.values("guard.", &values);
        for entry in &rule.servers {
            self.show_server(lines, "guard.", entry);
        }
    }

    /// Lists what another policy changes, at most `most` things.
    #[must_use]
    pub fn changes(&self, other: &Self, most: usize) -> Vec<String> {
        let (before, after) = (self.listed(), other.listed());
        let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        let change = |key: &&String| match (before.get(*key), after.get(*key)) {
            (Some(one), Some(other)) if one == other => None,
            (Some(one), Some(other)) => Some(format!("{key}: {one} -> {other}")),
            (None, Some(value)) if !value.is_empty() => Some(format!("new: {key} = {value}")),
            (None, _) => Some(format!("new: {key}")),
            (Some(_), None) => Some(format!("gone: {key}")),
        };
        let shown = |change: String| visible_within(&change, MOST_SHOWN);
        let mut all: Vec<String> = keys.iter().filter_map(change).map(shown).collect();
        if all.is_empty() && self.titles() != other.titles() {
            all.push("the order of the rules".to_owned());
        }
        if all.len() > most {
            let more = all.len() - most;
            all.truncate(most);
            all.push(format!("and {more} more"));
        }
        all
    }

    /// Returns what each rule matches. Rules that match the same are numbered.
    pub(super) fn titles(&self) -> Vec<String> {
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        let mut titles = Vec::new();
        for rule in &self.stated.rules {
            let title = format!("[[guard]] {}", title(&rule.layer));
            let times = seen.entry(title.clone()).or_default();
            *times += 1;
            titles.push(if *times > 1 { format!("{title} ({times})") } else { title });
        }
        titles
    }

    /// Lists all values by a name that says where they apply.
    fn listed(&self) -> BTreeMap<String, String> {
        let mut found: BTreeMap<String, String> =
            defaults().into_iter().map(|(key, value)| (key, value.to_string())).collect();
        let mut add = |prefix: &str, layer: &Layer, without: &[&str]| {
            for (key, leaf) in layer.iter().filter(|(key, _)| !without.contains(key)) {
                found.insert(format!("{prefix}{key}"), leaf.value.to_string());
            }
        };
        let entry = |prefix: &str, one: &ServerEntry| {
            format!("{prefix}server.{}.", quoted(one.pattern.text()))
        };
        add("", &self.stated.all, &[]);
        self.stated.servers.iter().for_each(|one| add(&entry("", one), &one.layer, &[]));
        for (title, rule) in self.titles().iter().zip(&self.stated.rules) {
            let prefix = format!("{title}: ");
            add(&prefix, &rule.layer, &MATCHERS);
            rule.servers.iter().for_each(|one| add(&entry(&prefix, one), &one.layer, &[]));
        }
        for layer in &self.stated.launchers {
            let program =
                layer.get("program").map_or_else(String::new, |leaf| leaf.value.to_string());
            let words =
                layer.get("subcommand").map_or_else(String::new, |leaf| leaf.value.to_string());
            add(&format!("[[launcher]] {program} {words}: "), layer, &["program", "subcommand"]);
        }
        for title in self.titles() {
            found.insert(title, String::new());
        }
        found
    }
}
