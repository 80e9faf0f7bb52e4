//! Goes from the first word of a command line to what it runs.

use super::{
    Grammar, Named, Naming, OTHER_IDENTITIES, Start,
    argv::{base_name, program_name},
    claim::names_a_file,
    clean::{bounded, clean},
    options::take,
    path,
    spec::{self, Spec},
    table::{Runs, Wrapped},
    tool::{Clarity, KnownProgram, ToolArguments},
};
use crate::redact;

/// Where a command line is read.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    cwd: Option<&'a str>,
    /// How many programs were left out to get here.
    depth: u8,
    /// Plain words behind a program belong to its name.
    with_words: bool,
}

/// `env`, an interpreter, a script, a launcher: no server's command line is deeper.
const MAX_DEPTH: u8 = 8;
/// The most words behind a program's name, and the longest.
const MAX_WORDS: usize = 2;
const MAX_WORD: usize = 32;
const NAMELESS: &str = "(unknown)";
/// Words that say how a server is reached, and not which it is.
const TRANSPORTS: [&str; 5] = ["stdio", "sse", "http", "streamable-http", "streamablehttp"];

impl<'a> Context<'a> {
    pub fn top(cwd: Option<&'a str>) -> Self {
        Self { cwd, depth: 0, with_words: true }
    }

    fn deeper(self) -> Self {
        Self { depth: self.depth + 1, ..self }
    }
}

impl Grammar {
    pub(super) fn walk(&self, words: &[&str], at: Context<'_>) -> Start {
        let Some((first, arguments)) = words.split_first() else { return unclear("") };
        self.known(first, arguments, at, |_| true)
            .unwrap_or_else(|| self.program(first, arguments, at))
    }

    /// Returns what a program of the table starts. `None` if the program is not there, or starts nothing with
    /// these arguments.
    fn known(
        &self,
        first: &str,
        arguments: &[&str],
        at: Context<'_>,
        also: impl Fn(&KnownProgram) -> bool,
    ) -> Option<Start> {
        if at.depth > MAX_DEPTH {
            return Some(unclear(first));
        }
        let name = program_name(first);
        let tools = self.tools.iter().filter(|tool| tool.is_named(name) && also(tool));
        let mut starts = tools.filter_map(|tool| {
            let reading = tool.read(arguments)?;
            let mut start = self.run(tool, first, arguments, &reading, at.deeper())?;
            if let Start::Server(named) = &mut start {
                named.launches |= tool.launches;
            }
            Some(start)
        });
        starts.next()
    }

    /// `None` if another tool of the same name must be asked.
    fn run(
        &self,
        tool: &KnownProgram,
        first: &str,
        arguments: &[&str],
        reading: &ToolArguments<'_, '_>,
        at: Context<'_>,
    ) -> Option<Start> {
        let is_file = reading.word.is_some_and(path::is_file);
        match tool.runs {
            Runs::Shell => Some(self.shell(arguments, at)),
            Runs::Wrapper => Some(Start::Wrapper),
            Runs::Env => Some(self.env(arguments, reading, at)),
            _ if reading.clarity == Clarity::Unclear => Some(unclear(tool.name())),
            Runs::FileOnly(_) if !is_file => None,
            Runs::Package(spec) => Some(self.package(tool, spec, reading, at)),
            Runs::Image => Some(self.image(tool, reading, at)),
            Runs::Script(spec) | Runs::FileOnly(spec) => Some(self.script(tool, spec, reading, at)),
            Runs::Command => Some(self.command(tool, reading, at)),
            Runs::Becomes => self.becomes(reading, at),
            Runs::Target => Some(target(tool, reading, at)),
            Runs::Wraps(wrapped) => {
                let whole = whole(tool, wrapped, reading);
                let is_cached = path::script(first, at.cwd).is_some_and(|found| found.is_cached);
                let naming = if is_cached { Naming::Cached } else { Naming::Script };
                Some(named(whole.as_deref().unwrap_or(tool.name()), naming))
            }
        }
    }

