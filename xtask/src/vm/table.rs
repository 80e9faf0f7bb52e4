//! Compares the table of kernels in docs/kernels.md with the facts that the guests detected.

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};

use super::follow::Failure;
use super::image::{IMAGES, Image};
use crate::workspace;

const DOCUMENT: &str = "docs/kernels.md";
const BEGIN: &str = "<!-- guests: begin -->\n";
const END: &str = "<!-- guests: end -->";
/// A cell without a value from any guest.
const UNKNOWN: &str = "–";

/// Rows that are not compared for a release that still gets new kernels: the kernel, and whether it
/// leaves out programs.
const MOVING: [&str; 2] = ["kernel", "programs"];

/// The rows in their order, each with a value per image.
type Table = Vec<(String, BTreeMap<String, String>)>;

/// Compares the table in docs/kernels.md with the facts of an image.
///
/// Returns one failure for each cell that differs. With `complete`, which means that all tests that
/// record facts ran, also returns one for each cell without a fact. With `bless`, writes the facts into
/// the document instead of comparing them.
pub fn check(
    image: &Image,
    facts: &[(String, String)],
    complete: bool,
    bless: bool,
) -> Result<Vec<Failure>> {
    // Guests run in parallel, and each writes its own column.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let file = workspace::root().join(DOCUMENT);
    let document = fs::read_to_string(&file).context("cannot read docs/kernels.md")?;
    let (before, rest) =
        document.split_once(BEGIN).context("docs/kernels.md has no table of kernels")?;
    let (text, after) =
        rest.split_once(END).context("the table of kernels in docs/kernels.md has no end")?;
    let mut table = parse(text);
    let mut wrong = if complete { untold(&table, image.name, facts) } else { Vec::new() };
    let others = enter(&mut table, image, facts);
    if bless {
        let text = format!("{before}{BEGIN}{}{END}{after}", render(&table));
        fs::write(&file, text).context("cannot write docs/kernels.md")?;
    } else {
        wrong.extend(others);
    }
    Ok(wrong)
}

/// Returns a failure for each cell of this image for which no fact was recorded.
fn untold(table: &Table, image: &str, facts: &[(String, String)]) -> Vec<Failure> {
    let told = |name: &str| facts.iter().any(|(fact, _)| fact == name);
    let untold = table.iter().filter(|(name, row)| row.contains_key(image) && !told(name));
    let why = |name: &str| format!("no test recorded {name:?} for {image}");
    untold.map(|(name, _)| failure(why(name), "its test failed or no longer exists")).collect()
}

fn failure(why: String, hint: &str) -> Failure {
    let what = "the table of kernels in docs/kernels.md".to_owned();
    Failure { what, why, output: hint.to_owned() }
}

/// Enters facts into the table, and returns a failure for each cell that had another value.
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
            let why = format!("it has {was:?} for {name:?} of {image}, the guest {value:?}");
            wrong.push(failure(why, "`cargo xtask vm test --bless` writes the guests' values"));
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
    // The line below the header sets the alignment of columns.
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
    fn a_rendered_table_is_parsed_back() {
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
    fn a_different_value_is_a_failure_and_an_equal_one_is_not() {
        let mut table = parse("| | trixie |\n|---|---|\n| kernel | 6.12 |\n");
        assert_eq!(enter(&mut table, image("trixie"), &facts(&[("kernel", "6.12")])), []);
        let wrong = enter(&mut table, image("trixie"), &facts(&[("kernel", "6.13")]));
        assert!(wrong[0].why.contains("\"6.12\" for \"kernel\" of trixie, the guest \"6.13\""));
    }

    #[test]
    fn a_kernel_that_moves_is_not_compared() {
        let mut table = parse("| | kernel-forky |\n|---|---|\n| kernel | 7.2 |\n| BTF | yes |\n");
        let moved = facts(&[("kernel", "7.3"), ("programs", "all run"), ("BTF", "no")]);
        let wrong = enter(&mut table, image("kernel-forky"), &moved);
        assert_eq!(wrong.len(), 1);
        assert!(wrong[0].why.contains("\"BTF\""));
    }

    #[test]
    fn a_cell_without_a_fact_is_a_failure() {
        let table = parse("| | trixie |\n|---|---|\n| kernel | 6.12 |\n| BTF | yes |\n| x | – |\n");
        let wrong = untold(&table, "trixie", &facts(&[("kernel", "6.12")]));
        assert_eq!(wrong.len(), 1);
        assert_eq!(wrong[0].why, "no test recorded \"BTF\" for trixie");
    }

    #[test]
    fn the_document_has_a_table_of_all_images() {
        let document = fs::read_to_string(workspace::root().join(DOCUMENT)).unwrap();
        let text = document.split_once(BEGIN).unwrap().1.split_once(END).unwrap().0;
        assert_eq!(render(&parse(text)), text, "run `cargo xtask vm test --bless`");
    }
}
