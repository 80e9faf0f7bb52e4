//! Files of the policy, and positions in them.

use serde::{Deserialize, Serialize};

/// A file of the policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicySource {
    pub name: String,
    pub text: String,
}

/// Returns the number of a line, the column within it, counted from 0, and the line.
pub(super) fn position(text: &str, at: usize) -> (usize, usize, &str) {
    let before = text.get(..at).unwrap_or(text);
    let start = before.rfind('\n').map_or(0, |end| end + 1);
    let content = text[start..].lines().next().unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    (line, before[start..].chars().count(), content)
}

/// Returns the number of the line, counted from 1.
pub(super) fn line_of(text: &str, at: usize) -> usize {
    position(text, at).0
}
