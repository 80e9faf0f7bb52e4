//! Reads the files of a policy, and merges them.

use std::{collections::BTreeMap, ops::Range};

use serde::de::DeserializeOwned;
use toml::de::DeTable;

use super::{
    Applied, Error, Fault, File, Launcher, Layer, Pattern, Policy, PolicySource, Rule, Scope,
    ValueOrigin, fault, layer::tables, source::SourceLines,
};

/// Most rules, most launchers, and most entries for servers at one place: in a rule, and outside the rules. A policy
/// for hundreds of containers and packages stays far below.
const MOST_RULES: usize = 10_000;
const MOST_LAUNCHERS: usize = 1000;
const MOST_SERVERS: usize = 1000;
/// Most pairs of an entry for servers in a guard and one for all guards, in all guards together. Each is merged when
/// the policy is read.
const MOST_PAIRS: usize = 10_000;

/// An entry for the servers of some identities.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ServerEntry {
    pub(super) pattern: Pattern,
    pub(super) layer: Layer,
}

/// The values that one rule states.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct RuleLayer {
    pub(super) origin: ValueOrigin,
    pub(super) layer: Layer,
    pub(super) servers: Vec<ServerEntry>,
}

/// All values that the files state.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Stated {
    /// The names of the files.
    pub(super) files: Vec<String>,
    /// The values at the top of all files, later ones over earlier ones.
    pub(super) all: Layer,
    pub(super) rules: Vec<RuleLayer>,
    pub(super) servers: Vec<ServerEntry>,
    pub(super) launchers: Vec<Layer>,
}

impl Policy {
    /// Reads a policy of several files. In a later file, keys override those of an earlier one, and rules and launchers
    /// are added.
    ///
    /// # Errors
    /// If a file has a syntax error, an unknown key, a wrong type, or values that contradict each other.
    pub fn load(sources: &[PolicySource]) -> Result<Self, Error> {
        let (mut guard, mut launcher) = (Vec::new(), Vec::new());
        let (mut stated, mut servers) = (Stated::default(), ServerLayers::default());
        for (file, source) in sources.iter().enumerate() {
            let text = &source.text;
            let tree = DeTable::parse(text).map_err(|error| syntax(file, text, &error))?;
            let one =
                ReadFile { sources, tree: tree.get_ref(), lines: SourceLines::of(file, text) };
            one.check_brackets()?;
            let wrong = |error: toml::de::Error| Error { file, text: error.to_string() };
            let typed: File = toml::from_str(text).map_err(wrong)?;
            guard.extend(typed.guard);
            launcher.extend(typed.launcher);
            stated.files.push(source.name.clone());
            one.take_into(&mut stated, &mut servers)?;
        }
        stated.servers = servers.by_precedence();
        Self::merge(guard, launcher, stated, sources)
    }

    fn merge(
        guard: Vec<Rule>,
        launcher: Vec<Launcher>,
        stated: Stated,
        sources: &[PolicySource],
    ) -> Result<Self, Error> {
        let top: File = typed(&stated.all)?;
        let File { mode, evidence, .. } = top;
        let in_all = |fault: Fault| fault.in_layer(&stated.all, sources);
        evidence.validate().map_err(in_all)?;
        for (at, (rule, said)) in guard.iter().zip(&stated.rules).enumerate() {
            let RuleLayer { origin: ValueOrigin { file, span, .. }, layer, .. } = said;
            if !rule.names_something() {
                let why = format!(
                    "guard {} names no container: give name, image, label, compose_project, \
                     compose_service, unit or cgroup (name = \"*\" for all)",
                    at + 1
                );
                return Err(fault::error(sources, *file, span, &why));
            }
            rule.validate().map_err(|fault| fault.in_layer(layer, sources))?;
        }
        let mut policy = Self { mode, evidence, guard, launcher, ..Self::default() };
        policy.take_scopes(&stated, sources)?;
        policy.stated = stated;
        Ok(policy)
    }

    fn take_scopes(&mut self, stated: &Stated, sources: &[PolicySource]) -> Result<(), Error> {
        let mut pairs = stated.servers.len() + 1;
        let nothing = RuleLayer::default();
        self.scope = scope(stated, &nothing, sources)?;
        for (rule, said) in self.guard.iter_mut().zip(&stated.rules) {
            if !said.has_terms() {
                continue;
            }
            pairs = pairs.saturating_add((said.servers.len() + 1) * (stated.servers.len() + 1));
            if pairs > MOST_PAIRS {
                let why = format!(
                    "too many entries for servers: each guard with terms of its own multiplies \
                     them, up to {MOST_PAIRS}"
                );
                let ValueOrigin { file, span, .. } = &said.origin;
                return Err(fault::error(sources, *file, span, &why));
            }
            rule.scope = Some(scope(stated, said, sources)?);
        }
        Ok(())
    }
}

/// One file while it is read.
struct ReadFile<'a> {
    sources: &'a [PolicySource],
    tree: &'a DeTable<'a>,
    lines: SourceLines,
}

impl ReadFile<'_> {
    fn wrong(&self, error: &toml::de::Error) -> Error {
        Error { file: self.lines.file(), text: error.to_string() }
    }

    fn error(&self, span: &Range<usize>, why: &str) -> Error {
        fault::error(self.sources, self.lines.file(), span, why)
    }

    /// Refuses rules and launchers in single brackets. The message of the parser would not name them.
    fn check_brackets(&self) -> Result<(), Error> {
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

    fn take_into(&self, stated: &mut Stated, servers: &mut ServerLayers) -> Result<(), Error> {
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
fn syntax(file: usize, text: &str, error: &toml::de::Error) -> Error {
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

impl RuleLayer {
    /// Whether it says anything about thresholds, responses or servers.
    fn has_terms(&self) -> bool {
        !self.servers.is_empty() || !self.terms().is_empty()
    }

    /// Returns its thresholds and responses.
    pub(super) fn terms(&self) -> Layer {
        terms(&self.layer)
    }
}

/// Returns the thresholds and responses of a layer.
pub(super) fn terms(layer: &Layer) -> Layer {
    layer.below(&["detect", "respond"])
}

/// Merges what applies in a guard.
fn scope(stated: &Stated, rule: &RuleLayer, sources: &[PolicySource]) -> Result<Scope, Error> {
    let base = terms(&stated.all).covered(&rule.terms());
    let patterns = |all: &[ServerEntry]| all.iter().map(|entry| entry.pattern.clone()).collect();
    Scope::with_servers(patterns(&rule.servers), patterns(&stated.servers), |own, global| {
        // The more specific place comes last.
        let mut layer = base.clone();
        for entry in [global.map(|at| &stated.servers[at]), own.map(|at| &rule.servers[at])] {
            entry.into_iter().for_each(|entry| layer.cover(&entry.layer));
        }
        let applied: Applied = typed(&layer)?;
        applied.validate().map_err(|fault| fault.in_layer(&layer, sources))?;
        Ok(applied)
    })
}

/// Returns the merged values as what they mean. The type of each was checked in its file.
fn typed<T: DeserializeOwned>(layer: &Layer) -> Result<T, Error> {
    layer
        .table()
        .try_into()
        .map_err(|error: toml::de::Error| Error { file: 0, text: error.to_string() })
}

/// The entries for servers of all files.
#[derive(Default)]
struct ServerLayers(BTreeMap<String, ServerLayer>);

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
    fn by_precedence(self) -> Vec<ServerEntry> {
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
