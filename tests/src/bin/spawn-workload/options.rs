//! The command line.

use anyhow::{Context, Result, bail, ensure};
use mcp_guard_tests::flags::Flags;
use std::fs::File;
use std::time::Duration;

/// The hidden first argument of the program that the exec cases start.
pub const TICK: &str = "--tick";

const KEYS: [&str; 6] = ["--case", "--seconds", "--workers", "--into", "--alive", "--max"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    Fork,
    Vfork,
    Clone3,
    IntoCgroup,
    CloneParent,
    Threads,
    Exec,
    ExecThread,
    Bomb,
    Mix,
}

const CASES: [(&str, Case); 10] = [
    ("fork", Case::Fork),
    ("vfork", Case::Vfork),
    ("clone3", Case::Clone3),
    ("into-cgroup", Case::IntoCgroup),
    ("clone-parent", Case::CloneParent),
    ("threads", Case::Threads),
    ("exec", Case::Exec),
    ("exec-thread", Case::ExecThread),
    ("bomb", Case::Bomb),
    ("mix", Case::Mix),
];

impl Case {
    pub fn name(self) -> &'static str {
        CASES.iter().find(|(_, case)| *case == self).map_or("?", |(name, _)| name)
    }

    /// Returns the cases that `mix` runs in turn. Without a directory, `into-cgroup` is left out.
    pub fn all(with_into: bool) -> Vec<Self> {
        let single = CASES.iter().map(|(_, case)| *case).filter(|case| *case != Self::Mix);
        single.filter(|case| with_into || *case != Self::IntoCgroup).collect()
    }
}

pub struct Options {
    pub case: Case,
    pub time: Duration,
    pub workers: u64,
    /// The v2 directory in which `into-cgroup` creates children.
    pub into: Option<File>,
    /// How many children each worker of `bomb` tries to have alive at once.
    pub alive: u64,
    /// The most processes and threads to create, including the workers.
    pub max: u64,
}

impl Options {
    pub fn parse(words: impl Iterator<Item = String>) -> Result<Self> {
        let flags = Flags::parse(words, &KEYS, &[])?;
        let name = flags.need("--case")?;
        let Some(&(_, case)) = CASES.iter().find(|(known, _)| *known == name) else {
            bail!("--case {name}: must be one of {:?}", CASES.map(|(known, _)| known));
        };
        let into = flags.get("--into").map(|dir| File::open(dir).with_context(|| dir.to_string()));
        let options = Self {
            case,
            time: Duration::from_secs(flags.number("--seconds", 1)?),
            workers: flags.number("--workers", 1)?,
            into: into.transpose()?,
            alive: flags.number("--alive", 100)?,
            max: flags.number("--max", 2_000_000)?,
        };
        ensure!((1..=256).contains(&options.workers), "--workers must be 1 to 256");
        ensure!((1..=10_000).contains(&options.alive), "--alive must be 1 to 10000");
        ensure!(
            case != Case::IntoCgroup || options.into.is_some(),
            "--case into-cgroup needs --into DIR"
        );
        Ok(options)
    }
}
