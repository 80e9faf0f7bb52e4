//! Finds the package that a command line starts.
//!
//! A launcher (`npm exec`, `npx`, `uvx`, ...) fetches a package and runs it. The identity of a
//! server is that package without its version. The process that the launcher finally runs has a bin
//! name that may differ (`@21st-dev/magic` runs `magic`).
//!
//! Command lines come in two forms: as the caller typed them (`npm exec X`), and, for a `#!`
//! script,
//! as the kernel rewrote them (`/usr/bin/env node /usr/bin/npm exec X`, then
//! `node /usr/bin/npm exec X`). A launcher further right in another program's argv starts nothing:
//! in `mcp-proxy --port 1 -- npx X`, only the later exec of `npx` counts.

use serde::Deserialize;

use crate::{escape::escape, redact};

/// npm allows 214 bytes for a name; a git or URL specification may be longer and is cut.
const MAX_IDENTITY: usize = 214;

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
    /// Options whose value is the package. If none is given, the package is the first word that is
    /// neither the subcommand nor an option.
    #[serde(default)]
    pub package_options: Vec<String>,
    /// Options that take the next word as their value, which is then not the package.
    #[serde(default)]
    pub value_options: Vec<String>,
    /// Options with which the launcher only prints information and runs no package.
    #[serde(default)]
    pub information_options: Vec<String>,
}

/// The known launchers: those of the policy, then the built-in ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launchers(Vec<Launcher>);

const NPM_VALUES: &str = "-C --prefix --registry --cache --userconfig --globalconfig --loglevel -w \
    --workspace -c --call --script-shell --node-options --tag --before --omit --include --location \
    -n --node-arg --shell --npm";
const PNPM_VALUES: &str = "-C --dir -F --filter --registry --loglevel --reporter --allow-build \
    --store-dir --config-dir";
const UV_VALUES: &str = "--with -w --with-editable --with-requirements -c --constraints -b \
    --build-constraints --overrides --env-file -p --python --index --default-index -i --index-url \
    --extra-index-url -f --find-links -P --upgrade-package --reinstall-package --index-strategy \
    --keyring-provider --resolution --prerelease --fork-strategy -C --config-setting \
    --no-build-isolation-package --exclude-newer --link-mode --no-build-package \
    --no-binary-package --refresh-package --python-platform --torch-backend --cache-dir --color \
    --allow-insecure-host --directory --project --config-file";

impl Default for Launchers {
    fn default() -> Self {
        let npm = ("--package -p", NPM_VALUES, "-h --help -v --version");
        let bun = ("--package -p", "--cwd -c --config", "-h --help -v --version --revision");
        let pnpm = ("--package", PNPM_VALUES, "-h --help -v --version");
        let yarn = ("--package -p", "--cwd", "-h --help -v --version");
        let uv = ("--from", UV_VALUES, "-h --help -V --version");
        let pipx =
            ("--spec", "--python --pip-args --backend -i --index-url", "-h --help --version");
        let table = [
            ("npm", "exec", npm),
            ("npm", "x", npm),
            ("npx", "", npm),
            ("bunx", "", bun),
            ("bun", "x", bun),
            ("pnpm", "dlx", pnpm),
            ("pnpx", "", pnpm),
            ("yarn", "dlx", yarn),
            ("uvx", "", uv),
            ("uv", "tool run", uv),
            // `uvx` execs this internal spelling of `uv tool run`.
            ("uv", "tool uvx", uv),
            ("pipx", "run", pipx),
        ];
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
        let launcher =
            |(program, subcommand, (package, values, information)): (&str, &str, _)| Launcher {
                program: program.to_owned(),
                subcommand: words(subcommand),
                package_options: words(package),
                value_options: words(values),
                information_options: words(information),
            };
        Self(table.into_iter().map(launcher).collect())
    }
}

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
        let mut all = more.to_vec();
        all.extend(Self::default().0);
        Self(all)
    }

    /// Classifies a NUL-separated argv as the kernel stores it (`/proc/PID/cmdline`, an exec
    /// record).
    #[must_use]
    pub fn classify(&self, argv: &[u8]) -> Program {
        let words = split(argv);
        if let Some(identity) = self.identity(&words) {
            return Program::Launcher(identity);
        }
        match words.first().map(|word| base_name(word)) {
            Some("sh" | "bash" | "dash" | "ash" | "zsh" | "busybox") => Program::Shell,
            _ => Program::Other,
        }
    }

    fn identity(&self, words: &[&str]) -> Option<String> {
        let words = strip_interpreters(words)?;
        let (program, arguments) = words.split_first()?;
        let program = program_name(program);
        self.0
            .iter()
            .filter(|launcher| launcher.program == program)
            .find_map(|launcher| launcher.package(arguments))
            .and_then(|package| printable(without_version(package)))
    }
}

