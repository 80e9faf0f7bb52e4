//! A command line of `--key value` pairs and `--switch`es, for programs that must start in
//! microseconds.

use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;

#[derive(Debug)]
pub struct Flags {
    values: BTreeMap<String, String>,
}

impl Flags {
    /// Parses a command line. An unknown word is an error: a test with a mistyped option must not
    /// run something else.
    pub fn parse(
        words: impl Iterator<Item = String>,
        keys: &[&str],
        switches: &[&str],
    ) -> Result<Self> {
        let mut words = words;
        let mut values = BTreeMap::new();
        while let Some(word) = words.next() {
            let value = if keys.contains(&word.as_str()) {
                words.next().with_context(|| format!("{word} needs a value"))?
            } else if switches.contains(&word.as_str()) {
                String::new()
            } else {
                bail!("unknown word {word}; expected one of {keys:?} {switches:?}");
            };
            values.insert(word, value);
        }
        Ok(Self { values })
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(String::as_str)
    }

    pub fn need(&self, key: &str) -> Result<&str> {
        self.get(key).with_context(|| format!("{key} is missing"))
    }

    pub fn has(&self, switch: &str) -> bool {
        self.values.contains_key(switch)
    }

    pub fn number(&self, key: &str, default: u64) -> Result<u64> {
        let Some(text) = self.get(key) else { return Ok(default) };
        text.parse().with_context(|| format!("{key} {text}: not a number"))
    }
}

#[cfg(test)]
mod tests {
    use super::Flags;

    fn parse(line: &str) -> anyhow::Result<Flags> {
        Flags::parse(line.split_whitespace().map(String::from), &["--count"], &["--crash"])
    }

    #[test]
    fn pairs_switches_and_defaults_are_parsed() {
        let flags = parse("--count 7 --crash").unwrap();
        assert_eq!(flags.number("--count", 1).unwrap(), 7);
        assert!(flags.has("--crash"));
        assert_eq!(parse("").unwrap().number("--count", 1).unwrap(), 1);
    }

    #[test]
    fn a_mistyped_command_line_is_an_error() {
        for line in ["--cuont 7", "--count", "stray"] {
            assert!(parse(line).is_err(), "{line}");
        }
        assert!(parse("--count x").unwrap().number("--count", 1).is_err());
    }
}
