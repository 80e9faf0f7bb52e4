//! Names the server that a command line starts.
//!
//! The identity is, in this order:
//!
//! 1. the package of a launcher (`npx`, `uvx`, ...), and what it runs if it only wraps another server;
//! 2. the image of a container client (`docker run`);
//! 3. the script or the module of an interpreter;
//! 4. the name of the program, with at most two plain words behind it.
//!
//! No identity has the value of an option in it, unless the table says that the option names what is run. It has
//! no user, no password and no query of an address either. Where an unknown option could have a value, nothing
//! behind it is believed: the start is [`Naming::Unclear`].
//!
//! Command lines come in two forms: as the caller typed them (`npm exec X`), and, for a `#!` script, as the
//! kernel rewrote them (`/usr/bin/env node /usr/bin/npm exec X`, then `node /usr/bin/npm exec X`). A launcher
//! further right in another program's command line starts nothing: in `mcp-proxy --port 1 -- npx X`, only the
//! later exec of `npx` counts.

mod argv;
mod claim;
mod clean;
mod lists;
mod options;
mod path;
mod spec;
mod table;
mod tool;
mod walk;

use self::{
    options::{Means, Options},
    spec::Spec,
    table::{Runs, TABLE},
    tool::KnownProgram,
    walk::Context,
};

/// The part that a program plays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    Server(Named),
    /// Runs between a launcher and the program that it starts.
    Shell,
    /// Starts another program, which then has a start of its own: `timeout`, `tini`.
    Wrapper,
}

/// A server's identity, and where it is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Printable, at most 214 bytes.
    pub identity: String,
    pub naming: Naming,
}

/// The rule that gave an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// The package of a launcher.
    Package,
    /// A file in the cache of a launcher, which may be gone.
    Cached,
    /// The image of a container client.
    Image,
    /// The script or the module of an interpreter.
    Script,
    /// The name of the program.
    Program,
    /// The program alone, because its command line does not say what it runs. Two such starts need not be of
    /// one server, so they must not be counted as copies.
    Unclear,
}

impl Naming {
    /// Returns whether the server is certainly of a kind that MCP clients start: a launcher's package, or a
    /// container.
    #[must_use]
    pub fn is_firm(self) -> bool {
        match self {
            Self::Package | Self::Cached | Self::Image => true,
            Self::Script | Self::Program | Self::Unclear => false,
        }
    }
}

/// The known programs: the launchers of the policy, then the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grammar {
    tools: Vec<KnownProgram>,
}

/// A launcher of the policy. Each list is one of the options' meanings.
#[derive(Clone, Debug, Default)]
pub struct LauncherForm {
    pub program: String,
    pub subcommand: Vec<String>,
    pub names: Vec<String>,
    pub values: Vec<String>,
    /// If present, an option in no list may have a value.
    pub flags: Option<Vec<String>>,
    pub information: Vec<String>,
}

impl Default for Grammar {
    fn default() -> Self {
        Self { tools: TABLE.iter().flat_map(KnownProgram::of).collect() }
    }
}

impl Grammar {
    /// Returns the table, and `launchers` before it.
    #[must_use]
    pub fn extended_by(launchers: Vec<LauncherForm>) -> Self {
        let mut tools: Vec<KnownProgram> = launchers.into_iter().map(launcher).collect();
        tools.extend(Self::default().tools);
        Self { tools }
    }

    /// Names the programs that are launchers.
    pub fn launchers(&self) -> impl Iterator<Item = &str> {
        let is_launcher = |tool: &&KnownProgram| matches!(tool.runs, Runs::Package(_));
        self.tools.iter().filter(is_launcher).map(KnownProgram::name)
    }

    /// Returns what a command line starts. `exe` is the executable (`/proc/PID/exe`, `bprm->filename`), which
    /// decides if the command line claims another. `cwd` makes relative paths absolute.
    #[must_use]
    pub fn identify(&self, exe: Option<&[u8]>, argv: &[u8], cwd: Option<&[u8]>) -> Start {
        let words = argv::split(argv);
        let words = match exe.map(argv::text) {
            Some(exe) => self.checked(exe, words),
            None => words,
        };
        self.walk(&words, Context::top(cwd.map(argv::text)))
    }
}

fn launcher(form: LauncherForm) -> KnownProgram {
    let mut options = Options::with_flags();
    if form.flags.is_some() {
        options.no_other_flags();
    }
    let lists = [
        (form.flags.unwrap_or_default(), Means::Flag),
        (form.values, Means::Value),
        (form.information, Means::Information),
        (form.names, Means::Names),
    ];
    for (list, means) in lists {
        list.iter().for_each(|option| options.add_exactly(option, means));
    }
    KnownProgram::launcher(form.program, form.subcommand, options, Runs::Package(Spec::Any))
}

#[cfg(test)]
mod tests;
