//! Which server a file belongs to: caches of launchers, installed packages, virtual environments, or itself.

use super::{
    argv::SUFFIXES,
    clean::{clean, pep_503},
};

/// A name that was found in a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FoundName {
    pub name: String,
    /// A launcher put the file into its cache, so it is a server that a launcher started.
    pub is_cached: bool,
}

/// Returns the name of a server by its file. A file that belongs to no package is named by its path.
pub(super) fn script(text: &str, cwd: Option<&str>) -> Option<FoundName> {
    let path = file(text, cwd)?;
    let parts: Vec<&str> = path.split('/').collect();
    Some(package(&parts).unwrap_or(FoundName { name: path, is_cached: false }))
}

/// Returns the name of a package or of a command of it, if the path has one.
fn package(parts: &[&str]) -> Option<FoundName> {
    if let Some(at) = parts.iter().rposition(|part| *part == "node_modules") {
        let is_cached = parts[..at].iter().enumerate().any(|(at, part)| is_cache(parts, at, part));
        let name = match parts.get(at + 1..)? {
            [".bin", name] => (*name).to_owned(),
            [hidden, ..] if hidden.starts_with('.') => return None,
            [scope, name, ..] if scope.starts_with('@') => format!("{scope}/{name}"),
            [name, ..] => (*name).to_owned(),
            [] => return None,
        };
        return Some(FoundName { name, is_cached }).filter(|found| !found.name.is_empty());
    }
    let is_cached = is_python_cache(parts);
    let written = |name: &str| if is_cached { pep_503(name) } else { name.to_owned() };
    if let Some(at) = parts.iter().rposition(|part| *part == "site-packages") {
        let name = parts.get(at + 1).filter(|name| !name.is_empty())?;
        return Some(FoundName { name: written(name.trim_end_matches(".py")), is_cached });
    }
    match parts {
        [.., "bin", name] if !name.is_empty() && !is_script_name(name) => {
            Some(FoundName { name: written(name), is_cached })
        }
        _ => None,
    }
}

/// Returns whether a part of a path belongs to the cache of a launcher of npm packages: `_npx` of npx,
/// `pnpm/dlx` and `dlx-PID` of pnpm and yarn, `bunx-UID-NAME` of bunx.
fn is_cache(parts: &[&str], at: usize, part: &str) -> bool {
    let numbered = |start| {
        let rest: Option<&str> = part.strip_prefix(start);
        rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    part == "_npx"
        || (part == "dlx" && at > 0 && parts[at - 1] == "pnpm")
        || numbered("dlx-")
        || numbered("bunx-")
}

/// Returns whether a path is in the cache of uv (`archive-v0`, `environments-v2`) or of `pipx run`.
fn is_python_cache(parts: &[&str]) -> bool {
    parts.iter().enumerate().any(|(at, part)| match *part {
        "archive-v0" => true,
        "pipx" => {
            parts.get(at + 1).is_some_and(|next| *next == ".cache")
                || (at > 0 && parts[at - 1] == ".cache")
        }
        _ => false,
    })
}

/// Removes the platform from the name of a program: `server` for `server-linux-amd64`.
pub(super) fn without_platform(name: &str) -> &str {
    const PROCESSORS: [&str; 5] = ["x64", "amd64", "arm64", "aarch64", "x86_64"];
    const OTHERS: [&str; 5] = ["linux", "unknown", "gnu", "musl", "glibc"];
    let mut rest = name;
    let mut has_processor = false;
    loop {
        let ends_with = |part: &&&str| {
            rest.strip_suffix(**part).is_some_and(|before| before.ends_with(['-', '_']))
        };
        let is_processor = PROCESSORS.iter().find(ends_with);
        let Some(part) = is_processor.or_else(|| OTHERS.iter().find(ends_with)) else { break };
        has_processor |= is_processor.is_some();
        rest = &rest[..rest.len() - part.len() - 1];
    }
    if has_processor && !rest.is_empty() && !rest.ends_with('/') { rest } else { name }
}

/// Returns whether a name has the ending of a script, so that its folder matters: two of `bin/server.js` are
/// not the same program.
fn is_script_name(name: &str) -> bool {
    const OTHERS: [&str; 6] = [".ts", ".mts", ".cts", ".tsx", ".jsx", ".sh"];
    SUFFIXES.iter().chain(&OTHERS).any(|suffix| name.ends_with(suffix))
}

/// Returns whether a word looks like a file or an address, and not like the name of a command.
pub(super) fn is_file(word: &str) -> bool {
    const OTHERS: [&str; 4] = [".dll", ".exe", ".wasm", ".json"];
    let is_other = OTHERS.iter().any(|suffix| word.ends_with(suffix));
    word.contains('/')
        || word == "."
        || word.starts_with("jsr:")
        || word.starts_with("npm:")
        || is_script_name(word)
        || is_other
}

/// Returns a path or an address as an identity shows it: without `.` and `..`, and with the working directory
/// if it is relative. `None` if it names nothing.
pub(super) fn file(text: &str, cwd: Option<&str>) -> Option<String> {
    let text = text.strip_prefix("file://").unwrap_or(text);
    if text.contains("://") {
        return Some(clean(text));
    }
    let text = clean(text);
    let whole = match cwd.filter(|cwd| cwd.starts_with('/') && !text.starts_with('/')) {
        Some(cwd) => format!("{cwd}/{text}"),
        None => text,
    };
    let path = clean(&without_dots(&whole));
    Some(path).filter(|path| !path.is_empty())
}

fn without_dots(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if path.starts_with('/') => {}
            part => parts.push(part),
        }
    }
    let root = if path.starts_with('/') { "/" } else { "" };
    format!("{root}{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::without_platform;

    #[test]
    fn a_platform_is_no_part_of_a_name() {
        for (name, expected) in [
            ("kubernetes-mcp-server-linux-amd64", "kubernetes-mcp-server"),
            ("@acme/server-linux-x64-musl", "@acme/server"),
            ("server_x86_64-unknown-linux-gnu", "server"),
            ("server-arm64", "server"),
            // Nothing is left, or no processor is named.
            ("x64", "x64"),
            ("-x64", "-x64"),
            ("mcp-linux", "mcp-linux"),
            ("ax64", "ax64"),
            ("", ""),
        ] {
            assert_eq!(without_platform(name), expected, "{name}");
        }
    }
}
