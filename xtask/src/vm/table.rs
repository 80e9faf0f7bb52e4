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

/// Rows in their order; a value per image.
type Table = Vec<(String, BTreeMap<String, String>)>;

/// One failure for each cell that is not what this guest found out. With `bless` the README is changed
/// instead.
pub fn check(image: &Image, facts: &[(String, String)], bless: bool) -> Result<Vec<Failure>> {
    // Guests end side by side, and each writes its own column.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let file = workspace::root().join("README.md");
    let readme = fs::read_to_string(&file).context("README.md")?;
    let (before, rest) = readme.split_once(BEGIN).context("README.md has no table of guests")?;
    let (text, after) =
        rest.split_once(END).context("README.md: the table of guests has no end")?;
    let mut table = parse(text);
    let wrong = enter(&mut table, image.name, facts);
    if bless && !wrong.is_empty() {
        let text = format!("{before}{BEGIN}{}{END}{after}", render(&table));
        fs::write(&file, text).context("README.md")?;
        return Ok(Vec::new());
    }
    Ok(wrong)
}

/// Puts what was found out into the table and tells of each cell that was another.
fn enter(table: &mut Table, image: &str, facts: &[(String, String)]) -> Vec<Failure> {
    let mut wrong = Vec::new();
    for (name, value) in facts {
        if !table.iter().any(|(row, _)| row == name) {
            table.push((name.clone(), BTreeMap::new()));
        }
        let Some((_, row)) = table.iter_mut().find(|(row, _)| row == name) else { continue };
        let was = row.insert(image.to_owned(), value.clone());
        if was.as_ref() != Some(value) {
            let was = was.unwrap_or_else(|| "nothing".to_owned());
            wrong.push(Failure {
                what: "the table of kernels in README.md".to_owned(),
                why: format!("it says {was:?} for {name:?} of {image}, the guest {value:?}"),
                output: "`cargo xtask vm test --bless` writes what the guests say".to_owned(),
            });
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

    fn facts(words: &[(&str, &str)]) -> Vec<(String, String)> {
        words.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn what_is_rendered_is_read_again() {
        let mut table = Table::new();
        assert_eq!(
            enter(&mut table, "trixie", &facts(&[("kernel", "6.12"), ("LSM", "yes")])).len(),
            2
        );
        enter(&mut table, "bookworm", &facts(&[("kernel", "6.1")]));
        let again = parse(&render(&table));
        assert_eq!(again, table);
        assert!(render(&table).starts_with("| | trixie | bookworm |"));
    }

    #[test]
    fn another_value_is_a_failure_and_the_same_is_none() {
        let mut table = parse("| | trixie |\n|---|---|\n| kernel | 6.12 |\n");
        assert_eq!(enter(&mut table, "trixie", &facts(&[("kernel", "6.12")])), []);
        let wrong = enter(&mut table, "trixie", &facts(&[("kernel", "6.13")]));
        assert!(wrong[0].why.contains("\"6.12\" for \"kernel\" of trixie, the guest \"6.13\""));
    }

    #[test]
    fn the_readme_has_a_table_of_all_images() {
        let readme = fs::read_to_string(workspace::root().join("README.md")).unwrap();
        let text = readme.split_once(BEGIN).unwrap().1.split_once(END).unwrap().0;
        assert_eq!(render(&parse(text)), text, "run `cargo xtask vm test --bless`");
    }
}
