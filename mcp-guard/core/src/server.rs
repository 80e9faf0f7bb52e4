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
mod launcher;
mod lists;
mod options;
mod path;
mod reduced;
mod spec;
mod table;
mod tool;
mod walk;

use std::hash::{DefaultHasher, Hasher as _};

pub use self::launcher::Launcher;
use self::{
    table::{Runs, TABLE},
    tool::KnownProgram,
    walk::Context,
};

/// The name that servers share when there is no room for their own names. No server has it as its own.
pub const OTHER_IDENTITIES: &str = "(other)";

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
    /// The program runs the server as a child, and waits for it: `npx`, `uv run`, `make`.
    pub launches: bool,
    /// The identity has a relative path in it, because the working directory is not known. Another server may
    /// have it, too.
    pub is_relative: bool,
}

impl Named {
    /// Whether it may be the program that this script only starts: that of the same name for one platform.
    pub(crate) fn is_for_a_platform_of(&self, script: &str) -> bool {
        self.naming == Naming::Program && path::without_platform(&self.identity) == script
    }
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
    /// Returns whether a program that is named like this begins a server of its own, whatever starts it.
    #[must_use]
    pub fn begins(self) -> bool {
        match self {
            Self::Package | Self::Image => true,
            Self::Cached | Self::Script | Self::Program | Self::Unclear => false,
        }
    }

    /// Returns whether an identity of this kind may be, or contain, a path of a file.
    fn may_hold_a_path(self) -> bool {
        match self {
            Self::Package | Self::Cached | Self::Script => true,
            Self::Image | Self::Program | Self::Unclear => false,
        }
    }

    /// Returns whether the server is certainly of a kind that MCP clients start: a launcher's package. Clients of
    /// containers are often jobs of a build.
    #[must_use]
    pub fn is_firm(self) -> bool {
        match self {
            Self::Package | Self::Cached => true,
            Self::Image | Self::Script | Self::Program | Self::Unclear => false,
        }
    }
}

/// A command line, and what the kernel knows beside it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandLine {
    /// NUL-separated, as in `/proc/PID/cmdline`; empty if it could not be read.
    pub argv: Vec<u8>,
    /// The executable: `/proc/PID/exe`, or the file that was given to `execve`, which may be a script.
    pub exe: Option<Vec<u8>>,
    /// The working directory (`/proc/PID/cwd`), to which a relative path belongs.
    pub cwd: Option<Vec<u8>>,
}

impl CommandLine {
    /// Returns a number that two command lines share by chance only.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        hasher.write(&self.argv);
        hasher.finish()
    }

    /// Returns whether the process was started like this: it was not cut, and the process has not overwritten it
    /// with a title, which is one string, or has more than one null byte behind it.
    #[must_use]
    pub fn is_as_started(&self) -> bool {
        let Some(words) = self.argv.strip_suffix(b"\0") else { return false };
        let is_path = || self.exe.as_deref() == Some(words);
        !words.ends_with(b"\0") && (words.contains(&0) || is_path())
    }

    /// Whether it is known which file runs.
    #[must_use]
    pub fn has_executable(&self) -> bool {
        executable(self).is_some()
    }

    /// Adds what `/proc` shows of the same process, which may run another program by now.
    #[must_use]
    pub fn completed_by(self, seen: Self) -> Self {
        if self.argv.is_empty() {
            return seen;
        }
        let is_same = seen.argv.starts_with(&self.argv);
        let exe = if executable(&self).is_none() && is_same { seen.exe } else { self.exe };
        Self { argv: self.argv, exe, cwd: seen.cwd }
    }
}

impl From<Vec<u8>> for CommandLine {
    fn from(argv: Vec<u8>) -> Self {
        Self { argv, ..Self::default() }
    }
}

/// The known programs: the launchers of the policy, then the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grammar {
    tools: Vec<KnownProgram>,
}

impl Default for Grammar {
    fn default() -> Self {
        Self { tools: TABLE.iter().flat_map(KnownProgram::of).collect() }
    }
}

impl Grammar {
    /// Returns the table, and `launchers` before it.
    #[must_use]
    pub fn extended_by(launchers: &[Launcher]) -> Self {
        let mut tools: Vec<KnownProgram> = launchers.iter().map(Launcher::known).collect();
        tools.extend(Self::default().tools);
        Self { tools }
    }

    /// Names the programs that are launchers.
    pub fn launchers(&self) -> impl Iterator<Item = &str> {
        let is_launcher = |tool: &&KnownProgram| matches!(tool.runs, Runs::Package(_));
        self.tools.iter().filter(is_launcher).map(KnownProgram::name)
    }

    /// Returns what a command line starts. The executable decides if the command line claims another.
    #[must_use]
    pub fn identify(&self, command: &CommandLine) -> Start {
        let words = self.words(command);
        let cwd = command.cwd.as_deref().map(argv::text);
        let cwd = cwd.map(|cwd| cwd.strip_suffix(" (deleted)").unwrap_or(cwd));
        let mut start = self.walk(&words, Context::top(cwd));
        if cwd.is_none()
            && let Start::Server(named) = &mut start
            && named.naming.may_hold_a_path()
        {
            let elsewhere = self.walk(&words, Context::top(Some("/")));
            named.is_relative = !matches!(elsewhere, Start::Server(other) if other == *named);
        }
        start
    }

    /// Returns whether `/proc` must be asked for more of a process before its server has a name: for the
    /// executable, if the program was started through a link of the kernel, or for the working directory, if it
    /// runs a relative file.
    #[must_use]
    pub fn lacks(&self, command: &CommandLine) -> bool {
        let words = self.words(command);
        let Some(first) = words.first() else { return false };
        if let Some(tool) = self.tool(argv::program_name(first)) {
            let claims = !matches!(tool.runs, Runs::Shell | Runs::Wrapper | Runs::Env);
            let is_relative =
                || matches!(self.identify(command), Start::Server(named) if named.is_relative);
            return (claims && executable(command).is_none()) || is_relative();
        }
        !claim::names_a_file(first)
    }

    /// Splits a command line. The first word is the executable, if the command line claims another.
    fn words<'a>(&self, command: &'a CommandLine) -> Vec<&'a str> {
        let words = argv::split(&command.argv);
        match executable(command) {
            Some(exe) => self.checked(exe, words),
            None => words,
        }
    }
}

fn executable(command: &CommandLine) -> Option<&str> {
    claim::executable(argv::text(command.exe.as_deref()?))
}

#[cfg(test)]
mod tests;
