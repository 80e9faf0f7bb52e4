//! ARCHITECTURE.md walks through the code by function names, as nested lists: a function that stands below
//! another one is called by it.

use std::{collections::BTreeSet, fs};

use crate::{
    repository,
    tokens::{Token, tokens},
};

/// The headings of the walks.
const WALKS: [&str; 2] = ["### One fork", "### One diagnosis"];
/// The fewest functions in a walk. A shorter one leaves out too much.
const FEWEST: usize = 20;

/// A function in a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Step<'a> {
    depth: usize,
    /// Path relative to `mcp-guard/`.
    file: &'a str,
    function: &'a str,
}

#[test]
fn each_function_of_a_walk_is_called_by_the_one_above_it_and_in_this_order() {
    let text = fs::read_to_string(repository().join("ARCHITECTURE.md")).expect("readable");
    let source = |file: &str| {
        let text = fs::read_to_string(repository().join("mcp-guard").join(file));
        text.unwrap_or_else(|error| panic!("{file}: {error}"))
    };
    for heading in WALKS {
        let walk = walk(&text, heading);
        assert!(walk.len() >= FEWEST, "{heading}: too few functions");
        for (at, step) in walk.iter().enumerate() {
            let bodies = bodies(&source(step.file), step.function);
            assert!(!bodies.is_empty(), "{} has no fn {}", step.file, step.function);
            let called: Vec<Step<'_>> = below(&walk, at).copied().collect();
            assert!(
                bodies.iter().any(|body| calls_in_order(body, &called)),
                "{}: {} does not call these in this order: {called:?}",
                step.file,
                step.function,
            );
        }
    }
}

#[test]
fn a_walk_goes_from_one_part_to_another_only_once() {
    let text = fs::read_to_string(repository().join("ARCHITECTURE.md")).expect("readable");
    for heading in WALKS {
        if let Some((from, to)) = crossed_twice(&walk(&text, heading)) {
            panic!("{heading} goes from {from} to {to} twice");
        }
    }
}

fn walk<'a>(text: &'a str, heading: &str) -> Vec<Step<'a>> {
    let section = section(text, heading).unwrap_or_else(|| panic!("no {heading:?}"));
    steps(section).unwrap_or_else(|error| panic!("{heading}: {error}"))
}

/// Returns the text below a heading, up to the next heading.
fn section<'a>(text: &'a str, heading: &str) -> Option<&'a str> {
    let start = text.find(&format!("\n{heading}\n"))? + heading.len() + 2;
    let rest = &text[start..];
    Some(rest.find("\n#").map_or(rest, |end| &rest[..end + 1]))
}

/// Returns the function of each item of a list.
///
/// # Errors
/// If an item does not begin with `path/to/file.rs: function` in backticks, or is deeper than one level
/// below the item before it.
fn steps(text: &str) -> Result<Vec<Step<'_>>, String> {
    let mut found: Vec<Step<'_>> = Vec::new();
    for line in text.lines() {
        let Some(item) = line.trim_start().strip_prefix("- ") else { continue };
        let depth = (line.len() - item.len() - 2) / 2;
        let named = item.strip_prefix('`').and_then(|item| item.split_once('`'));
        let (file, function) = named
            .and_then(|(named, _)| named.split_once(".rs: "))
            .ok_or_else(|| format!("{item:?} does not begin with `path/to/file.rs: function`"))?;
        let file = &item[1..file.len() + ".rs".len() + 1];
        if depth > found.last().map_or(0, |last| last.depth + 1) {
            return Err(format!("{item:?} is too deep"));
        }
        found.push(Step { depth, file, function });
    }
    Ok(found)
}

/// Returns the steps directly below one.
fn below<'a, 'b>(walk: &'b [Step<'a>], at: usize) -> impl Iterator<Item = &'b Step<'a>> {
    let depth = walk[at].depth;
    let inside = walk[at + 1..].iter().take_while(move |step| step.depth > depth);
    inside.filter(move |step| step.depth == depth + 1)
}

/// Returns the body of each function of this name.
fn bodies(text: &str, function: &str) -> Vec<Vec<Token>> {
    let tokens = tokens(text);
    let is_it = |at: &usize| tokens[*at].text == "fn" && tokens[*at + 1].text == function;
    let starts = (0..tokens.len().saturating_sub(1)).filter(is_it);
    starts.map(|start| body(&tokens[start..])).collect()
}

/// Returns what is between the first brace and the one that closes it.
fn body(tokens: &[Token]) -> Vec<Token> {
    let mut depth = 0_usize;
    let inside = tokens.iter().skip_while(|token| token.text != "{");
    inside
        .take_while(|token| {
            match token.text.as_str() {
                "{" => depth += 1,
                "}" => depth -= 1,
                _ => {}
            }
            depth > 0
        })
        .cloned()
        .collect()
}

