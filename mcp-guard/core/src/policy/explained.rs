//! Which rule applies to a container, and where each value comes from.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    Layer, Leaf, Mode, Policy, Response, Workload,
    shown::{defaults, quoted, title},
    stated::{ServerEntry, terms},
};

/// A value, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlacedValue {
    /// The key, such as `detect.duplicates.act`.
    pub key: String,
    /// As TOML writes it.
    pub value: String,
    /// `FILE:LINE`, or `default`.
    pub origin: String,
}

/// A rule, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlacedRule {
    /// Its number among all rules, from 1.
    pub number: usize,
    /// The keys that must match, such as `name = "a*"`.
    pub matches: String,
    /// `FILE:LINE`.
    pub origin: String,
}

/// The terms that apply to the servers of one identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExplainedServer {
    pub identity: String,
    pub ignore: bool,
    /// The entries that apply, the more specific first.
    pub entries: Vec<String>,
    /// The values that these entries set.
    pub values: Vec<PlacedValue>,
}

/// All that the policy says about a container or a cgroup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explained {
    pub is_guarded: bool,
    /// The rule that applies. `None` if there are no rules, or none matches.
    pub rule: Option<PlacedRule>,
    /// Later rules that match too, and do not apply.
    pub shadowed: Vec<PlacedRule>,
    pub mode: Option<Mode>,
    pub highest: Option<Response>,
    /// `mode`, `highest` and `pids_limit`, and every threshold and response that a file sets.
    pub values: Vec<PlacedValue>,
    /// The identities that were asked about and to which other terms apply.
    pub servers: Vec<ExplainedServer>,
}

impl Policy {
    /// Explains what applies to a workload, and to the servers of these identities in it.
    #[must_use]
    pub fn explain<'a>(
        &self,
        workload: &Workload,
        identities: impl Iterator<Item = &'a str>,
    ) -> Explained {
        let matching: Vec<usize> = self.matching(workload).collect();
        let placed = |at: &usize| self.placed_rule(*at);
        let terms = self.terms(workload);
        let rule = terms.and_then(|terms| terms.rule);
        let servers = identities.filter_map(|identity| self.explain_server(rule, identity));
        Explained {
            is_guarded: terms.is_some(),
            rule: matching.first().and_then(placed),
            shadowed: matching.iter().skip(1).filter_map(placed).collect(),
            mode: terms.map(|terms| terms.mode),
            highest: terms.map(|terms| terms.highest),
            values: terms.map_or_else(Vec::new, |_| self.values_of(rule)),
            servers: if terms.is_some() { servers.collect() } else { Vec::new() },
        }
    }

    /// Returns the place of each rule that matches.
    pub fn matching(&self, workload: &Workload) -> impl Iterator<Item = usize> {
        let all = self.guard.iter().enumerate();
        all.filter(|(_, rule)| rule.matches(workload)).map(|(at, _)| at)
    }

    /// Returns a rule, and where it stands.
    #[must_use]
    pub fn placed_rule(&self, at: usize) -> Option<PlacedRule> {
        let said = self.stated.rules.get(at)?;
        let origin = self.place(&said.origin);
        Some(PlacedRule { number: at + 1, matches: title(&said.layer), origin })
    }

    fn placed_value(&self, (key, leaf): (&str, &Leaf)) -> PlacedValue {
        let (value, origin) = (leaf.value.to_string(), self.place(&leaf.origin));
        PlacedValue { key: key.to_owned(), value, origin }
    }

    fn values_of(&self, rule: Option<usize>) -> Vec<PlacedValue> {
        let nothing = Layer::default();
        let said = rule.and_then(|rule| self.stated.rules.get(rule));
        let own = said.map_or(&nothing, |said| &said.layer);
        let mut values = Vec::new();
        let mode = own.get("mode").or_else(|| self.stated.all.get("mode"));
        let default = defaults().remove("mode");
        for (key, leaf, default) in [
            ("mode", mode, default.map(|mode| mode.to_string())),
            ("highest", own.get("highest"), Some("\"freeze\"".to_owned())),
            ("pids_limit", own.get("pids_limit"), None),
        ] {
            let (key, origin) = (key.to_owned(), "default".to_owned());
            let unset = default.map(|value| PlacedValue { key: key.clone(), value, origin });
            values.extend(leaf.map(|leaf| self.placed_value((&key, leaf))).or(unset));
        }
        let all = terms(&self.stated.all).covered(&terms(own));
        values.extend(all.iter().map(|one| self.placed_value(one)));
        values
    }

    fn explain_server(&self, rule: Option<usize>, identity: &str) -> Option<ExplainedServer> {
        let scope = self.scope(rule);
        let (own, global) = scope.entries(identity);
        let own = own.and_then(|at| self.stated.rules.get(rule?)?.servers.get(at));
        let global = global.and_then(|at| self.stated.servers.get(at));
        let name = |prefix: &str, entry: &ServerEntry| {
            format!("[{prefix}server.{}]", quoted(entry.pattern.text()))
        };
        let entries: Vec<String> = own
            .map(|entry| name("guard.", entry))
            .into_iter()
            .chain(global.map(|entry| name("", entry)))
            .collect();
        let mut layer = Layer::default();
        for entry in [global, own].into_iter().flatten() {
            layer.cover(&entry.layer);
        }
        let values = layer.iter().map(|one| self.placed_value(one)).collect();
        let ignore = scope.of(scope.variant(identity)).ignore;
        let identity = identity.to_owned();
        (!entries.is_empty()).then_some(ExplainedServer { identity, ignore, entries, values })
    }

    /// Lists what can never apply: rules that an earlier one shadows, because it matches every container.
    #[must_use]
    pub fn unreachable(&self) -> Vec<(PlacedRule, PlacedRule)> {
        let matches_all = |layer: &Layer| {
            let set: BTreeMap<_, _> = super::shown::MATCHERS
                .iter()
                .filter_map(|key| Some((*key, layer.get(key)?.value.as_str()?)))
                .collect();
            set.len() == 1 && set.get("name") == Some(&"*")
        };
        let first = self.stated.rules.iter().position(|rule| matches_all(&rule.layer));
        let Some(first) = first else { return Vec::new() };
        let later = first + 1..self.stated.rules.len();
        later.filter_map(|at| Some((self.placed_rule(at)?, self.placed_rule(first)?))).collect()
    }

    /// Lists the patterns of all entries for servers, each with where it stands and the rule that it is in.
    pub fn server_patterns(&self) -> impl Iterator<Item = (&super::Pattern, String)> {
        let in_rules = self.stated.rules.iter().flat_map(|rule| &rule.servers);
        let all = self.stated.servers.iter().chain(in_rules);
        all.map(|entry| {
            let first = entry.layer.iter().next();
            (&entry.pattern, first.map_or_else(String::new, |(_, leaf)| self.place(&leaf.origin)))
        })
    }
}
