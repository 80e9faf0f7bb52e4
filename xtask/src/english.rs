//! Holds the words of the repository to plain English: fails on those that read like a translation.

use std::{fmt, fs, path::Path};

use anyhow::{Context, Result, bail};

use crate::{program, workspace};

/// Phrases that are not used, each with what says the same. They match whole words, in any case.
const PHRASES: &[(&str, &str)] = &[
    ("anew", "again"),
    ("mend", "fix"),
    ("mends", "fixes"),
    ("mended", "fixed"),
    ("whoever", "name the actor"),
    ("whatever it is", "of any kind"),
    ("of so many", "at most N"),
    ("so many in", "at most N in"),
    ("is told of", "is notified of"),
    ("are told of", "are notified of"),
    ("is heard of", "is reported"),
    ("held by hand", "held by an operator"),
    ("stands against", "forbids or contradicts"),
    ("comes to nothing", "has no effect"),
    ("came to nothing", "had no effect"),
    ("at the latest after", "after at most"),
    ("inside of", "inside"),
    ("of its own accord", "by itself"),
    ("says so", "reports it"),
    ("found out", "detected"),
    ("goes on with", "continues"),
    ("made again", "re-created"),
];

/// Words that no comment begins with: what follows would have to be decoded.
const OPENINGS: &[&str] = &["What", "Of", "The same", "Whoever", "Whatever", "Who"];

/// The files that are read.
const ENDINGS: &[&str] = &["rs", "md", "toml", "service", "sh", "logrotate"];
/// This list itself.
const SELF: &str = "xtask/src/english.rs";

struct Fault {
    file: String,
    line: usize,
    found: String,
    instead: &'static str,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, found, instead } = self;
        write!(f, "{file}:{line}: \"{found}\" (instead: {instead})")
    }
}

/// # Errors
/// A file has one of the phrases; all of them are named.
pub fn check() -> Result<()> {
    let mut git = std::process::Command::new("git");
    git.arg("-C").arg(workspace::root()).args(["ls-files"]);
    let listed = program::output(&mut git).context("git ls-files")?;
    let mut faults = Vec::new();
    for file in listed.lines().filter(|file| is_read(file)) {
        // One that is deleted and not committed yet is still listed.
        let Ok(text) = fs::read_to_string(workspace::root().join(file)) else { continue };
        faults.extend(faults_in(file, &text));
    }
    if faults.is_empty() {
        return Ok(());
    }
    let all: Vec<String> = faults.iter().map(ToString::to_string).collect();
    bail!("{} places read like a translation:\n{}", all.len(), all.join("\n"))
}

fn is_read(file: &str) -> bool {
    let ending = Path::new(file).extension().and_then(|ending| ending.to_str());
    file != SELF && ending.is_some_and(|ending| ENDINGS.contains(&ending))
}

fn faults_in(file: &str, text: &str) -> Vec<Fault> {
    let is_rust = file.ends_with(".rs");
    let mut faults = Vec::new();
    let mut before = "";
    for (number, line) in text.lines().enumerate() {
        let fault = |found: &str, instead| Fault {
            file: file.to_owned(),
            line: number + 1,
            found: found.to_owned(),
            instead,
        };
        // Names of tests are sentences too.
        let lower = line.to_lowercase().replace('_', " ");
        // A word of an older version, which is still read.
        let is_old = line.trim_start().starts_with("#[serde(alias");
        let phrases = PHRASES.iter().filter(|(phrase, _)| !is_old && has_words(&lower, phrase));
        faults.extend(phrases.map(|(phrase, instead)| fault(phrase, *instead)));
        if is_rust && let Some(opening) = opening(before, line) {
            faults.push(fault(opening, "begin with the subject, or with a verb"));
        }
        before = line;
    }
    faults
}

/// The word that a comment begins with, if it is one of [`OPENINGS`].
fn opening(before: &str, line: &str) -> Option<&'static str> {
    let comment = comment(line)?;
    // Not a sentence that goes on from the line above.
    if comment_goes_on(before) {
        return None;
    }
    OPENINGS.iter().copied().find(|word| {
        comment.strip_prefix(word).is_some_and(|rest| rest.starts_with([' ', ',', ':']))
    })
}

fn comment(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let text = line.strip_prefix("///").or_else(|| line.strip_prefix("//!"));
    text.or_else(|| line.strip_prefix("//")).map(str::trim_start)
}

fn comment_goes_on(line: &str) -> bool {
    comment(line).is_some_and(|text| !text.is_empty() && !text.ends_with(['.', ':', '!', '?']))
}

/// `phrase` stands in `text` between two ends of words. Both are lower case.
fn has_words(text: &str, phrase: &str) -> bool {
    let is_end = |end: Option<char>| end.is_none_or(|next| !next.is_alphanumeric());
    text.match_indices(phrase).any(|(at, found)| {
        is_end(text[..at].chars().next_back()) && is_end(text[at + found.len()..].chars().next())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(file: &str, text: &str) -> Vec<String> {
        faults_in(file, text).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_phrase_is_named_with_its_file_and_line() {
        let text = "fine\nThe list is read Anew, and mended.\n";
        let expected = ["a.md:2: \"anew\" (instead: again)", "a.md:2: \"mended\" (instead: fixed)"];
        assert_eq!(found("a.md", text), expected);
    }

    #[test]
    fn only_whole_words_count() {
        assert_eq!(found("a.md", "an amendment, canewood, says sorry"), Vec::<String>::new());
        assert_eq!(found("a.rs", "fn it_is_read_anew() {}").len(), 1, "the name of a test too");
    }

    #[test]
    fn a_comment_begins_with_its_subject() {
        assert_eq!(found("a.rs", "    /// What is read.\n").len(), 1);
        assert_eq!(found("a.rs", "//! Of one guard.\n").len(), 1);
        assert_eq!(found("a.rs", "/// Reads it. The caller says\n/// What it is.\n").len(), 0);
        assert_eq!(found("a.rs", "/// Whole numbers, offset by one.\n").len(), 0);
        assert_eq!(found("a.md", "What is read is kept.\n").len(), 0, "prose is for a reader");
    }
}
