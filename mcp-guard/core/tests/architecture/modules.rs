//! The tree of a crate's modules, and the uses between them.

use std::collections::{BTreeMap, BTreeSet};

use crate::scopes::{Mention, Path, Scope, scopes};

/// The modules of a crate that are compiled without `cfg(test)`.
pub struct Tree {
    modules: BTreeMap<Path, Module>,
}

struct Module {
    file: String,
    scope: Scope,
}

/// A module names an item of another module. Neither contains the other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Use {
    pub from: Path,
    pub to: Path,
    pub from_file: String,
    pub to_file: String,
    pub line: usize,
    /// The path as it is written: `use crate::repair::survives`, `super::answers`.
    pub words: String,
}

/// The target of a path.
struct Found {
    /// The module that the path names, or that defines the item that the path names.
    module: Path,
    is_item: bool,
    /// The modules that re-export the name on the way.
    through: Vec<Path>,
}

/// The longest chain of re-exports that is followed. Real trees have far shorter ones.
const MOST_STEPS: usize = 32;

impl Tree {
    /// Reads a crate from the folder of its sources.
    pub fn of(folder: &std::path::Path) -> Self {
        let below = |path: &std::path::Path| {
            let path = path.strip_prefix(folder).expect("a path below the folder");
            path.to_string_lossy().into_owned()
        };
        let files = crate::sources(folder);
        let files: Vec<_> = files.into_iter().map(|(path, text)| (below(&path), text)).collect();
        Self::read(&files)
    }

    /// Reads a crate from its files, as (path below `src/`, text).
    pub fn read(files: &[(String, String)]) -> Self {
        let files: BTreeMap<&str, &str> =
            files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
        let root = ["lib.rs", "main.rs"].into_iter().find(|file| files.contains_key(file));
        let mut tree = Self { modules: BTreeMap::new() };
        tree.add(&files, Path::new(), root.expect("lib.rs or main.rs"));
        tree
    }

    /// Adds a file's module, the modules inside it, and the modules that it declares.
    fn add(&mut self, files: &BTreeMap<&str, &str>, at: Path, file: &str) {
        let inside = scopes(files[file]);
        let inline: BTreeSet<Path> = inside.keys().map(|path| joined(&at, path)).collect();
        for (path, scope) in inside {
            let here = joined(&at, &path);
            for child in &scope.children {
                let child = joined(&here, std::slice::from_ref(child));
                if !inline.contains(&child) {
                    let found = format!("{}.rs", child.join("/"));
                    assert!(files.contains_key(found.as_str()), "{file} declares {found}");
                    self.add(files, child, &found);
                }
            }
            self.modules.insert(here, Module { file: file.to_owned(), scope });
        }
    }

    /// Returns the names of the modules directly below the root.
    pub fn top(&self) -> BTreeSet<&str> {
        self.modules.keys().filter(|path| path.len() == 1).map(|path| path[0].as_str()).collect()
    }

    /// Returns the files of all modules, relative to the folder.
    pub fn files(&self) -> BTreeSet<&str> {
        self.modules.values().map(|module| module.file.as_str()).collect()
    }

    /// Returns every use that leads from one branch of the tree into another.
    pub fn uses(&self) -> BTreeSet<Use> {
        let mut uses = BTreeSet::new();
        for (from, module) in &self.modules {
            self.refuse_globs(from, module);
            for mention in &module.scope.mentions {
                for to in self.targets(from, mention) {
                    uses.insert(Use {
                        from: from.clone(),
                        from_file: module.file.clone(),
                        to_file: self.modules[&to].file.clone(),
                        to,
                        line: mention.line,
                        words: mention.shown(),
                    });
                }
            }
        }
        uses
    }

    /// Returns the modules on other branches that a path in `from` leads to.
    fn targets(&self, from: &Path, mention: &Mention) -> Vec<Path> {
        let Some(found) = self.resolve(from, &mention.path, MOST_STEPS) else { return Vec::new() };
        let import = self.modules[from].scope.imports.get(&mention.path[0]);
        let import = import.filter(|_| !mention.imported);
        let imported = import.and_then(|path| self.resolve(from, path, MOST_STEPS));
        if imported.is_some_and(|imported| imported.module == found.module) {
            // The path begins with an imported name, such as `Code::Clamped`. Its `use` counts instead.
            return Vec::new();
        }
        let definer = found.module.clone();
        let through = found.through.into_iter().filter(|module| !definer.starts_with(module));
        let all = through.chain([found.module]);
        all.filter(|to| !from.starts_with(to) && !to.starts_with(from)).collect()
    }

    /// Refuses a glob import of a module of this crate, because it hides which names are used.
    fn refuse_globs(&self, at: &Path, module: &Module) {
        for glob in &module.scope.globs {
            let found = self.resolve(at, glob, MOST_STEPS);
            let is_module = found.is_some_and(|found| !found.is_item);
            assert!(
                !is_module,
                "{}: use {}::* hides which names are used",
                module.file,
                glob.join("::")
            );
        }
    }

    /// Returns the target of a path in a module, or nothing if the path leads out of this crate.
    fn resolve(&self, at: &Path, words: &[String], steps: usize) -> Option<Found> {
        let mut found = Found { module: at.clone(), is_item: false, through: Vec::new() };
        let mut words = words.iter().peekable();
        match words.peek()?.as_str() {
            "crate" => {
                words.next();
                found.module.clear();
            }
            "self" => drop(words.next()),
            "super" => {
                while words.next_if(|word| *word == "super").is_some() {
                    found.module.pop();
                }
            }
            name => {
                let scope = &self.modules[at].scope;
                if !scope.children.contains(name) && !scope.imports.contains_key(name) {
                    return None;
                }
            }
        }
        for word in words {
            if found.is_item {
                break;
            }
            found = self.step(found, word, steps.checked_sub(1)?)?;
        }
        Some(found)
    }

    /// Follows one word of a path: into a child, along an import, or to an item that the module defines.
    fn step(&self, mut from: Found, word: &str, steps: usize) -> Option<Found> {
        let scope = &self.modules[&from.module].scope;
        if scope.children.contains(word) {
            from.module.push(word.to_owned());
            return Some(from);
        }
        let Some(import) = scope.imports.get(word) else {
            return Some(Found { is_item: true, ..from });
        };
        let mut found = self.resolve(&from.module, import, steps)?;
        found.through.extend(from.through);
        found.through.push(from.module);
        Some(found)
    }
}

fn joined(one: &[String], other: &[String]) -> Path {
    [one, other].concat()
}