/// A word of the command line, as a launcher reads it.
enum Token<'a> {
    /// The value of a package option.
    Package(&'a str),
    /// An option that asks for help or for the version.
    Information,
    /// `--`: no options follow.
    End,
    Plain(&'a str),
}

impl Launcher {
    /// Returns the package that `arguments` name, if they are arguments of this launcher.
    fn package<'a>(&self, arguments: &[&'a str]) -> Option<&'a str> {
        let mut words = arguments.iter().copied();
        let mut package = None;
        for subcommand in &self.subcommand {
            loop {
                match self.next_token(&mut words)? {
                    Token::Package(named) => package = package.or(Some(named)),
                    Token::Plain(word) if word == subcommand => break,
                    Token::Plain(_) | Token::Information | Token::End => return None,
                }
            }
        }
        let command = match self.next_token(&mut words) {
            Some(Token::Package(named)) => return package.or(Some(named)),
            Some(Token::Information) => return None,
            Some(Token::End) => words.next(),
            Some(Token::Plain(command)) => self.package_behind(words).or(Some(command)),
            None => None,
        };
        package.or(command).filter(|package| !package.is_empty())
    }

    /// Returns the package that an option after the command names. Only npm reads its own options
    /// there; npx and all others pass everything after the command to the server. Only the long
    /// form counts, because `-p 3000` is more often meant for the server.
    fn package_behind<'a>(&self, words: impl Iterator<Item = &'a str>) -> Option<&'a str> {
        if self.program != "npm" {
            return None;
        }
        let mut words = words.take_while(|word| *word != "--");
        let option = words.find(|word| word.split('=').next() == Some("--package"))?;
        match option.split_once('=') {
            Some((_, package)) => Some(package),
            None => words.next(),
        }
    }

    /// Returns the next word that matters, skipping other options and their values.
    fn next_token<'a>(&self, words: &mut impl Iterator<Item = &'a str>) -> Option<Token<'a>> {
        loop {
            let word = words.next()?;
            if word == "--" {
                return Some(Token::End);
            }
            if !word.starts_with('-') || word == "-" {
                return Some(Token::Plain(word));
            }
            let (option, attached) = match word.split_once('=') {
                Some((option, value)) => (option, Some(value)),
                None => (word, None),
            };
            let is_one_of = |list: &[String]| list.iter().any(|known| known == option);
            if is_one_of(&self.package_options) {
                return attached.or_else(|| words.next()).map(Token::Package);
            }
            if is_one_of(&self.information_options) {
                return Some(Token::Information);
            }
            if attached.is_none() && is_one_of(&self.value_options) {
                words.next();
            }
        }
    }
}

/// Splits at NULs. A program that renamed itself leaves one string with spaces and NUL padding:
/// `npm exec figma-mcp\0\0\0`.
fn split(argv: &[u8]) -> Vec<&str> {
    let end = argv.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let mut words: Vec<&str> = argv[..end]
        .split(|byte| *byte == 0)
        .map(|word| std::str::from_utf8(word).unwrap_or("\u{fffd}"))
        .collect();
    if let [title] = words[..]
        && title.starts_with("npm exec ")
    {
        words = title.split(' ').filter(|word| !word.is_empty()).collect();
    }
    words
}