    fn package(
        &self,
        tool: &KnownProgram,
        spec: Spec,
        reading: &ToolArguments<'_, '_>,
        at: Context<'_>,
    ) -> Start {
        // Only npm reads its own options behind the command. npx and all others pass them to the server.
        let behind = if tool.name() == "npm" { package_behind(reading.rest) } else { None };
        let text = reading.named.or(behind).or(reading.word).filter(|text| !text.is_empty());
        let Some(name) = text.and_then(|text| spec::name(spec, text, None)) else {
            return unclear(tool.name());
        };
        let whole = self.wrapping(&name, reading.rest, at, true);
        named(whole.as_deref().unwrap_or(&name), Naming::Package)
    }

    /// Returns the name of a package with what it wraps, if it wraps something. An interpreter that no launcher
    /// started is left out: the script alone is the server.
    fn wrapping(
        &self,
        package: &str,
        arguments: &[&str],
        at: Context<'_>,
        is_launched: bool,
    ) -> Option<String> {
        let mut found =
            self.tools.iter().filter(|tool| tool.is_named(package)).filter_map(|tool| {
                let reading =
                    tool.read(arguments).filter(|reading| reading.clarity == Clarity::Enough)?;
                match tool.runs {
                    Runs::Wraps(wrapped) => whole(tool, wrapped, &reading),
                    Runs::Script(spec) | Runs::FileOnly(spec) => {
                        let text =
                            reading.named.or(reading.word.filter(|word| path::is_file(word)))?;
                        let inner = spec::name(spec, text, at.cwd)?;
                        Some(if is_launched { joined(tool, package, &inner) } else { inner })
                    }
                    Runs::Package(_)
                    | Runs::Image
                    | Runs::Command
                    | Runs::Becomes
                    | Runs::Env
                    | Runs::Target
                    | Runs::Shell
                    | Runs::Wrapper => None,
                }
            });
        found.next()
    }

    /// An image of an interpreter runs many servers. The launcher behind it says which.
    fn image(
        &self,
        tool: &KnownProgram,
        reading: &ToolArguments<'_, '_>,
        at: Context<'_>,
    ) -> Start {
        let Some(image) = reading.word.and_then(spec::image) else { return unclear(tool.name()) };
        match self.walk(reading.rest, Context { cwd: None, ..at }) {
            Start::Server(inner) if inner.naming == Naming::Package => {
                named(&format!("{image} {}", inner.identity), Naming::Image)
            }
            Start::Server(_) | Start::Shell | Start::Wrapper => named(&image, Naming::Image),
        }
    }

    fn script(
        &self,
        tool: &KnownProgram,
        spec: Spec,
        reading: &ToolArguments<'_, '_>,
        at: Context<'_>,
    ) -> Start {
        if let Some(text) = reading.named {
            return self.module(tool, text, reading.rest, at);
        }
        let Some(word) = reading.word.filter(|word| !matches!(*word, "" | "-")) else {
            return unclear(tool.name());
        };
        if spec != Spec::File && !spec::is_path(word) {
            let name = spec::name(spec, word, at.cwd);
            return name.map_or_else(|| unclear(tool.name()), |name| named(&name, Naming::Script));
        }
        let Some(found) = path::script(word, at.cwd).filter(|found| found.name != ".") else {
            return unclear(tool.name());
        };
        let is_launcher =
            |tool: &KnownProgram| matches!(tool.runs, Runs::Package(_) | Runs::Becomes);
        let known = |also: &dyn Fn(&KnownProgram) -> bool| {
            self.known(word, reading.rest, at, |tool| tool.may_be_script && also(tool))
        };
        if let Some(start) = known(&|tool| !found.is_cached || is_launcher(tool)) {
            return start;
        }
        // `node /usr/bin/pnpm start` is `pnpm start`.
        let name = program_name(word);
        if self.tools.iter().any(|tool| tool.is_named(name) && is_launcher(tool)) {
            return self.program(name, reading.rest, at);
        }
        let naming = if found.is_cached { Naming::Cached } else { Naming::Script };
        let whole = self.wrapping(&found.name, reading.rest, at, found.is_cached);
        named(whole.as_deref().unwrap_or(&found.name), naming)
    }

