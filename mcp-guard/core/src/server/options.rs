//! Reads the options of one program.

use std::collections::BTreeMap;

use super::table::Syntax;

/// The meaning of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Means {
    Flag,
    Value,
    Pair,
    Number,
    Names,
    Place,
    Module,
    Code,
    Information,
}

/// The options of a program, and how it writes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    known: BTreeMap<String, Means>,
    /// Beginnings of options, from the `*` of the lists.
    beginnings: Vec<(String, Means)>,
    clusters: bool,
    truths: bool,
    /// Takes every other option for a flag. Only the policy's launchers do.
    others_are_flags: bool,
}

/// The next part of a command line that matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part<'a> {
    /// The value of an option that names what is run.
    Names(&'a str),
    Place(&'a str),
    Module,
    Code,
    Information,
    /// An unknown option with a word behind it, which may be its value or not.
    Unclear,
    /// `--`: no options follow.
    End,
    Word(&'a str),
}

impl Options {
    pub fn of(syntax: &Syntax) -> Self {
        let mut options =
            Self { clusters: syntax.clusters, truths: syntax.truths, ..Self::default() };
        let lists = |means, lists: &[&'static str]| {
            lists.iter().flat_map(|list| list.split_whitespace()).map(move |o| (o, means)).collect()
        };
        let all: [Vec<(&str, Means)>; 9] = [
            lists(Means::Flag, syntax.flags),
            lists(Means::Value, syntax.values),
            lists(Means::Pair, &[syntax.pairs]),
            lists(Means::Number, &[syntax.numbers]),
            lists(Means::Information, &[syntax.information]),
            lists(Means::Code, &[syntax.code]),
            lists(Means::Module, &[syntax.module]),
            lists(Means::Place, &[syntax.places]),
            lists(Means::Names, &[syntax.names]),
        ];
        for (option, means) in all.into_iter().flatten() {
            options.add(option, means);
        }
        options
    }

    /// Returns options of which every unlisted one is a flag.
    pub fn with_flags() -> Self {
        Self { others_are_flags: true, ..Self::default() }
    }

    fn add(&mut self, option: &str, means: Means) {
        match option.strip_suffix('*') {
            Some(beginning) => self.beginnings.push((beginning.to_owned(), means)),
            None => self.add_exactly(option, means),
        }
    }

    /// Adds an option, or changes its meaning.
    pub fn add_exactly(&mut self, option: &str, means: Means) {
        self.known.insert(option.to_owned(), means);
    }

    pub fn no_other_flags(&mut self) {
        self.others_are_flags = false;
    }

    fn means(&self, option: &str) -> Option<Means> {
        let begins =
            || self.beginnings.iter().find(|(start, _)| option.starts_with(start.as_str()));
        self.known.get(option).copied().or_else(|| begins().map(|(_, means)| *means))
    }

    /// Takes words up to the next part that matters. Returns `None` at the end.
    pub fn next<'a>(&self, words: &mut &[&'a str]) -> Option<Part<'a>> {
        loop {
            let word = take(words)?;
            if word == "--" {
                return Some(Part::End);
            }
            if !is_option(word) {
                return Some(Part::Word(word));
            }
            let (option, attached) = match word.split_once('=') {
                Some((option, value)) => (option, Some(value)),
                None => (word, None),
            };
            let part = match self.means(option) {
                Some(means) => self.act(means, attached, words),
                None if self.clusters && !word.starts_with("--") => self.cluster(word, words),
                None if attached.is_some() => None,
                None => self.unknown(words),
            };
            if part.is_some() {
                return part;
            }
        }
    }

    /// Takes the value of an option. Returns a part if it matters.
    fn act<'a>(
        &self,
        means: Means,
        attached: Option<&'a str>,
        words: &mut &[&'a str],
    ) -> Option<Part<'a>> {
        let mut value = || attached.or_else(|| take(words));
        match means {
            Means::Names => return value().map(Part::Names),
            Means::Place => return value().map(Part::Place),
            Means::Value => {
                value();
            }
            Means::Pair => {
                value();
                take(words);
            }
            Means::Flag if self.truths => skip_if(words, attached, |w| w == "true" || w == "false"),
            Means::Number => {
                skip_if(words, attached, |w| w.bytes().all(|b| b.is_ascii_digit() || b == b'.'));
            }
            Means::Flag => {}
            Means::Module => return Some(Part::Module),
            Means::Code => return Some(Part::Code),
            Means::Information => return Some(Part::Information),
        }
        None
    }

    /// Reads short options that share a dash. The last may have its value in the same word.
    fn cluster<'a>(&self, word: &'a str, words: &mut &[&'a str]) -> Option<Part<'a>> {
        for (at, letter) in word.char_indices().skip(1) {
            let behind = &word[at + letter.len_utf8()..];
            match self.means(&format!("-{letter}")) {
                Some(Means::Flag) => {}
                Some(means) => {
                    let attached = behind.strip_prefix('=').unwrap_or(behind);
                    return self.act(means, Some(attached).filter(|v| !v.is_empty()), words);
                }
                None if word.contains('=') => return None,
                None => return self.unknown(words),
            }
        }
        None
    }

    fn unknown<'a>(&self, words: &[&'a str]) -> Option<Part<'a>> {
        let may_be_value = words.first().is_some_and(|word| !is_option(word));
        (may_be_value && !self.others_are_flags).then_some(Part::Unclear)
    }
}

fn is_option(word: &str) -> bool {
    word.starts_with('-') && word != "-"
}

pub(super) fn take<'a>(words: &mut &[&'a str]) -> Option<&'a str> {
    let (first, rest) = words.split_first()?;
    *words = rest;
    Some(first)
}

fn skip_if(words: &mut &[&str], attached: Option<&str>, is_value: impl Fn(&str) -> bool) {
    if attached.is_none() && words.first().is_some_and(|word| is_value(word)) {
        take(words);
    }
}
