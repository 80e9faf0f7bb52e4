//! Reduces a command line to what names its server, so that it can be recorded.

use super::{CommandLine, Grammar, argv, clean::clean};
use crate::redact;

/// Most words that are kept.
const MOST_WORDS: usize = 64;
/// Most bytes of a word.
const MOST_BYTES: usize = 512;
/// The number of words behind which no fewer are looked for.
const TRIED: usize = 12;

impl Grammar {
    /// Returns the first words of a command line that still start the same, without users, queries and secrets. The
    /// executable and the working directory are left out if they change nothing. Where a mask hides the name, all
    /// words are kept.
    #[must_use]
    pub fn reduced(&self, command: &CommandLine) -> CommandLine {
        let start = self.identify(command);
        let words = harmless(&argv::split(&command.argv));
        let [exe, cwd] =
            [&command.exe, &command.cwd].map(|path| path.as_deref().map(harmless_path));
        let with = |count: usize, exe: &Option<Vec<u8>>, cwd: &Option<Vec<u8>>| CommandLine {
            argv: words[..count].iter().flat_map(|word| word.bytes().chain([0])).collect(),
            exe: exe.clone(),
            cwd: cwd.clone(),
        };
        let is_same = |command: &CommandLine| self.identify(command) == start;
        let exe = exe.filter(|_| !is_same(&with(words.len(), &None, &cwd)));
        let cwd = cwd.filter(|_| !is_same(&with(words.len(), &exe, &None)));
        let mut fewer = (0..words.len().min(TRIED)).map(|count| with(count, &exe, &cwd));
        fewer.find(is_same).unwrap_or_else(|| with(words.len(), &exe, &cwd))
    }
}

fn harmless(words: &[&str]) -> Vec<String> {
    let words = words.iter().take(MOST_WORDS).copied();
    redact::words(words).iter().map(|word| bounded(harmless_word(word))).collect()
}

/// A word may be a title, or a script with command lines of its own.
fn harmless_word(word: &str) -> String {
    if word.contains(' ') {
        let words = redact::words(word.split(' '));
        return words.iter().map(|word| harmless_word(word)).collect::<Vec<_>>().join(" ");
    }
    match word.split_once('=').filter(|_| word.starts_with('-')) {
        Some((option, value)) => format!("{option}={}", clean(value)),
        None => clean(word),
    }
}

fn harmless_path(path: &[u8]) -> Vec<u8> {
    bounded(redact::text(argv::text(path))).into_bytes()
}

fn bounded(mut word: String) -> String {
    word.truncate(word.floor_char_boundary(MOST_BYTES));
    word
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::{
            Start,
            tests::{
                GRAMMAR,
                cases::{OTHERS, REPORTED},
                joined,
            },
        },
        *,
    };

    fn command(words: &str) -> CommandLine {
        CommandLine { argv: joined(words), exe: None, cwd: Some(b"/srv/x".to_vec()) }
    }

    fn reduced(words: &str) -> String {
        let command = GRAMMAR.reduced(&command(words));
        let words: Vec<String> =
            argv::split(&command.argv).into_iter().map(str::to_owned).collect();
        words.join("|")
    }

    #[test]
    fn only_the_words_that_name_the_server_are_kept() {
        for (words, kept) in [
            ("npx|-y|figma-mcp|--port|3000", "npx|-y|figma-mcp"),
            ("sh|-c|curl https://h/?key=1 && node a.js", "sh"),
            ("node|/srv/a.js|--api-key|zqsecret", "node|/srv/a.js"),
            ("uvx|--from|git+https://u:zqsecret@h/o/r|serena", "uvx|--from|git+https://h/o/r"),
            ("sleep|60", "sleep"),
        ] {
            assert_eq!(reduced(words), kept);
        }
    }

    #[test]
    fn a_reduced_command_line_starts_the_same() {
        let wrong: Vec<_> = REPORTED
            .iter()
            .chain(OTHERS)
            .map(|(words, ..)| *words)
            .filter(|words| {
                let reduced = GRAMMAR.reduced(&command(words));
                GRAMMAR.identify(&reduced) != GRAMMAR.identify(&command(words))
            })
            .collect();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn paths_are_kept_only_if_they_matter() {
        let whole = CommandLine {
            argv: joined("node|a.js|x"),
            exe: Some(b"/usr/bin/node".to_vec()),
            cwd: Some(b"/srv/x".to_vec()),
        };
        let reduced = GRAMMAR.reduced(&whole);
        let expected =
            CommandLine { argv: joined("node|a.js"), exe: None, cwd: Some(b"/srv/x".to_vec()) };
        assert_eq!(reduced, expected);
        let claims_another =
            CommandLine { argv: joined("npx|a"), exe: Some(b"/opt/other".to_vec()), cwd: None };
        assert_eq!(GRAMMAR.reduced(&claims_another).exe, claims_another.exe);
    }

    #[test]
    fn no_secret_is_kept() {
        for words in [
            "npx|--registry|https://u:zqsecret@h/x|-y|a",
            "github:zqsecret@owner/name|a",
            "prog --token zqsecret -v",
            "node|--token=zqsecret|-Z",
            "env|API_KEY=zqsecret|node|a.js",
            "npx|-y|mcp-remote|https://h/a?key=zqsecret",
            "docker|run|-e|TOKEN=zqsecret|-i|image",
        ] {
            assert!(!reduced(words).contains("zqsecret"), "{words}: {}", reduced(words));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_reduced(argv: Vec<u8>, exe: Option<Vec<u8>>) {
            let whole = CommandLine { argv, exe, cwd: None };
            let once = GRAMMAR.reduced(&whole);
            prop_assert!(once.argv.len() <= MOST_WORDS * (MOST_BYTES + 1));
            if let Start::Server(named) = GRAMMAR.identify(&once) {
                prop_assert!(!named.identity.is_empty());
            }
        }
    }
}
