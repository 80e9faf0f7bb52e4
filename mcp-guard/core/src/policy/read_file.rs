//! Takes the values that one file states.

use std::{collections::BTreeMap, ops::Range};

use toml::de::DeTable;

use super::{
    Error, Layer, Pattern, PolicySource, fault,
    layer::tables,
    source::SourceLines,
    stated::{RuleLayer, ServerEntry, Stated},
};

/// Most rules, most launchers, and most entries for servers at one place: in a rule, and outside the rules. A policy
/// for hundreds of containers and packages stays far below.
const MOST_RULES: usize = 10_000;
const MOST_LAUNCHERS: usize = 1000;
const MOST_SERVERS: usize = 1000;

/// One file while it is read.
pub(super) struct ReadFile<'a> {
    pub sources: &'a [PolicySource],
    pub tree: &'a DeTable<'a>,
    pub lines: SourceLines,
}

impl ReadFile<'_> {
    pub fn wrong(&self, error: &toml::de::Error) -> Error {
        Error { file: self.lines.file(), text: error.to_string() }
    }

    fn error(&self, span: &Range<usize>, why: &str) -> Error {
        fault::error(self.sources, self.lines.file(), span, why)
    }

    /// Refuses rules and launchers in single brackets. The message of the parser would not name them.
    pub fn check_brackets(&self) -> Result<(), Error> {
        for name in ["guard", "launcher"] {
            let Some((key, value)) = self.tree.get_key_value(name) else { continue };
            let Some(table) = value.get_ref().as_table() else { continue };
            let below = table.iter().find(|(_, value)| value.get_ref().as_table().is_some());
            let why = match below {
                Some((below, _)) => belongs_below(name, below.get_ref()),
                None => format!("[{name}] must have double brackets: [[{name}]]"),
            };
            return Err(self.error(&key.span(), &why));
        }
        Ok(())
    }

    pub fn take_into(&self, stated: &mut Stated, servers: &mut ServerLayers) -> Result<(), Error> {
        let wrong = |error: toml::de::Error| self.wrong(&error);
        let Self { tree, lines, .. } = self;
        stated.all.take(lines, tree, &["guard", "server", "launcher"]).map_err(wrong)?;
        servers.take(self, tree)?;
        for (span, table) in tables(tree.get("launcher")) {
            if stated.launchers.len() == MOST_LAUNCHERS {
                return Err(self.error(&span, &too_many("launchers", MOST_LAUNCHERS)));
            }
            let mut layer = Layer::default();
            layer.take(lines, table, &[]).map_err(wrong)?;
            stated.launchers.push(layer);
        }
        for (span, table) in tables(tree.get("guard")) {
            if stated.rules.len() == MOST_RULES {
                return Err(self.error(&span, &too_many("rules", MOST_RULES)));
            }
            let (mut layer, mut own) = (Layer::default(), ServerLayers::default());
            layer.take(lines, table, &["server"]).map_err(wrong)?;
            own.take(self, table)?;
            let (origin, servers) = (lines.origin(span), own.by_precedence());
            stated.rules.push(RuleLayer { origin, layer, servers });
        }
        Ok(())
    }
}

/// Returns the error for a text that is no TOML.
pub(super) fn syntax(file: usize, text: &str, error: &toml::de::Error) -> Error {
    let is_guard = error.span().is_some_and(|span| text.get(span) == Some("guard"));
    let hint = if is_guard && error.message() == "duplicate key" {
        format!("{}\n", belongs_below("guard", "..."))
    } else {
        String::new()
    };
    Error { file, text: format!("{error}{hint}") }
}

fn belongs_below(name: &str, key: &str) -> String {
    format!(
        "[{name}.{key}] belongs below a [[{name}]] in the same file: begin with [[{name}]] and the keys \
         that say which one it is"
    )
}

fn too_many(things: &str, most: usize) -> String {
    format!("too many {things}: a policy may have {most} in all its files; use patterns with `*`")
}

/// The entries for servers of all files.
#[derive(Default)]
pub(super) struct ServerLayers(BTreeMap<String, ServerLayer>);

#[derive(Default)]
struct ServerLayer {
    /// Where it was last read: the file, and the place in it.
    last: (usize, usize),
    layer: Layer,
}

impl ServerLayers {
    /// Takes the entries that a table has.
    fn take(&mut self, one: &ReadFile<'_>, table: &DeTable<'_>) -> Result<(), Error> {
        let entries = table.get("server").and_then(|entries| entries.get_ref().as_table());
        for (name, entry) in entries.into_iter().flatten() {
            let Some(table) = entry.get_ref().as_table() else { continue };
            if self.0.len() == MOST_SERVERS && !self.0.contains_key(name.get_ref().as_ref()) {
                let why = too_many("entries for servers at one place", MOST_SERVERS);
                return Err(one.error(&name.span(), &why));
            }
            let known = self.0.entry(name.get_ref().to_string()).or_default();
            known.last = (one.lines.file(), name.span().start);
            known.layer.take(&one.lines, table, &[]).map_err(|error| one.wrong(&error))?;
        }
        Ok(())
    }

    /// Returns the entries, the most specific first: names, then the patterns with the most characters that must be
    /// there as they are, then what was read last.
    pub fn by_precedence(self) -> Vec<ServerEntry> {
        let entry = |(name, known): (String, ServerLayer)| (Pattern::from(name), known);
        let mut all: Vec<_> = self.0.into_iter().map(entry).collect();
        all.sort_by_key(|(pattern, known)| {
            std::cmp::Reverse((pattern.is_exact(), pattern.literals(), known.last))
        });
        all.into_iter()
            .map(|(pattern, known)| ServerEntry { pattern, layer: known.layer })
            .collect()
    }
}