fn calls_in_order(body: &[Token], called: &[Step<'_>]) -> bool {
    let mut rest = 0..body.len();
    called.iter().all(|step| rest.any(|at| calls(body, at, step)))
}

/// Whether the function is called here, as `f(`, `module::f(` or `x.f(`, or passed on as `module::f`.
fn calls(body: &[Token], at: usize, step: &Step<'_>) -> bool {
    let text = |at: Option<usize>| at.and_then(|at| body.get(at)).map_or("", |token| &token.text);
    if text(Some(at)) != step.function {
        return false;
    }
    let is_called = text(at.checked_add(1)) == "(";
    if text(at.checked_sub(1)) != "::" {
        return is_called;
    }
    let before = text(at.checked_sub(2));
    let is_type = before.starts_with(|sign: char| sign.is_uppercase());
    let mut modules = step.file.trim_end_matches(".rs").split('/');
    is_type || modules.any(|module| module == before)
}

/// Returns the first boundary that is crossed twice in the same direction.
fn crossed_twice<'a>(walk: &[Step<'a>]) -> Option<(&'a str, &'a str)> {
    let mut seen = BTreeSet::new();
    // The part of each step that the current one is below.
    let mut parts: Vec<&str> = Vec::new();
    for step in walk {
        parts.truncate(step.depth);
        let caller = parts.last().copied();
        let part = part(step.file).or(caller).unwrap_or(step.file);
        if let Some(caller) = caller.filter(|caller| *caller != part)
            && !seen.insert((caller, part))
        {
            return Some((caller, part));
        }
        parts.push(part);
    }
    None
}

/// Returns the part that a file belongs to. `None` for what is on the side of its caller.
fn part(file: &str) -> Option<&str> {
    let Some(inside) = file.strip_prefix("src/") else {
        return file.trim_start_matches("../").split('/').next();
    };
    let module = inside.split(['/', '.']).next();
    module.filter(|module| !["audit", "engine", "host"].contains(module))
}

const LIST: &str = "\
In one part:

- `src/a.rs: read` reads it.
  - `src/host/b.rs: open` opens it, and so on.
  - `core/src/c.rs: judge` judges it.
    - `core/src/d.rs: look` looks.
- `src/a.rs: write` writes it.
";

#[test]
fn steps_are_found_with_their_depth_and_malformed_ones_are_errors() {
    let found = steps(LIST).unwrap();
    let found: Vec<_> = found.iter().map(|step| (step.depth, step.file, step.function)).collect();
    let expected = [
        (0, "src/a.rs", "read"),
        (1, "src/host/b.rs", "open"),
        (1, "core/src/c.rs", "judge"),
        (2, "core/src/d.rs", "look"),
        (0, "src/a.rs", "write"),
    ];
    assert_eq!(found, expected);
    for bad in ["- See `src/a.rs: read`.", "- `src/a.rs::read` it.", "- It reads.", "  - `a.rs: b`"]
    {
        assert!(steps(bad).is_err(), "{bad}");
    }
}

#[test]
fn only_what_is_directly_below_is_called() {
    let walk = steps(LIST).unwrap();
    let called = |at| below(&walk, at).map(|step| step.function).collect::<Vec<_>>();
    assert_eq!((called(0), called(2), called(4)), (vec!["open", "judge"], vec!["look"], vec![]));
}

#[test]
fn a_section_ends_at_the_next_heading() {
    let text = "# A\n\n## Walks\n\n### One\n1\n\n### Two\n2\n\n## B\n";
    assert_eq!(section(text, "### One"), Some("1\n\n"));
    assert_eq!(section(text, "### Two"), Some("2\n\n"));
    assert_eq!(section(text, "### Three"), None);
}

#[test]
fn only_calls_in_the_body_and_in_order_count() {
    let text = "// fn go() { last(); }\nfn go<T>(a: T) { let name = first(); x.second(); \"third()\"; y.map(a::fourth); b::fifth(); }\nfn third() {}";
    let [body] = &bodies(text, "go")[..] else { panic!("one body") };
    let calls = |functions: &[&'static str]| {
        let step = |function: &&'static str| Step { depth: 1, file: "src/x/a.rs", function };
        calls_in_order(body, &functions.iter().map(step).collect::<Vec<_>>())
    };
    assert!(calls(&["first", "second", "fourth"]));
    assert!(!calls(&["second", "first"]));
    assert!(!calls(&["third"]) && !calls(&["fifth"]) && !calls(&["name"]));
    assert!(bodies(text, "gone").is_empty());
}

#[test]
fn a_boundary_that_is_crossed_twice_is_found() {
    let walk = steps(LIST).unwrap();
    assert_eq!(crossed_twice(&walk), None, "an adapter is on the side of its caller");
    let again = format!("{LIST}  - `core/src/c.rs: judge` judges again.\n");
    assert_eq!(crossed_twice(&steps(&again).unwrap()), Some(("a", "core")));
}