    /// Names what an option of an interpreter names: a module of Python, an archive of Java.
    fn module(&self, tool: &KnownProgram, text: &str, rest: &[&str], at: Context<'_>) -> Start {
        if tool.name() != "python" {
            let name = path::file(text, at.cwd);
            return name.map_or_else(|| unclear(tool.name()), |name| named(&name, Naming::Script));
        }
        let known = self.known(text, rest, at, |tool| tool.may_be_script);
        known.unwrap_or_else(|| match clean(text) {
            name if name.is_empty() => unclear(tool.name()),
            name => named(&name, Naming::Script),
        })
    }

    /// Names the command that an environment is prepared for, with the directory of that environment.
    fn command(
        &self,
        tool: &KnownProgram,
        reading: &ToolArguments<'_, '_>,
        at: Context<'_>,
    ) -> Start {
        let Some(word) = reading.word.filter(|word| !word.is_empty()) else {
            return unclear(tool.name());
        };
        let is_python =
            word.contains("://") || [".py", ".pyw"].iter().any(|suffix| word.ends_with(suffix));
        let mut words = match reading.is_module {
            true => vec!["python", "-m"],
            false if is_python => vec!["python"],
            false => vec![],
        };
        words.push(word);
        words.extend(reading.rest);
        let cwd = at.cwd.filter(|_| reading.place.is_none());
        match self.walk(&words, Context { cwd, with_words: false, ..at }) {
            Start::Server(inner) if inner.naming == Naming::Unclear => Start::Server(inner),
            Start::Server(inner) => match reading.place.and_then(|place| path::file(place, at.cwd))
            {
                Some(place) => named(&format!("{place} {}", inner.identity), Naming::Script),
                None => Start::Server(Named { naming: Naming::Script, ..inner }),
            },
            start @ (Start::Shell | Start::Wrapper) => start,
        }
    }

    /// `corepack pnpm@10 dlx X` becomes `pnpm dlx X`.
    fn becomes(&self, reading: &ToolArguments<'_, '_>, at: Context<'_>) -> Option<Start> {
        let program = reading.word?.split('@').next()?;
        self.known(program, reading.rest, at, |_| true)
    }

    /// Skips assignments. `-S` has a command line in one word, as a `#!` line needs it.
    fn env(&self, arguments: &[&str], reading: &ToolArguments<'_, '_>, at: Context<'_>) -> Start {
        let mut behind = arguments;
        let split = take(&mut behind).and_then(|word| match word {
            "-S" | "--split-string" => take(&mut behind),
            _ => word.strip_prefix("--split-string=").or_else(|| word.strip_prefix("-S")),
        });
        let mut words: Vec<&str> = match split {
            Some(line) => line.split_whitespace().chain(behind.iter().copied()).collect(),
            None if reading.clarity == Clarity::Unclear => return Start::Wrapper,
            None => reading.word.into_iter().chain(reading.rest.iter().copied()).collect(),
        };
        let assignments = words.iter().take_while(|word| word.contains('=')).count();
        words.drain(..assignments);
        if words.is_empty() { unclear("env") } else { self.walk(&words, at) }
    }

    /// A shell that runs a launcher's script is the launcher.
    fn shell(&self, arguments: &[&str], at: Context<'_>) -> Start {
        let script = arguments.split_first().filter(|(script, _)| !script.starts_with('-'));
        script
            .and_then(|(script, rest)| self.known(script, rest, at, |_| true))
            .unwrap_or(Start::Shell)
    }

