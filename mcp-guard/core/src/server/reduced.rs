//! Reduces a command line to what names its server, so that it can be recorded.

use super::{CommandLine, Grammar, argv, clean::clean};
use crate::redact;

/// Most words that are kept.
const MOST_WORDS: usize = 64;
/// Most bytes of a word.
const MOST_BYTES: usize = 512;

impl Grammar {
    /// Returns the first words of a command line that still start the same, without users, queries and secrets. The
    /// executable and the working directory are left out if they change nothing. Where a mask or a cut changes the
    /// name, as many words are kept as name the server before it.
    #[must_use]
    pub fn reduced(&self, command: &CommandLine) -> CommandLine {
        let start = self.identify(command);
        let is_same = |parts: &Parts| self.identify(&parts.joined()) == start;
        let mut whole = Parts::of(command);
        let mut parts = whole.harmless();
        if is_same(&Parts { exe: None, ..parts.clone() }) {
            (parts.exe, whole.exe) = (None, None);
        }
        if is_same(&Parts { cwd: None, ..parts.clone() }) {
            (parts.cwd, whole.cwd) = (None, None);
        }
        let fewest = parts.fewest(is_same).or_else(|| whole.fewest(is_same));
        let parts = parts.first(fewest.unwrap_or(1));
        let less = parts.with_less_of_the_last().find(is_same);
        less.unwrap_or(parts).joined()
    }
}

/// A command line in words.
#[derive(Clone)]
struct Parts {
    words: Vec<String>,
    exe: Option<Vec<u8>>,
    cwd: Option<Vec<u8>>,
}

impl Parts {
    fn of(command: &CommandLine) -> Self {
        let words = argv::split(&command.argv).into_iter().take(MOST_WORDS);
        let CommandLine { exe, cwd, .. } = command.clone();
        Self { words: words.map(str::to_owned).collect(), exe, cwd }
    }

    fn harmless(&self) -> Self {
        let [exe, cwd] = [&self.exe, &self.cwd].map(|path| path.as_deref().map(harmless_path));
        Self { words: harmless(&self.words), exe, cwd }
    }

    fn joined(&self) -> CommandLine {
        let argv = self.words.iter().flat_map(|word| word.bytes().chain([0])).collect();
        CommandLine { argv, exe: self.exe.clone(), cwd: self.cwd.clone() }
    }

    fn first(&self, count: usize) -> Self {
        Self { words: self.words.iter().take(count).cloned().collect(), ..self.clone() }
    }

    /// Returns the smallest number of words that are enough, unless all of them are not.
    fn fewest(&self, are_enough: impl Fn(&Self) -> bool) -> Option<usize> {
        let mut counts = 0..=self.words.len();
        are_enough(self).then(|| counts.find(|count| are_enough(&self.first(*count)))).flatten()
    }

    /// Cuts the last word at each of its spaces: it may be a title, or have a whole command line in it.
    fn with_less_of_the_last(&self) -> impl Iterator<Item = Self> {
        let (last, before) = self.words.split_last().map_or(("", &[][..]), |(l, b)| (&**l, b));
        last.match_indices(' ').map(|(space, _)| {
            let words = before.iter().cloned().chain([last[..=space].to_owned()]).collect();
            Self { words, ..self.clone() }
        })
    }
}

fn harmless(words: &[String]) -> Vec<String> {
    let words = words.iter().map(String::as_str);
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
    fn words_behind_the_name_are_not_kept_however_long_it_is_or_how_many_are_before_it() {
        let long = format!("/{}/server.py", "x".repeat(600));
        let python = format!("python3|{long}");
        for (name, behind) in [
            (
                "npx|-y|--registry|r|--cache|c|--userconfig|u|--script-shell|/bin/sh|mcp-db",
                "hunter2",
            ),
            (
                "docker|run|-i|--rm|--network|x|-e|A|-e|B|-e|C|-e|D|mcp/db",
                "--user|root|hunter2|-phunter3",
            ),
            (&python, "swordfish|hunter2"),
            ("postgres:", "hunter2|hunter3"),
        ] {
            assert_eq!(reduced(&format!("{name}|{behind}")), reduced(name));
        }
        assert_eq!(reduced(&python), format!("python3|{}", &long[..MOST_BYTES]));
        let many = format!("docker|run|{}mcp/db|hunter2", "-e|A|".repeat(MOST_WORDS));
        assert_eq!(reduced(&many), "docker");
    }

    #[test]
    fn of_a_title_or_a_command_line_in_a_word_only_the_name_is_kept() {
        for (words, kept) in [
            ("gunicorn: worker hunter2", "gunicorn: "),
            ("env|-S|npx -y mcp-db hunter2", "env|-S|npx -y mcp-db "),
            ("node|/srv/my app/a b.js|hunter2", "node|/srv/my app/a b.js"),
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
