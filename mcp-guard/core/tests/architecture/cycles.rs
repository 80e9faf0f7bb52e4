//! Modules form a tree without cycles.
//!
//! For a module with the submodules c1 to cn, there is an edge ci -> cj if any file of ci's subtree names an
//! item of cj's subtree, in a `use` (groups included) or by a path in code. These edges form no cycle at any
//! level of the tree.
//!
//! - A module may use items of the modules that contain it, and of its own submodules. Neither is an edge.
//! - A name that a module re-exports, or imports for its submodules, leads to the module that defines it, so
//!   `crate::Time` is an edge to `time`. If the re-exporting module is on another branch, the name leads to
//!   that module too.
//! - Test code, comments and strings do not count.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::{
    modules::{Tree, Use},
    repository,
};

/// The crates that are checked.
const WITHOUT_CIRCLES: [&str; 3] = ["mcp-guard/core/src", "mcp-guard/src", "xtask/src"];

#[test]
fn modules_form_no_cycles() {
    for folder in WITHOUT_CIRCLES {
        let tree = Tree::of(&repository().join(folder));
        let found = cycles(&tree);
        assert!(found.is_empty(), "{folder}: {} cycles\n{}", found.len(), found.join("\n"));
    }
}

/// Lines that explain a cycle, one for each use that is part of it.
type Explained = String;

/// For each submodule of one module: the submodules that it uses, and the uses.
type Edges<'a> = BTreeMap<&'a str, BTreeMap<&'a str, Vec<&'a Use>>>;

/// Returns the shortest cycle through each module that is on a cycle.
pub fn cycles(tree: &Tree) -> Vec<Explained> {
    let uses = tree.uses();
    let mut levels: BTreeMap<&[String], Edges<'_>> = BTreeMap::new();
    for one in &uses {
        let depth = one.from.iter().zip(&one.to).take_while(|(from, to)| from == to).count();
        let edges = levels.entry(&one.from[..depth]).or_default();
        let targets = edges.entry(&one.from[depth]).or_default();
        targets.entry(&one.to[depth]).or_default().push(one);
    }
    let mut found = Vec::new();
    for (level, edges) in &levels {
        let mut known = BTreeSet::new();
        for start in edges.keys() {
            let Some(cycle) = shortest(edges, start) else { continue };
            if known.insert(cycle.iter().copied().collect::<BTreeSet<_>>()) {
                found.push(explain(level, edges, &cycle));
            }
        }
    }
    found
}

/// Returns the modules of the shortest cycle through `start`, with `start` first.
fn shortest<'a>(edges: &Edges<'a>, start: &'a str) -> Option<Vec<&'a str>> {
    let mut came_from: BTreeMap<&str, &str> = BTreeMap::new();
    let mut waiting = VecDeque::from([start]);
    while let Some(here) = waiting.pop_front() {
        for next in edges.get(here).into_iter().flat_map(BTreeMap::keys).copied() {
            if next == start {
                let mut cycle = vec![here];
                while cycle[cycle.len() - 1] != start {
                    cycle.push(came_from[cycle[cycle.len() - 1]]);
                }
                cycle.reverse();
                return Some(cycle);
            }
            if !came_from.contains_key(next) {
                came_from.insert(next, here);
                waiting.push_back(next);
            }
        }
    }
    None
}

fn explain(level: &[String], edges: &Edges<'_>, cycle: &[&str]) -> Explained {
    let place = if level.is_empty() { "crate".to_owned() } else { level.join("::") };
    let round: Vec<&str> = cycle.iter().chain(cycle.first()).copied().collect();
    let mut lines = format!("cycle in {place}: {}\n", round.join(" -> "));
    for pair in round.windows(2) {
        for one in &edges[pair[0]][pair[1]] {
            let Use { from_file, line, to_file, words, .. } = one;
            lines.push_str(&format!("    {from_file}:{line} -> {to_file} ({words})\n"));
        }
    }
    lines
}
