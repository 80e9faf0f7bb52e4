//! Splits a command line, and says which of its words is the program.

/// Splits at null bytes. A program that renamed itself leaves one string with spaces and null bytes behind it:
/// `npm exec figma-mcp\0\0\0`.
pub(super) fn split(argv: &[u8]) -> Vec<&str> {
    let end = argv.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let words: Vec<&str> = argv[..end].split(|byte| *byte == 0).map(text).collect();
    match words[..] {
        [title] if title.starts_with("npm ") => {
            title.split(' ').filter(|word| !word.is_empty()).collect()
        }
        _ => words,
    }
}

pub(super) fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or("\u{fffd}")
}

pub(super) fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Endings of the names of scripts.
pub(super) const SUFFIXES: [&str; 4] = [".js", ".cjs", ".mjs", ".py"];

/// Returns the name under which the table has a program: `npm` for `/usr/lib/node_modules/npm/bin/npm-cli.js`,
/// `yarn` for `yarn-4.5.0.cjs`, `python` for `python3.11`, and `sh` for the `-sh` of a login.
pub(super) fn program_name(path: &str) -> &str {
    let name = base_name(path);
    let name = name.strip_prefix('-').unwrap_or(name);
    if let Some(interpreter) = interpreter(name) {
        return interpreter;
    }
    let name = SUFFIXES.iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name);
    if let Some(name) = name.strip_suffix("-cli").filter(|name| matches!(*name, "npm" | "npx")) {
        return name;
    }
    match name.strip_prefix("yarn-") {
        Some(release) if release == "berry" || is_version(release) => "yarn",
        _ => name,
    }
}

/// Returns the interpreter whose name is followed by a version, or by nothing.
fn interpreter(name: &str) -> Option<&'static str> {
    const NAMES: [(&str, &str); 7] = [
        ("python", "python"),
        ("pypy", "python"),
        ("nodejs", "node"),
        ("node", "node"),
        ("ruby", "ruby"),
        ("php", "php"),
        ("perl", "perl"),
    ];
    let is_rest = |rest: &str| rest.is_empty() || is_version(rest);
    let found = NAMES.iter().find(|(start, _)| name.strip_prefix(start).is_some_and(is_rest));
    found.map(|(_, interpreter)| *interpreter)
}

/// Returns whether `text` is a version, which no program has as its name.
pub(super) fn is_version(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'+'))
}