/// Returns the identity for a package: short, without secrets and control characters. `None` if no name is left,
/// as of `==1` and `?a=b`.
fn printable(package: &str) -> Option<String> {
    let identity = escape(redact::name(package).as_bytes(), MAX_IDENTITY);
    (!identity.is_empty()).then_some(identity)
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Returns the program's name without suffixes: `/usr/lib/node_modules/npm/bin/npm-cli.js` is
/// `npm`.
fn program_name(path: &str) -> &str {
    let name = base_name(path);
    let name = [".js", ".cjs", ".mjs", ".py"]
        .iter()
        .find_map(|suffix| name.strip_suffix(suffix))
        .unwrap_or(name);
    name.strip_suffix("-cli").filter(|name| matches!(*name, "npm" | "npx")).unwrap_or(name)
}

/// Returns the words from the launcher on, skipping `env` and the interpreter of a script. Returns
/// `None` if the program is certainly not a launcher (`sh -c`, `node -e`).
fn strip_interpreters<'a, 'b>(mut words: &'b [&'a str]) -> Option<&'b [&'a str]> {
    // env, an interpreter, a script: deeper nesting is not a `#!` line.
    for _ in 0..3 {
        let (first, rest) = words.split_first()?;
        words = match base_name(first) {
            "env" => skip_options(rest, &["-u", "--unset", "-C", "--chdir"], |word| {
                word.contains('=') && !word.starts_with('-')
            })?,
            "node" | "nodejs" => skip_options(
                rest,
                &["-r", "--require", "--import", "--loader", "--experimental-loader", "-C"],
                |_| false,
            )?,
            "sh" | "bash" | "dash" | "ash" | "zsh" => {
                rest.first().filter(|word| !word.starts_with('-')).map(|_| rest)?
            }
            name if is_python(name) => match rest {
                ["-m", module, ..] if !module.is_empty() => &rest[1..],
                _ => skip_options(rest, &["-W", "-X"], |_| false)?,
            },
            _ => return Some(words),
        };
    }
    Some(words)
}

fn is_python(name: &str) -> bool {
    name.strip_prefix("python")
        .is_some_and(|version| version.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.'))
}

/// Returns the words from the first that is not an option, an option's value, or accepted by
/// `also`.
fn skip_options<'a, 'b>(
    words: &'b [&'a str],
    with_value: &[&str],
    also: impl Fn(&str) -> bool,
) -> Option<&'b [&'a str]> {
    let mut at = 0;
    while let Some(word) = words.get(at) {
        match *word {
            "--" => return words.get(at + 1..),
            // Program text or standard input instead of a script.
            "-e" | "--eval" | "-p" | "--print" | "-c" | "-" => return None,
            option if with_value.contains(&option) => at += 2,
            option if option.starts_with('-') || also(option) => at += 1,
            _ => return words.get(at..),
        }
    }
    None
}

/// Returns a package without its version: `@scope/name@1.2` is `@scope/name`, `name[extra]==1` is
/// `name`. Git, path and URL specifications stay as written.
fn without_version(spec: &str) -> &str {
    if stays_as_written(spec) {
        return spec;
    }
    let scope = usize::from(spec.starts_with('@'));
    let end = spec[scope..]
        .find(['@', '=', '<', '>', '~', '!', '[', ';', ' '])
        .map_or(spec.len(), |at| at + scope);
    &spec[..end]
}

fn stays_as_written(spec: &str) -> bool {
    const PREFIXES: [&str; 9] =
        [".", "/", "~", "git@", "git+", "github:", "gitlab:", "bitbucket:", "file:"];
    const ARCHIVES: [&str; 4] = [".tgz", ".tar.gz", ".whl", ".zip"];
    // `owner/repository` is npm's short form of a GitHub address.
    let shorthand = !spec.starts_with('@') && spec.contains('/');
    shorthand
        || spec.contains("://")
        || spec.starts_with("gist:")
        || PREFIXES.iter().any(|prefix| spec.starts_with(prefix))
        || ARCHIVES.iter().any(|suffix| spec.ends_with(suffix))
}

/// Returns the bin name of a server whose launcher is gone:
/// `node CACHE/_npx/HASH/node_modules/.bin/BIN`. Used only for processes whose launcher was never
/// seen. The bin name may differ from the package.
#[must_use]
pub fn stranded_server(argv: &[u8]) -> Option<String> {
    let words = split(argv);
    let path = words.iter().take(2).find(|word| word.contains("/_npx/"))?;
    let (_, bin) = path.rsplit_once("/node_modules/.bin/")?;
    (!bin.contains('/')).then_some(bin).and_then(printable)
}

#[cfg(test)]
mod tests;
