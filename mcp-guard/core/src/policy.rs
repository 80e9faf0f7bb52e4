//! The policy files, typed and validated. An unknown key is an error, because a typo must not
//! silently turn off a protection.

mod detect;
mod duration;
mod explained;
mod fault;
mod file;
mod keys;
mod layer;
mod load;
mod looks;
mod pattern;
mod read_file;
mod respond;
mod response;
mod rule;
mod scope;
mod shown;
mod source;
mod stated;
mod workload;

pub use self::{
    detect::{
        Burning, Burst, CrashLoop, Detect, Disconnected, Duplicates, Emergency, Growth, Headroom,
        Herd, Raw, Tasks, Zombies,
    },
    explained::{Explained, ExplainedServer, PlacedRule, PlacedValue},
    fault::Error,
    file::File,
    keys::{ServerDetect, ServerKeys, SomeKeys},
    layer::{Layer, Leaf},
    looks::Looks,
    pattern::{CgroupPattern, Pattern},
    respond::Respond,
    response::{Mode, Response, ServerResponse},
    rule::{Rule, unit_of},
    scope::{Applied, Scope, Variant},
    source::{PolicySource, ValueOrigin},
    workload::{Terms, Workload},
};
use self::{duration::DurationText, fault::Fault, stated::Stated};
use crate::server::Launcher;

/// All files of the policy together.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    pub mode: Mode,
    pub evidence: Looks,
    /// The first match applies. Without any rule, every container is guarded.
    pub guard: Vec<Rule>,
    pub launcher: Vec<Launcher>,
    /// The terms of guards whose rule has none of its own.
    scope: Scope,
    /// The values that the files state, with their origins.
    stated: Stated,
}

impl Default for Policy {
    fn default() -> Self {
        let scope = Scope::new(Applied::default());
        Self {
            mode: Mode::default(),
            evidence: Looks::default(),
            guard: Vec::new(),
            launcher: Vec::new(),
            scope,
            stated: Stated::default(),
        }
    }
}

impl Policy {
    /// Reads a policy of one file.
    ///
    /// # Errors
    /// If the text has a syntax error, an unknown key, a wrong type, or values that contradict each
    /// other.
    pub fn parse(text: &str) -> Result<Self, Error> {
        Self::load(&[PolicySource { name: String::new(), text: text.to_owned() }])
    }

    /// Returns the terms for a workload, or `None` if it is not guarded.
    #[must_use]
    pub fn terms(&self, workload: &Workload) -> Option<Terms> {
        if self.guard.is_empty() {
            return Some(Terms::new(self.mode, rule::default_highest()));
        }
        let (at, rule) = self.guard.iter().enumerate().find(|(_, rule)| rule.matches(workload))?;
        let mode = rule.mode.unwrap_or(self.mode);
        let Rule { highest, pids_limit, .. } = *rule;
        Some(Terms { mode, highest, pids_limit, rule: Some(at) })
    }

    /// Whether another policy leads to the same decisions. It may stand in other files and lines.
    #[must_use]
    pub fn means_the_same_as(&self, other: &Self) -> bool {
        // All that the files state has been merged into the other fields.
        let Self { mode, evidence, guard, launcher, scope, stated: _ } = self;
        (mode, evidence, guard, launcher, scope)
            == (&other.mode, &other.evidence, &other.guard, &other.launcher, &other.scope)
    }

    /// Returns what applies in the guards of a rule.
    #[must_use]
    pub fn scope(&self, rule: Option<usize>) -> &Scope {
        let own = rule.and_then(|rule| self.guard.get(rule)?.scope.as_ref());
        own.unwrap_or(&self.scope)
    }

    /// Returns the thresholds of guards whose rule has none of its own.
    #[must_use]
    pub fn detect(&self) -> &Detect {
        &self.scope.all().detect
    }

    /// Returns how responses are carried out in guards whose rule does not say it.
    #[must_use]
    pub fn respond(&self) -> &Respond {
        &self.scope.all().respond
    }
}

#[cfg(test)]
mod tests;
