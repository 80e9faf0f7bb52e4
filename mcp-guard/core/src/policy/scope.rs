//! The terms that apply in a guard: to all, and to the servers of some identities.

use serde::Deserialize;

use super::{Detect, Fault, Pattern, Respond};

/// Thresholds and responses, merged from all places that set them.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Applied {
    pub ignore: bool,
    pub detect: Detect,
    pub respond: Respond,
}

impl Applied {
    pub(super) fn validate(&self) -> Result<(), Fault> {
        self.detect.validate()?;
        self.respond.validate()
    }
}

/// Which terms apply to the servers of an identity. The default is those that apply to all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Variant(usize);

/// Everything is merged when the policy is read, so that nothing is merged for an event.
#[derive(Clone, Debug, PartialEq)]
pub struct Scope {
    /// The entries of the rule, and those for all guards; of each, the most specific first.
    own: Vec<Pattern>,
    global: Vec<Pattern>,
    /// One for each pair of an entry of the rule and one for all guards, or of none: see [`Scope::variant`].
    applied: Vec<Applied>,
}

impl Scope {
    /// Creates a scope without entries for servers.
    pub(super) fn new(all: Applied) -> Self {
        Self { own: Vec::new(), global: Vec::new(), applied: vec![all] }
    }

    /// Creates a scope. `applied` merges what applies for a pair of entries.
    pub(super) fn with_servers<E>(
        own: Vec<Pattern>,
        global: Vec<Pattern>,
        mut applied: impl FnMut(Option<usize>, Option<usize>) -> Result<Applied, E>,
    ) -> Result<Self, E> {
        let places = |count: usize| std::iter::once(None).chain((0..count).map(Some));
        let mut all = Vec::new();
        for one in places(own.len()) {
            for other in places(global.len()) {
                all.push(applied(one, other)?);
            }
        }
        Ok(Self { own, global, applied: all })
    }

    /// Returns what applies where no entry for a server does.
    #[must_use]
    pub fn all(&self) -> &Applied {
        self.of(Variant::default())
    }

    #[must_use]
    pub fn of(&self, variant: Variant) -> &Applied {
        self.applied.get(variant.0).unwrap_or(&self.applied[0])
    }

    /// Whether there are entries for servers.
    #[must_use]
    pub fn names_servers(&self) -> bool {
        self.applied.len() > 1
    }

    /// Returns which terms apply to an identity.
    #[must_use]
    pub fn variant(&self, identity: &str) -> Variant {
        let (own, global) = self.entries(identity);
        let place = |entry: Option<usize>| entry.map_or(0, |entry| entry + 1);
        Variant(place(own) * (self.global.len() + 1) + place(global))
    }

    /// Returns which entries apply to an identity: one of the rule, and one for all guards.
    #[must_use]
    pub fn entries(&self, identity: &str) -> (Option<usize>, Option<usize>) {
        let first = |all: &[Pattern]| all.iter().position(|one| one.matches(identity));
        (first(&self.own), first(&self.global))
    }
}
