//! A minimal YAML reader for look-ups: nodes with their line numbers, and aliases as references.
//!
//! Aliases are never expanded, so that a file of a few kilobytes cannot grow to gigabytes.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
};

use saphyr_parser::{Event, Parser};

/// Maximum nodes and aliases of one file; a compose file of a hundred services has a few thousand.
const MAX_NODES: usize = 100_000;
const MAX_DEPTH: usize = 64;
/// Maximum nodes and keys that all look-ups in one document may visit. One look-up visits each at most once,
/// so at least the first twenty succeed; a caller that looks up every service of a file may run out.
const MAX_SEEN: usize = 40 * MAX_NODES;

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
    /// Line number, from 1.
    line: u64,
    /// A tag such as `!reset`; YAML's own tags are left out.
    tag: Option<String>,
}

/// The first document of a file.
#[derive(Debug, Default)]
pub struct Document {
    nodes: Vec<Node>,
    /// Nodes and keys that look-ups have visited, up to [`MAX_SEEN`].
    seen: Cell<usize>,
}

/// A collection that is not closed yet. In a mapping, every second child is a value.
struct Open {
    at: At,
    children: Vec<At>,
}

impl Document {
    /// Parses the first document of a file.
    ///
    /// # Errors
    /// If the text is not YAML, or is larger or deeper than any compose file.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut document = Self::default();
        let mut aliases = 0;
        let mut anchors = BTreeMap::new();
        let mut open: Vec<Open> = Vec::new();
        for event in Parser::new_from_str(text) {
            // Only the line: the parser's own message may quote a secret in the file.
            let (event, span) =
                event.map_err(|error| format!("not YAML at line {}", error.marker().line()))?;
            let line = u64::try_from(span.start.line()).unwrap_or(0);
            if document.nodes.len() + aliases > MAX_NODES || open.len() > MAX_DEPTH {
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
                    aliases += 1;
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

    /// Returns the root node; None for an empty file.
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

    /// Returns keys and values, without following merge keys.
    pub fn pairs(&self, at: At) -> impl DoubleEndedIterator<Item = (&str, At)> {
        let pairs = match self.nodes.get(at).map(|node| &node.value) {
            Some(Value::Mapping(pairs)) => pairs.as_slice(),
            Some(Value::Scalar(_) | Value::Sequence(_)) | None => &[],
        };
        pairs.iter().filter_map(|(key, value)| Some((self.scalar(*key)?, *value)))
    }

    /// Returns the value of a key. If the mapping itself lacks the key, those merged in by `<<` are searched.
    pub fn get(&self, at: At, key: &str) -> Option<At> {
        // Each node is visited once: an alias may be inside its own anchor, and a few lines may merge each
        // other a million times.
        let mut visited = BTreeSet::new();
        let mut waiting = vec![(at, false)];
        while let Some((at, merged)) = waiting.pop() {
            if !visited.insert(at) {
                continue;
            }
            match self.nodes.get(at).map(|node| &node.value) {
                Some(Value::Mapping(pairs)) => {
                    self.may_see(pairs.len())?;
                    if let Some((_, value)) = self.pairs(at).find(|(name, _)| *name == key) {
                        return Some(value);
                    }
                    // The mapping that takes precedence must be on top of the stack.
                    let merged = self.pairs(at).rev().filter(|(name, _)| *name == "<<");
                    waiting.extend(merged.map(|(_, value)| (value, true)));
                }
                Some(Value::Sequence(items)) if merged => {
                    self.may_see(items.len())?;
                    waiting.extend(items.iter().rev().map(|item| (*item, false)));
                }
                Some(Value::Scalar(_) | Value::Sequence(_)) | None => self.may_see(0)?,
            }
        }
        None
    }

    fn may_see(&self, children: usize) -> Option<()> {
        self.seen.set(self.seen.get() + children + 1);
        (self.seen.get() <= MAX_SEEN).then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value<'a>(document: &'a Document, key: &str) -> Option<&'a str> {
        document.scalar(document.get(document.root()?, key)?)
    }

    #[test]
    fn a_mapping_wins_over_what_it_merges_and_the_first_of_a_list_over_the_next() {
        let text = "x: &x {a: 1, b: 1}\ny: &y {b: 2, c: 2, <<: *z}\n<<: [*x, *y]\nc: 3\n";
        let text = format!("z: &z {{c: 4, d: 4}}\n{text}");
        let document = Document::parse(&text).unwrap();
        for (key, expected) in [("a", "1"), ("b", "1"), ("c", "3"), ("d", "4")] {
            assert_eq!(value(&document, key), Some(expected), "{key}");
        }
        let list = Document::parse("- {a: 1}\n").unwrap();
        assert_eq!(value(&list, "a"), None, "a list has no keys");
    }

    #[test]
    fn lists_of_aliases_that_merge_each_other_are_not_expanded() {
        // A thousand lists of ninety aliases: expanded, they would be ninety thousand entries at once.
        let lists = |n: usize| format!("l{n}: &l{n} [{}]\n", "*m, ".repeat(90));
        let mut text = "m: &m {a: 1}\n".to_owned();
        text.extend((0..1000).map(lists));
        text.push_str("s: {");
        text.extend((0..1000).map(|n| format!("<<: *l{n}, ")));
        text.push_str("}\n");
        let document = Document::parse(&text).unwrap();
        let service = document.get(0, "s").unwrap();
        assert_eq!(document.get(service, "none"), None);
        assert!(document.seen.get() < 3 * MAX_NODES, "{}", document.seen.get());
    }

    #[test]
    fn aliases_count_as_nodes_and_look_ups_are_bounded() {
        let text = format!("a: &a 1\nb: [{}]\n", "*a, ".repeat(MAX_NODES));
        assert!(Document::parse(&text).is_err());
        let wide: String = (0..30_000).map(|n| format!("k{n}: 1\n")).collect();
        let document = Document::parse(&wide).unwrap();
        let answers = (0..1000).filter(|_| document.get(0, "k29999").is_some()).count();
        assert!((20..1000).contains(&answers), "{answers}");
    }
}
