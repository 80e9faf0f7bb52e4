//! A type's name has one meaning in the whole agent.
//!
//! Every `struct`, `enum`, `trait` and `type` outside test code counts. Associated types do not count. The
//! trait gives them their names, and each implementation means another type on purpose.

use std::{collections::BTreeMap, fs};

use crate::{
    modules::Tree,
    repository,
    tokens::{Token, tokens},
};

/// The crates that share one set of names.
const CRATES: [&str; 3] = ["mcp-guard/core/src", "mcp-guard/src", "mcp-guard-common/src"];
/// Names that may be defined more than once.
const REPEATED: [&str; 2] = [
    // Each module with its own errors has one, as in the standard library.
    "Error",
    // Each verb of the command line has one.
    "Arguments",
];

#[test]
fn a_type_name_is_defined_once() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for folder in CRATES {
        let path = repository().join(folder);
        for file in Tree::of(&path).files() {
            let text = fs::read_to_string(path.join(file)).expect("readable");
            for (name, line) in definitions(&tokens(&text)) {
                places.entry(name).or_default().push(format!("{folder}/{file}:{line}"));
            }
        }
    }
    assert!(places.contains_key("Core"), "the types of the core are not found");
    let is_repeated = |name: &str| REPEATED.contains(&name);
    let twice: Vec<String> = places
        .iter()
        .filter(|(name, places)| places.len() > 1 && !is_repeated(name))
        .map(|(name, places)| format!("{name}: {}", places.join(", ")))
        .collect();
    assert!(twice.is_empty(), "{} names with two meanings\n{}", twice.len(), twice.join("\n"));
}

/// Returns the types that a file defines, with their lines.
fn definitions(tokens: &[Token]) -> Vec<(String, usize)> {
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text.as_str());
    let mut found = Vec::new();
    // For each open brace, whether it is the body of an `impl` or a `trait`.
    let mut open = Vec::new();
    let mut body_follows = false;
    for (at, token) in tokens.iter().enumerate() {
        let before = at.checked_sub(1).map_or("", text);
        let is_associated = open.last().is_some_and(|is_body| *is_body);
        match token.text.as_str() {
            "{" => open.push(std::mem::take(&mut body_follows)),
            "}" => drop(open.pop()),
            // In other places it is `impl Trait`, the type of an argument or a result.
            "impl" if matches!(before, "" | "{" | "}" | ";" | "]" | "unsafe") => {
                body_follows = true;
            }
            "type" if is_associated => {}
            word @ ("struct" | "enum" | "trait" | "type") if is_type_name(text(at + 1)) => {
                body_follows = word == "trait";
                found.push((text(at + 1).to_owned(), token.line));
            }
            _ => {}
        }
    }
    found
}

fn is_type_name(word: &str) -> bool {
    word.starts_with(char::is_uppercase)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        definitions(&tokens(text)).into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn every_kind_of_type_is_found() {
        let text = "pub struct A; pub(super) enum B<T> { C(T) } trait D { fn e(); } type F = A;";
        assert_eq!(names(text), ["A", "B", "D", "F"]);
        assert_eq!(names("fn a() -> impl B { struct C; type D = C; }"), ["C", "D"]);
    }

    #[test]
    fn associated_types_do_not_count() {
        assert_eq!(names("trait A: B { type C: D; } type E = ();"), ["A", "E"]);
        assert_eq!(names("#[x] impl<T> A for B<T> { type C = T; fn d() { struct F; } }"), ["F"]);
    }

    #[test]
    fn words_that_define_no_type_are_ignored() {
        assert_eq!(names("macro_rules! a { ($b:ident) => { struct $b; } }"), [""; 0]);
        assert_eq!(names("struct A { r#type: B } // enum C"), ["A"]);
        assert_eq!(names("#[cfg(test)] mod tests { struct A; }"), [""; 0]);
    }
}
