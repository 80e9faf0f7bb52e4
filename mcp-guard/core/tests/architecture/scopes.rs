//! The names that a file declares, imports and mentions, module by module.

use std::collections::{BTreeMap, BTreeSet};

use crate::tokens::{Token, tokens};

/// A module's path from the root of its crate. The root's path is empty.
pub type Path = Vec<String>;

/// The names in one module's own text.
#[derive(Default)]
pub struct Scope {
    pub children: BTreeSet<String>,
    /// The path behind each name that a `use` brings in, re-exports included.
    pub imports: BTreeMap<String, Path>,
    /// Modules and enums that are imported with a glob.
    pub globs: Vec<Path>,
    pub mentions: Vec<Mention>,
}

/// A path in a `use` or in code.
#[derive(Clone)]
pub struct Mention {
    pub path: Path,
    pub line: usize,
    pub imported: bool,
}

/// Returns the scopes of a file: its own, at the empty path, and those of the modules inside it.
pub fn scopes(text: &str) -> BTreeMap<Path, Scope> {
    let mut reader = Reader { tokens: tokens(text), ..Reader::default() };
    reader.scopes.insert(Path::new(), Scope::default());
    while reader.at < reader.tokens.len() {
        reader.next();
    }
    reader.scopes
}

#[derive(Default)]
struct Reader {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
    /// The modules around the current position, and the depth of braces around each.
    inside: Vec<(String, usize)>,
    scopes: BTreeMap<Path, Scope>,
}

impl Reader {
    fn next(&mut self) {
        match (self.text(0), self.text(1)) {
            ("mod", _) if matches!(self.text(2), ";" | "{") => self.module(),
            // `use<'a>` is a bound, not an import.
            ("use", next) if next != "<" => {
                self.at += 1;
                self.import(&[]);
            }
            ("{", _) => {
                self.depth += 1;
                self.at += 1;
            }
            ("}", _) => self.close(),
            (word, "::") if is_name(word) => self.mention(),
            _ => self.at += 1,
        }
    }

    fn text(&self, ahead: usize) -> &str {
        self.tokens.get(self.at + ahead).map_or("", |token| &token.text)
    }

    fn line(&self) -> usize {
        self.tokens.get(self.at).map_or(0, |token| token.line)
    }

    fn scope(&mut self) -> &mut Scope {
        let path = self.inside.iter().map(|(name, _)| name.clone()).collect();
        self.scopes.entry(path).or_default()
    }

    fn module(&mut self) {
        let (name, inline) = (self.text(1).to_owned(), self.text(2) == "{");
        self.scope().children.insert(name.clone());
        self.at += 3;
        if inline {
            self.inside.push((name, self.depth));
            self.depth += 1;
            self.scope();
        }
    }

    fn close(&mut self) {
        self.at += 1;
        self.depth = self.depth.saturating_sub(1);
        if self.inside.last().is_some_and(|(_, depth)| *depth == self.depth) {
            self.inside.pop();
        }
    }

    /// Reads one tree of a `use` after the path `before`: a path, then a name, a group or a star.
    fn import(&mut self, before: &[String]) {
        let (mut path, line) = (before.to_vec(), self.line());
        if self.text(0) == "::" {
            // The path begins in another crate.
            path.push(String::new());
            self.at += 1;
        }
        while self.text(1) == "::" {
            path.push(self.text(0).to_owned());
            self.at += 2;
        }
        match self.text(0) {
            "{" => self.group(&path),
            "*" => {
                self.at += 1;
                self.scope().globs.push(path.clone());
                self.scope().mentions.push(Mention { path, line, imported: true });
            }
            _ => self.leaf(path, line),
        }
    }

    fn group(&mut self, path: &[String]) {
        self.at += 1;
        while !matches!(self.text(0), "}" | "") {
            self.import(path);
            self.at += usize::from(self.text(0) == ",");
        }
        self.at += 1;
    }

    fn leaf(&mut self, mut path: Path, line: usize) {
        let last = self.text(0).to_owned();
        self.at += 1;
        if last != "self" || path.is_empty() {
            path.push(last);
        }
        let mut name = path.last().cloned().unwrap_or_default();
        if self.text(0) == "as" {
            name = self.text(1).to_owned();
            self.at += 2;
        }
        self.scope().imports.insert(name, path.clone());
        self.scope().mentions.push(Mention { path, line, imported: true });
    }

    /// Reads a path in code.
    fn mention(&mut self) {
        let (mut path, line) = (Path::new(), self.line());
        let continued = self.at > 0 && self.tokens[self.at - 1].text == "::";
        loop {
            path.push(self.text(0).to_owned());
            self.at += 1;
            if self.text(0) != "::" || !is_name(self.text(1)) {
                break;
            }
            self.at += 1;
        }
        // A path that follows `::`, as in `<T>::NAME` or `::std::fs`, begins elsewhere.
        if !continued {
            self.scope().mentions.push(Mention { path, line, imported: false });
        }
    }
}

fn is_name(word: &str) -> bool {
    word.starts_with(|sign: char| sign.is_alphabetic() || sign == '_')
}

impl Mention {
    /// Returns the path as it is written, with the groups of a `use` expanded.
    pub fn shown(&self) -> String {
        let before = if self.imported { "use " } else { "" };
        format!("{before}{}", self.path.join("::"))
    }
}