    /// Rule 4: the program with the plain words behind it.
    fn program(&self, first: &str, arguments: &[&str], at: Context<'_>) -> Start {
        // A single word with spaces is a title: the program set it.
        let program = match first.split_once(' ') {
            Some((program, _)) if arguments.is_empty() => program.trim_end_matches(':'),
            _ => first,
        };
        if !names_a_file(program) {
            return unclear(program);
        }
        if program.contains('/')
            && let Some(found) = path::script(program, at.cwd).filter(|found| found.is_cached)
        {
            let whole = self.wrapping(&found.name, arguments, at, true);
            return named(whole.as_deref().unwrap_or(&found.name), Naming::Cached);
        }
        // `env -- --option word`: the first word is no program.
        let with_words = at.with_words && !program.starts_with('-');
        // `redis-cli auth VALUE`: no form tells a password in plain letters from a command.
        let mut is_secret = false;
        let words = arguments.iter().take_while(|word| {
            let is_hidden = std::mem::replace(&mut is_secret, redact::precedes_secret(word));
            with_words && !is_hidden && is_plain(word)
        });
        let words: Vec<&str> = words.take(MAX_WORDS).copied().collect();
        let name = clean(program);
        let name = base_name(&name);
        let name = name.strip_prefix('-').unwrap_or(name);
        let is_known = self.tools.iter().any(|tool| tool.is_named(program_name(program)));
        if is_known && words.is_empty() {
            return unclear(name);
        }
        let whole: Vec<&str> = [name].into_iter().chain(words).collect();
        named(&whole.join(" "), Naming::Program)
    }
}

/// Returns the package that npm's option names behind the command. Only the long form counts, because `-p 3000`
/// is more often meant for the server.
fn package_behind<'a>(words: &[&'a str]) -> Option<&'a str> {
    let mut words = words.iter().copied().take_while(|word| *word != "--");
    let option = words.find(|word| word.split('=').next() == Some("--package"))?;
    match option.split_once('=') {
        Some((_, package)) => Some(package),
        None => words.next(),
    }
}

/// Names a script of a package, or a target of a makefile.
fn target(tool: &KnownProgram, reading: &ToolArguments<'_, '_>, at: Context<'_>) -> Start {
    let words = reading.word.into_iter().chain(reading.rest.iter().copied());
    let is_make = tool.subcommand.is_empty();
    // Assignments come before the target or after it. Options may follow, too, with their values.
    let word = words.take_while(|word| !word.starts_with('-')).find(|word| !word.contains('='));
    let Some(word) = word.map(clean).filter(|word| !word.is_empty()) else {
        return unclear(tool.name());
    };
    match reading.place.and_then(|place| path::file(place, at.cwd)) {
        Some(place) => named(&format!("{place} {word}"), Naming::Script),
        None if is_make => named(&word, Naming::Script),
        None => named(&joined(tool, tool.name(), &word), Naming::Program),
    }
}

/// Returns the name of a wrapping package with what it wraps.
fn whole(tool: &KnownProgram, wrapped: Wrapped, reading: &ToolArguments<'_, '_>) -> Option<String> {
    if reading.clarity == Clarity::Unclear {
        return None;
    }
    let inner = match wrapped {
        Wrapped::Url => clean(reading.word.filter(|word| word.contains("://"))?),
        Wrapped::Word => spec::name(Spec::Npm, reading.word?, None)?,
        Wrapped::Option => clean(reading.named?),
    };
    Some(joined(tool, tool.name(), &inner))
}

fn joined(tool: &KnownProgram, package: &str, inner: &str) -> String {
    let words = tool.subcommand.iter().map(String::as_str);
    [package].into_iter().chain(words).chain([inner]).collect::<Vec<_>>().join(" ")
}

/// A server always has a name. One of spaces or nothing says nothing.
fn named(name: &str, naming: Naming) -> Start {
    let (name, naming) =
        if name.trim().is_empty() { (NAMELESS, Naming::Unclear) } else { (name, naming) };
    let mut identity = bounded(name);
    if identity == OTHER_IDENTITIES {
        identity = format!("({identity})");
    }
    Start::Server(Named { identity, naming, launches: false, is_relative: false })
}

fn unclear(program: &str) -> Start {
    named(&clean(base_name(program)), Naming::Unclear)
}

/// Returns whether a word may be part of a program's name: a command of it, and no secret. One with a number
/// may be another in each start: `job-17`.
fn is_plain(word: &str) -> bool {
    word.len() <= MAX_WORD
        && word.starts_with(|c: char| c.is_ascii_lowercase())
        && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')
        && !TRANSPORTS.contains(&word)
        && redact::text(word) == word
}
