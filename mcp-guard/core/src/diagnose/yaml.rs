//! As much of YAML as a look-up needs: nodes with their lines, aliases as references.
//!
//! Nothing is ever expanded, so that a file of a few kilobytes cannot grow into gigabytes.

use std::collections::{BTreeMap, BTreeSet};

use saphyr_parser::{Event, Parser};

/// Nodes of one file; a compose file of a hundred services has some thousand.
const MAX_NODES: usize = 100_000;
const MAX_DEPTH: usize = 64;

/// Index of a node in its document.
pub type At = usize;

#[derive(Debug)]
pub enum Value {
    Scalar(String),
    Sequence(Vec<At>),
    Mapping(Vec<(At, At)>),
}

#[derive(Debug)]
struct Node {
    value: Value,
    /// From 1.
    line: u64,
    /// `!reset` and the like; the tags of YAML itself are left out.
    tag: Option<String>,
}

/// The first document of a file.
#[derive(Debug, Default)]
pub struct Document {
    nodes: Vec<Node>,
}

/// A collection that is not closed yet; in a mapping every second node is a value.
struct Open {
    at: At,
    children: Vec<At>,
}

impl Document {
    /// # Errors
    /// It is no YAML, or larger or deeper than any compose file.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut document = Self::default();
        let mut anchors = BTreeMap::new();
        let mut open: Vec<Open> = Vec::new();
        for event in Parser::new_from_str(text) {
            // The line alone: the parser's own words may quote what is none of ours to print.
            let (event, span) =
                event.map_err(|error| format!("no YAML at line {}", error.marker().line()))?;
            let line = u64::try_from(span.start.line()).unwrap_or(0);
            if document.nodes.len() > MAX_NODES || open.len() > MAX_DEPTH {
                return Err(format!("more than {MAX_NODES} nodes, or deeper than {MAX_DEPTH}"));
            }
            let (value, anchor, tag) = match event {
                Event::Scalar(text, _, anchor, tag) => {
                    (Value::Scalar(text.into_owned()), anchor, tag)
                }
                Event::SequenceStart(anchor, tag) => (Value::Sequence(Vec::new()), anchor, tag),
                Event::MappingStart(anchor, tag) => (Value::Mapping(Vec::new()), anchor, tag),
                Event::Alias(anchor) => {
                    let at = anchors.get(&anchor).ok_or("an alias without an anchor")?;
                    if let Some(parent) = open.last_mut() {
                        parent.children.push(*at);
                    }
                    continue;
                }
                Event::SequenceEnd | Event::MappingEnd => {
                    document.close(open.pop());
                    continue;
                }
                Event::DocumentEnd => break,
                Event::Nothing
                | Event::StreamStart
                | Event::StreamEnd
                | Event::DocumentStart(_) => {
                    continue;
                }
            };
            let at = document.nodes.len();
            let is_open = !matches!(value, Value::Scalar(_));
            let tag = tag.filter(|tag| !tag.is_yaml_core_schema()).map(|tag| tag.suffix.clone());
            document.nodes.push(Node { value, line, tag });
            anchors.insert(anchor, at);
            if let Some(parent) = open.last_mut() {
                parent.children.push(at);
            }
            if is_open {
                open.push(Open { at, children: Vec::new() });
            }
        }
        Ok(document)
    }

    fn close(&mut self, open: Option<Open>) {
        let Some(Open { at, children }) = open else { return };
        match self.nodes.get_mut(at).map(|node| &mut node.value) {
            Some(Value::Sequence(items)) => *items = children,
            Some(Value::Mapping(pairs)) => {
                *pairs = children.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
            }
            Some(Value::Scalar(_)) | None => {}
        }
    }

    /// None for an empty file.
    pub fn root(&self) -> Option<At> {
        (!self.nodes.is_empty()).then_some(0)
    }

    pub fn line(&self, at: At) -> u64 {
        self.nodes.get(at).map_or(0, |node| node.line)
    }

    pub fn tag(&self, at: At) -> Option<&str> {
        self.nodes.get(at)?.tag.as_deref()
    }

    pub fn scalar(&self, at: At) -> Option<&str> {
        match &self.nodes.get(at)?.value {
            Value::Scalar(text) => Some(text),
            Value::Sequence(_) | Value::Mapping(_) => None,
        }
    }

    /// Keys and values, merge keys not followed.
    pub fn pairs(&self, at: At) -> impl DoubleEndedIterator<Item = (&str, At)> {
        let pairs = match self.nodes.get(at).map(|node| &node.value) {
            Some(Value::Mapping(pairs)) => pairs.as_slice(),
            Some(Value::Scalar(_) | Value::Sequence(_)) | None => &[],
        };
        pairs.iter().filter_map(|(key, value)| Some((self.scalar(*key)?, *value)))
    }

    /// The value of a key; what `<<` brings in counts where the mapping itself has no such key.
    pub fn get(&self, at: At, key: &str) -> Option<At> {
        // Each mapping is asked once: an alias may stand inside of its own anchor, and a few lines
        // may merge each other a million times.
        let mut asked = BTreeSet::new();
        let mut waiting = vec![at];
        while let Some(at) = waiting.pop() {
            if !asked.insert(at) {
                continue;
            }
            if let Some((_, value)) = self.pairs(at).find(|(name, _)| *name == key) {
                return Some(value);
            }
            let merged = self.pairs(at).filter(|(name, _)| *name == "<<");
            // The first of a list wins, so it must be on top.
            waiting.extend(merged.flat_map(|(_, value)| self.all(value)).rev());
        }
        None
    }

    /// The items of a sequence, or the node itself.
    fn all(&self, at: At) -> Vec<At> {
        match self.nodes.get(at).map(|node| &node.value) {
            Some(Value::Sequence(items)) => items.clone(),
            Some(Value::Scalar(_) | Value::Mapping(_)) | None => vec![at],
        }
    }
}
