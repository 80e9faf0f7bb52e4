//! Finds the package that a launcher's command line starts.
//!
//! A launcher (`npm exec`, `npx`, `uvx`, ...) fetches a package and runs it. The identity of a server is that
//! package without its version. The process that the launcher finally runs has a bin name that may differ
//! (`@21st-dev/magic` runs `magic`). [`crate::server`] has the grammar.

use std::sync::LazyLock;

use serde::Deserialize;

use crate::server::{Grammar, LauncherForm, Named, Naming, Start};

/// A launcher, described by the syntax of its command line. Launchers of the policy are tried
/// before the built-in ones.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Launcher {
    /// Base name of the program or script, without `.js`, `.cjs`, `.mjs` or `.py`.
    pub program: String,
    /// Words that must follow the program; options between them are skipped. `["tool", "run"]`
    /// stands for `uv tool run`. Empty for `npx`.
    #[serde(default)]
    pub subcommand: Vec<String>,
    /// Options whose value is the package. If a command line has none of them, the package is the
    /// first word that is neither the subcommand nor an option.
    #[serde(default)]
    pub package_options: Vec<String>,
    /// Options that take the next word as their value, which is then not the package.
    #[serde(default)]
    pub value_options: Vec<String>,
    /// Options without a value. If this list is given, a command line with an option that is in none
    /// of the lists has no known package, because the next word may be the option's value. If it is
    /// not given, such options count as options without a value.
    #[serde(default)]
    pub flag_options: Option<Vec<String>>,
    /// Options with which the launcher only prints information and runs no package.
    #[serde(default)]
    pub information_options: Vec<String>,
}

/// The known launchers: those of the policy, then the built-in ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Launchers(Grammar);

/// The part that a program plays in a launcher tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Program {
    /// Runs the package of this identity.
    Launcher(String),
    /// Runs between a launcher and the program it starts.
    Shell,
    Other,
}

impl Launchers {
    /// Returns the built-in launchers and `more`, which take precedence.
    #[must_use]
    pub fn extended_by(more: &[Launcher]) -> Self {
        let form = |launcher: &Launcher| LauncherForm {
            program: launcher.program.clone(),
            subcommand: launcher.subcommand.clone(),
            names: launcher.package_options.clone(),
            values: launcher.value_options.clone(),
            flags: launcher.flag_options.clone(),
            information: launcher.information_options.clone(),
        };
        Self(Grammar::extended_by(more.iter().map(form).collect()))
    }

    /// Returns the grammar with these launchers.
    #[must_use]
    pub fn grammar(&self) -> &Grammar {
        &self.0
    }

    /// Classifies a NUL-separated argv as the kernel stores it (`/proc/PID/cmdline`, an exec
    /// record).
    #[must_use]
    pub fn classify(&self, argv: &[u8]) -> Program {
        match self.0.identify(None, argv, None) {
            Start::Server(Named { identity, naming: Naming::Package }) => {
                Program::Launcher(identity)
            }
            Start::Shell => Program::Shell,
            Start::Server(_) | Start::Wrapper => Program::Other,
        }
    }
}

/// Returns the name of a server whose launcher is gone, by the cache that the launcher put it into:
/// `node CACHE/_npx/HASH/node_modules/.bin/BIN`. Used only for processes whose launcher was never
/// seen. A bin name may differ from the package.
#[must_use]
pub fn stranded_server(argv: &[u8]) -> Option<String> {
    static BUILT_IN: LazyLock<Grammar> = LazyLock::new(Grammar::default);
    match BUILT_IN.identify(None, argv, None) {
        Start::Server(Named { identity, naming: Naming::Cached }) => Some(identity),
        Start::Server(_) | Start::Shell | Start::Wrapper => None,
    }
}

#[cfg(test)]
mod tests;
