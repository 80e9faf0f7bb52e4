//! Launchers that the policy adds to the table.

use serde::Deserialize;

use super::{
    options::{Means, Options},
    spec::Spec,
    table::Runs,
    tool::KnownProgram,
};

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
    /// Options without a value. Without this key, each option that is not in `value_options`, `package_options` or
    /// `information_options` counts as one without a value. With this key, mcp-guard does not guess: if an option is in
    /// none of these lists either, the package is unknown, because the next word may be the option's value.
    #[serde(default)]
    pub flag_options: Option<Vec<String>>,
    /// Options with which the launcher only prints information and runs no package.
    #[serde(default)]
    pub information_options: Vec<String>,
}

impl Launcher {
    pub(super) fn known(&self) -> KnownProgram {
        let mut options = Options::with_flags();
        if self.flag_options.is_some() {
            options.no_other_flags();
        }
        let flags = self.flag_options.as_deref().unwrap_or_default();
        let lists = [
            (flags, Means::Flag),
            (&self.value_options, Means::Value),
            (&self.information_options, Means::Information),
            (&self.package_options, Means::Names),
        ];
        for (list, means) in lists {
            list.iter().for_each(|option| options.add_exactly(option, means));
        }
        let (program, subcommand) = (self.program.clone(), self.subcommand.clone());
        KnownProgram::launcher(program, subcommand, options, Runs::Package(Spec::Any))
    }
}
