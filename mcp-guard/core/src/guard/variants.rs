//! Which terms of the policy apply to each identity of one guard.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    policy::{Applied, Scope, Variant},
    registry::LiveServer,
};

/// Most identities remembered. The registry has no more.
const MOST: usize = 4096;

/// Patterns are compared once for each identity, and not for each event.
#[derive(Clone, Debug, Default)]
pub(super) struct Variants(BTreeMap<Arc<str>, Variant>);

impl Variants {
    /// Returns what applies to an identity.
    pub fn applied<'a>(&mut self, scope: &'a Scope, identity: &str) -> &'a Applied {
        scope.of(self.variant(scope, identity))
    }

    fn variant(&mut self, scope: &Scope, identity: &str) -> Variant {
        if !scope.names_servers() {
            return Variant::default();
        }
        if let Some(known) = self.0.get(identity) {
            return *known;
        }
        if self.0.len() >= MOST {
            self.0.clear();
        }
        let variant = scope.variant(identity);
        self.0.insert(identity.into(), variant);
        variant
    }

    /// Returns the servers in groups to which the same terms apply, without those that are ignored.
    pub fn groups<'a, 'b>(
        &mut self,
        scope: &'a Scope,
        servers: impl Iterator<Item = LiveServer<'b>>,
    ) -> Vec<(&'a Applied, Vec<LiveServer<'b>>)> {
        let mut groups: BTreeMap<Variant, Vec<LiveServer<'b>>> = BTreeMap::new();
        for server in servers {
            groups.entry(self.variant(scope, server.identity)).or_default().push(server);
        }
        let all = groups.into_iter().map(|(variant, servers)| (scope.of(variant), servers));
        all.filter(|(applied, _)| !applied.ignore).collect()
    }

    /// Forgets an identity that is gone.
    pub fn forget(&mut self, identity: &str) {
        self.0.remove(identity);
    }

    /// Forgets all, because the policy has changed.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}
