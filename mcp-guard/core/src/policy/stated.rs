//! The values that the files state, before they are merged.

use super::{Layer, Pattern, ValueOrigin};

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

impl RuleLayer {
    /// Whether it says anything about thresholds, responses or servers.
    pub(super) fn has_terms(&self) -> bool {
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
