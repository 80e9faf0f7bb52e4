//! Errors in a policy, and where they are.

use std::{fmt::Write as _, ops::Range};

use super::{
    layer::{Layer, Leaf},
    source::{PolicySource, position},
};
use crate::escape::visible_within;

/// Most characters shown of the line at fault.
const MAX_LINE: usize = 200;

/// Why a policy is rejected. The text shows line and position.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Error {
    /// The place of the file at fault among those that were read.
    pub file: usize,
    pub text: String,
}

/// A value that no policy may have, before it is known where it comes from.
#[derive(Debug)]
pub(super) struct Fault {
    /// The keys that may be at fault, the likeliest first.
    keys: Vec<String>,
    why: String,
}

impl Fault {
    pub(super) fn at(key: &str, why: &str) -> Self {
        Self { keys: vec![key.to_owned()], why: format!("{key} {why}") }
    }

    pub(super) fn between(keys: [String; 2], why: String) -> Self {
        Self { keys: keys.into(), why }
    }

    /// Returns the error for a value that `layer` has.
    pub(super) fn in_layer(self, layer: &Layer, sources: &[PolicySource]) -> Error {
        // The first key that a file sets: the other one may have its default.
        let mut found = self.keys.iter().filter_map(|key| layer.get(key));
        match found.next() {
            Some(Leaf { origin, .. }) => error(sources, origin.file, &origin.span, &self.why),
            None => Error { file: 0, text: self.why },
        }
    }
}

/// Returns an error that shows the line of `span`.
pub(super) fn error(
    sources: &[PolicySource],
    file: usize,
    span: &Range<usize>,
    why: &str,
) -> Error {
    let text = sources.get(file).map_or("", |source| &source.text);
    let (line, column, content) = position(text, span.start);
    let shown = visible_within(content, MAX_LINE);
    let number = line.to_string();
    let gutter = " ".repeat(number.len() + 1);
    let rest = content.chars().count().saturating_sub(column).max(1);
    let length = text.get(span.clone()).map_or(1, |text| text.chars().count()).clamp(1, rest);
    let mut shows = format!("error at line {line}, column {}\n{gutter}|\n", column + 1);
    let _ = writeln!(shows, "{number} | {shown}");
    if column + length <= MAX_LINE {
        let _ = writeln!(shows, "{gutter}| {}{}", " ".repeat(column), "^".repeat(length));
    }
    Error { file, text: shows + why }
}
