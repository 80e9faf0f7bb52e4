//! Bytes from containers, made safe to print.

/// Printable text as it is; control characters, backslashes and invalid UTF-8 as `\xNN` escapes, so
/// that a name can neither move a terminal's cursor nor forge a second line. At most `limit`
/// bytes come out; a cut is marked with `...`.
#[must_use]
pub fn escape(bytes: &[u8], limit: usize) -> String {
    let mut out = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c == '\\' || c.is_control() || is_invisible(c) {
                out.extend(c.escape_default());
            } else {
                out.push(c);
            }
            if out.len() > limit {
                return cut(out, limit);
            }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    if out.len() > limit { cut(out, limit) } else { out }
}

/// The same for text that may have been escaped before: backslashes stay as they are, and nothing is cut.
#[must_use]
pub fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || is_invisible(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// The same of at most `limit` bytes; a cut is marked with `...`.
#[must_use]
pub fn visible_within(text: &str, limit: usize) -> String {
    let out = visible(text);
    if out.len() > limit { cut(out, limit) } else { out }
}

/// Bytes of a cgroup's path that are kept; Linux's `PATH_MAX`, so `/proc/PID/cgroup` shows no longer one.
const MAX_PATH: usize = 4096;

/// A cgroup's path as text. One that reads as it is written stays so, backslashes too: systemd writes a
/// dash within a name as `\x2d`. Any other part is escaped behind a `?`, and what is too long ends
/// with one: such a path still begins with the cgroups above it, and names none ([`is_cgroup_path`]).
#[must_use]
pub fn cgroup_path(bytes: &[u8]) -> String {
    let mut parts = bytes.split(|byte| *byte == b'/');
    let first = cgroup_name(parts.next().unwrap_or_default());
    parts.fold(first, |path, part| cgroup_path_below(&path, part))
}

/// The same of a cgroup below one whose path is known; any depth has a bound.
#[must_use]
pub fn cgroup_path_below(parent: &str, name: &[u8]) -> String {
    let name = cgroup_name(name);
    if parent.len() + name.len() < MAX_PATH {
        return format!("{parent}/{name}");
    }
    // No name is written like this.
    let is_cut = parent.ends_with("/?...");
    if is_cut { parent.to_owned() } else { format!("{parent}/?...") }
}

fn cgroup_name(name: &[u8]) -> String {
    match std::str::from_utf8(name) {
        Ok(text) if !text.starts_with('?') && visible(text) == text => text.to_owned(),
        _ => format!("?{}", escape(name, MAX_PATH)),
    }
}

/// Whether a text can be opened as the path of the cgroup that it names.
#[must_use]
pub fn is_cgroup_path(text: &str) -> bool {
    is_plain_path(text) && cgroup_path(text.as_bytes()) == text
}

/// Whether a path is absolute and each of its parts is a name: `/a.scope/.` would be opened as `/a.scope` and
/// judged by another name.
#[must_use]
pub fn is_plain_path(text: &str) -> bool {
    let is_name = |name: &str| !matches!(name, "" | "." | "..");
    let names = text.strip_prefix('/');
    names.is_some_and(|names| names.is_empty() || names.split('/').all(is_name))
}

/// Direction marks and zero-width characters can make a name read as another one.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

fn cut(mut text: String, limit: usize) -> String {
    let end = (0..=limit.saturating_sub(3)).rev().find(|at| text.is_char_boundary(*at));
    text.truncate(end.unwrap_or(0));
    text.push_str("...");
    text
}

#[cfg(test)]
mod tests {
    use super::{cgroup_path, cgroup_path_below, escape, is_cgroup_path, visible, visible_within};
    use crate::container::container_in;

    #[test]
    fn hostile_bytes_come_out_as_text() {
        let cases: [(&[u8], &str); 6] = [
            (b"figma-mcp", "figma-mcp"),
            (b"a\nb\x1b[2J", "a\\nb\\u{1b}[2J"),
            (b"\xff\xfe", "\\xff\\xfe"),
            (b"back\\slash", "back\\\\slash"),
            ("caf\u{e9}".as_bytes(), "caf\u{e9}"),
            ("a\u{202e}b".as_bytes(), "a\\u{202e}b"),
        ];
        for (bytes, text) in cases {
            assert_eq!(escape(bytes, 100), text);
        }
    }

    #[test]
    fn what_was_escaped_is_not_escaped_again() {
        let once = escape(b"a\nb\x1b[2J", 100);
        assert_eq!(visible(&once), once);
        assert_eq!(visible("a\nb\x1b[2J"), once);
    }

    #[test]
    fn the_limit_holds_and_shows() {
        let text = escape(&[b'x'; 500], 40);
        assert_eq!(text.len(), 40);
        assert!(text.ends_with("..."));
        assert_eq!(visible_within("a\nb", 10), "a\\nb");
        assert_eq!(visible_within(&"x".repeat(50), 40).len(), 40);
        assert!(escape("\u{1f600}".repeat(50).as_bytes(), 41).len() <= 41);
    }

    #[test]
    fn a_path_that_reads_as_it_is_written_names_its_cgroup() {
        for path in
            ["/", "/a/b.service", r"/system-mcp\x2dserver.slice/mcp@1.service", "/caf\u{e9} 2"]
        {
            assert_eq!(cgroup_path(path.as_bytes()), path);
            assert!(is_cgroup_path(path), "{path}");
        }
    }

    #[test]
    fn any_other_path_names_no_cgroup_and_stays_below_those_above_it() {
        let id = "0123456789abcdef".repeat(4);
        let own = format!("/docker/{id}");
        let long = format!("/{}", "x".repeat(255)).repeat(20);
        let names: [&[u8]; 5] =
            [b"/a\x1b[2J", b"/\xff", b"/?a", "/a\u{202e}b".as_bytes(), long.as_bytes()];
        for name in names {
            let path = cgroup_path(&[own.as_bytes(), name].concat());
            assert!(path.starts_with(&format!("{own}/")) && path.contains("/?"), "{path}");
            assert!(path.len() <= 4096 + 5 && visible(&path) == path, "{path}");
            assert!(!is_cgroup_path(&path), "{path}");
            assert_eq!(container_in(&path).map(|found| found.path), Some(own.as_str()));
        }
        let deep = (0..100_000).fold(own.clone(), |path, _| cgroup_path_below(&path, b"x"));
        assert!(deep.len() <= 4096 + 5 && deep.ends_with("/x/?..."), "{}", deep.len());
        // What was escaped is a name that a cgroup may have; that one is escaped once more.
        let escaped = cgroup_path(b"/a\x1b");
        assert_ne!(cgroup_path(escaped.as_bytes()), escaped);
        let others = ["/a.scope/.", "/a/./b", "/a/../b", "/..", "/a/", "//a", "/a//b"];
        for bad in ["", "a", "?/a", "/a/?b", "/a\nb"].into_iter().chain(others) {
            assert!(!is_cgroup_path(bad), "{bad:?}");
        }
    }
}
