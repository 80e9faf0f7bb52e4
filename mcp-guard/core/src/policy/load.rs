//! Reads the files of a policy, and merges them.

use serde::de::DeserializeOwned;
use toml::de::DeTable;

use super::{
    Applied, Error, Fault, File, Launcher, Layer, Policy, PolicySource, Rule, Scope, ValueOrigin,
    fault,
    read_file::{ReadFile, ServerLayers, syntax},
    source::SourceLines,
    stated::{RuleLayer, ServerEntry, Stated, terms},
};

/// Most pairs of an entry for servers in a guard and one for all guards, in all guards together. Each is merged when
/// the policy is read.
const MOST_PAIRS: usize = 10_000;
/// The table of the detector that counts containers, whether they are guarded or not.
const HERD: &str = "detect.herd.";

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
            let typed: File = toml::from_str(text).map_err(|error| one.wrong(&error))?;
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
            rule.validate()
                .and_then(|()| without_herds(layer))
                .map_err(|fault| fault.in_layer(layer, sources))?;
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

/// Rejects terms for herds in a rule.
fn without_herds(rule: &Layer) -> Result<(), Fault> {
    match rule.iter().find(|(key, _)| key.starts_with(HERD)) {
        Some((key, _)) => Err(Fault::at(
            key,
            "cannot be set for a guard, because a herd has containers that match different rules or none: \
             put it into [detect.herd] at the top of the file",
        )),
        None => Ok(()),
    }
}
