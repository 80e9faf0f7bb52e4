//! ARCHITECTURE.md walks through the code by function names. Each of them must exist.

use std::{collections::BTreeSet, fs, path::Path};

use crate::{repository, tokens::tokens};

/// The headings of the walks.
const WALKS: [&str; 2] = ["### One fork", "### One diagnosis"];
/// The fewest functions in a walk. A shorter one leaves out too much.
const FEWEST: usize = 10;

/// A file and a function in it. The path is relative to `mcp-guard/`.
type Step<'a> = (&'a str, &'a str);

#[test]
fn walks_name_functions_that_exist() {
    let text = fs::read_to_string(repository().join("ARCHITECTURE.md")).expect("readable");
    let all = below(&text, "## Walks").expect("a section of walks");
    for heading in WALKS {
        let walk = below(all, heading).unwrap_or_else(|| panic!("no {heading:?}"));
        assert!(steps(walk).expect(heading).len() >= FEWEST, "{heading}: too few functions");
    }
    for (file, function) in steps(all).expect("functions") {
        let text = fs::read_to_string(repository().join("mcp-guard").join(file));
        let text = text.unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(defines(&text, function), "{file} has no fn {function}");
    }
}

/// A walk goes from one module to another at most once, and comes back at most once.
#[test]
fn walks_cross_each_boundary_once_each_way() {
    let text = fs::read_to_string(repository().join("ARCHITECTURE.md")).expect("readable");
    for heading in WALKS {
        let walk = steps(below(&text, heading).expect(heading)).expect(heading);
        if let Some((from, to)) = crossed_twice(&walk) {
            panic!("{heading} goes from {from} to {to} twice");
        }
    }
}

/// Returns the first boundary that is crossed twice in the same direction.
fn crossed_twice<'a>(walk: &[Step<'a>]) -> Option<(&'a str, &'a str)> {
    let mut seen = BTreeSet::new();
    let modules: Vec<&str> = walk.iter().map(|(file, _)| module(file)).collect();
    let mut crossings = modules.windows(2).map(|pair| (pair[0], pair[1]));
    crossings.find(|(from, to)| from != to && !seen.insert((*from, *to)))
}

/// Returns the crate of a file, or, for a file of the agent, its top-level module.
fn module(file: &str) -> &str {
    match file.strip_prefix("src/") {
        Some(inside) => inside.split(['/', '.']).next().unwrap_or(inside),
        None => file.trim_start_matches("../").split('/').next().unwrap_or(file),
    }
}

/// Returns the text below a heading, up to the next heading of the same or a higher rank.
fn below<'a>(text: &'a str, heading: &str) -> Option<&'a str> {
    let rank = |line: &str| line.bytes().take_while(|sign| *sign == b'#').count();
    let start = text.find(&format!("\n{heading}\n"))? + heading.len() + 2;
    let mut end = start;
    for line in text[start..].split_inclusive('\n') {
        if (1..=rank(heading)).contains(&rank(line)) {
            break;
        }
        end += line.len();
    }
    Some(&text[start..end])
}

/// Returns every `path/to/file.rs: function` in backticks.
///
/// # Errors
/// If a file is named in another form, or if a numbered step names no function.
fn steps(text: &str) -> Result<Vec<Step<'_>>, String> {
    let mut found = Vec::new();
    for step in text.lines().filter(|line| !line.starts_with('#')) {
        let before = found.len();
        for span in step.split('`').skip(1).step_by(2).filter(|span| span.contains(".rs")) {
            let is_path = |path: &str| Path::new(path).extension().is_some_and(|end| end == "rs");
            let pair = span.split_once(": ").filter(|(path, _)| is_path(path));
            found.push(pair.ok_or_else(|| format!("`{span}` is not `path/to/file.rs: function`"))?);
        }
        let numbered = step.starts_with(|sign: char| sign.is_ascii_digit());
        if numbered && found.len() == before {
            return Err(format!("no function in {step:?}"));
        }
    }
    Ok(found)
}

fn defines(text: &str, function: &str) -> bool {
    tokens(text).windows(2).any(|pair| pair[0].text == "fn" && pair[1].text == function)
}

#[test]
fn steps_are_found_and_malformed_ones_are_errors() {
    let text = "1. Reads it (`src/a.rs: read`), then `src/b/c.rs: judge_all`, not `Held`.\n";
    assert_eq!(steps(text).unwrap(), [("src/a.rs", "read"), ("src/b/c.rs", "judge_all")]);
    assert!(steps("See `src/a.rs::read`.").is_err());
    assert!(steps("1. Reads it.").is_err());
}

#[test]
fn a_section_ends_at_the_next_heading_of_its_rank() {
    let text = "# A\n\n## Walks\n\n### One\n1\n\n### Two\n2\n\n## B\n";
    assert_eq!(below(text, "## Walks"), Some("\n### One\n1\n\n### Two\n2\n\n"));
    assert_eq!(below(text, "### One"), Some("1\n\n"));
    assert_eq!(below(text, "### Three"), None);
}

#[test]
fn only_code_defines_a_function() {
    assert!(defines("impl A { pub async fn go<T>() {} }", "go"));
    assert!(!defines("// fn go()\nfn gone() { go(); }", "go"));
}

#[test]
fn a_boundary_that_is_crossed_twice_is_found() {
    let walk = |files: &[&'static str]| files.iter().map(|file| (*file, "f")).collect::<Vec<_>>();
    let there_and_back = ["src/cli.rs", "core/src/a.rs", "core/src/b.rs", "src/cli/out.rs"];
    assert_eq!(crossed_twice(&walk(&there_and_back)), None);
    let again = ["src/cli.rs", "core/src/a.rs", "src/cli/out.rs", "core/src/b.rs"];
    assert_eq!(crossed_twice(&walk(&again)), Some(("cli", "core")));
}
