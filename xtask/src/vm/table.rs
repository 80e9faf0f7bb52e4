//! The README's table of kernels, held to what the guests found out.

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};

use super::follow::Failure;
use super::image::{IMAGES, Image};
use crate::workspace;

const BEGIN: &str = "<!-- guests: begin -->\n";
const END: &str = "<!-- guests: end -->";
/// A cell of which no guest has told.
const UNKNOWN: &str = "–";

/// Rows that are printed and not compared where a release moves: its kernel, and whether the kernel left a
/// program out this time.
const MOVING: [&str; 2] = ["kernel", "programs"];

/// Rows in their order; a value per image.
type Table = Vec<(String, BTreeMap<String, String>)>;

/// One failure for each cell that is not what this guest found out, and, where all that tell ran
/// (`complete`), for each of which nothing was told. With `bless` the README is changed instead.
pub fn check(
    image: &Image,
    facts: &[(String, String)],
    complete: bool,
    bless: bool,
) -> Result<Vec<Failure>> {
    // Guests end side by side, and each writes its own column.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let file = workspace::root().join("README.md");
    let readme = fs::read_to_string(&file).context("README.md")?;
    let (before, rest) = readme.split_once(BEGIN).context("README.md has no table of guests")?;
    let (text, after) =
        rest.split_once(END).context("README.md: the table of guests has no end")?;
    let mut table = parse(text);
    let mut wrong = if complete { untold(&table, image.name, facts) } else { Vec::new() };
    let others = enter(&mut table, image, facts);
    if bless {
        let text = format!("{before}{BEGIN}{}{END}{after}", render(&table));
        fs::write(&file, text).context("README.md")?;
    } else {
        wrong.extend(others);
    }
    Ok(wrong)
}

/// Each cell of which this guest should have told, and did not.
fn untold(table: &Table, image: &str, facts: &[(String, String)]) -> Vec<Failure> {
    let told = |name: &str| facts.iter().any(|(fact, _)| fact == name);
    let untold = table.iter().filter(|(name, row)| row.contains_key(image) && !told(name));
    let why = |name: &str| format!("no test told of {name:?} of {image}");
    untold.map(|(name, _)| failure(why(name), "its test failed, or is gone")).collect()
}

fn failure(why: String, hint: &str) -> Failure {
    let what = "the table of kernels in README.md".to_owned();
    Failure { what, why, output: hint.to_owned() }
}

/// Puts what was found out into the table and tells of each cell that was another.
fn enter(table: &mut Table, image: &Image, facts: &[(String, String)]) -> Vec<Failure> {
    let mut wrong = Vec::new();
    for (name, value) in facts {
        if !table.iter().any(|(row, _)| row == name) {
            table.push((name.clone(), BTreeMap::new()));
        }
        let Some((_, row)) = table.iter_mut().find(|(row, _)| row == name) else { continue };
        let was = row.insert(image.name.to_owned(), value.clone());
        let compared = !(image.moves() && MOVING.contains(&name.as_str()));
        if compared && was.as_ref() != Some(value) {
            let (was, image) = (was.unwrap_or_else(|| "nothing".to_owned()), image.name);
            let why = format!("it says {was:?} for {name:?} of {image}, the guest {value:?}");
            wrong.push(failure(why, "`cargo xtask vm test --bless` writes what the guests say"));
        }
    }
    wrong
}

fn parse(text: &str) -> Table {
    let cells = |line: &str| -> Vec<String> {
        let line = line.trim().trim_start_matches('|').trim_end_matches('|');
        line.split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    let mut lines = text.lines().filter(|line| line.starts_with('|'));
    let header = lines.next().map(cells).unwrap_or_default();
    let row = |line| {
        let mut cells = cells(line).into_iter();
        let name = cells.next().unwrap_or_default();
        let images = header.iter().skip(1).cloned();
        (name, images.zip(cells).filter(|(_, value)| value != UNKNOWN).collect())
    };
    // The line below the header says how columns are aligned.
    lines.skip(1).map(row).collect()
}

fn render(table: &Table) -> String {
    let names: Vec<&str> = IMAGES.iter().map(|image| image.name).collect();
    let mut text = format!("| | {} |\n|---|{}\n", names.join(" | "), "---|".repeat(names.len()));
    for (name, row) in table {
        let cell = |image: &&str| row.get(*image).map_or(UNKNOWN, String::as_str);
        let cells: Vec<&str> = names.iter().map(cell).collect();
        text.push_str(&format!("| {name} | {} |\n", cells.join(" | ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(name: &str) -> &'static Image {
        super::super::image::find(name).unwrap()
    }

    fn facts(words: &[(&str, &str)]) -> Vec<(String, String)> {
        words.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn what_is_rendered_is_read_again() {
        let mut table = Table::new();
        assert_eq!(
            enter(&mut table, image("trixie"), &facts(&[("kernel", "6.12"), ("LSM", "yes")])).len(),
            2
        );
        enter(&mut table, image("bookworm"), &facts(&[("kernel", "6.1")]));
        let again = parse(&render(&table));
        assert_eq!(again, table);
        assert!(render(&table).starts_with("| | trixie | bookworm |"));
    }

    #[test]
    fn another_value_is_a_failure_and_the_same_is_none() {
        let mut table = parse("| | trixie |\n|---|---|\n| kernel | 6.12 |\n");
        assert_eq!(enter(&mut table, image("trixie"), &facts(&[("kernel", "6.12")])), []);
        let wrong = enter(&mut table, image("trixie"), &facts(&[("kernel", "6.13")]));
        assert!(wrong[0].why.contains("\"6.12\" for \"kernel\" of trixie, the guest \"6.13\""));
    }

    #[test]
    fn a_kernel_that_moves_is_told_and_not_compared() {
        let mut table = parse("| | kernel-forky |\n|---|---|\n| kernel | 7.2 |\n| BTF | yes |\n");
        let moved = facts(&[("kernel", "7.3"), ("programs", "all run"), ("BTF", "no")]);
        let wrong = enter(&mut table, image("kernel-forky"), &moved);
        assert_eq!(wrong.len(), 1);
        assert!(wrong[0].why.contains("\"BTF\""));
    }

    #[test]
    fn a_cell_of_which_nobody_told_is_a_failure() {
        let table = parse("| | trixie |\n|---|---|\n| kernel | 6.12 |\n| BTF | yes |\n| x | – |\n");
        let wrong = untold(&table, "trixie", &facts(&[("kernel", "6.12")]));
        assert_eq!(wrong.len(), 1);
        assert_eq!(wrong[0].why, "no test told of \"BTF\" of trixie");
    }

    #[test]
    fn the_readme_has_a_table_of_all_images() {
        let readme = fs::read_to_string(workspace::root().join("README.md")).unwrap();
        let text = readme.split_once(BEGIN).unwrap().1.split_once(END).unwrap().0;
        assert_eq!(render(&parse(text)), text, "run `cargo xtask vm test --bless`");
    }
}
