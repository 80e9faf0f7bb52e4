//! Files of the policy, and positions in them.

use std::{iter, ops::Range};

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

/// Where a value is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ValueOrigin {
    /// The place of the file among those that were read.
    pub file: usize,
    pub line: usize,
    /// The key, in bytes of the file.
    pub(super) span: Range<usize>,
}

/// The lines of a file. They are found once, not for each of its values.
pub(super) struct SourceLines {
    file: usize,
    /// The byte at which each begins.
    starts: Vec<usize>,
}

impl SourceLines {
    pub fn of(file: usize, text: &str) -> Self {
        let later = text.match_indices('\n').map(|(end, _)| end + 1);
        Self { file, starts: iter::once(0).chain(later).collect() }
    }

    pub fn file(&self) -> usize {
        self.file
    }

    pub fn origin(&self, span: Range<usize>) -> ValueOrigin {
        let line = self.starts.partition_point(|start| *start <= span.start);
        ValueOrigin { file: self.file, line, span }
    }
}
