//! Makes bytes from containers safe to print.

/// Keeps printable text, and escapes control characters, backslashes and invalid UTF-8, so that a
/// name can neither move a terminal's cursor nor forge a second line. The result has at most
/// `limit` bytes; a cut is marked with `...`.
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

/// Escapes like [`escape`], for text that may already be escaped: backslashes are kept, and nothing
/// is cut.
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

/// Escapes like [`visible`], to at most `limit` bytes. A cut is marked with `...`.
#[must_use]
pub fn visible_within(text: &str, limit: usize) -> String {
    let out = visible(text);
    if out.len() > limit { cut(out, limit) } else { out }
}

/// Longest cgroup path kept, in bytes. It is Linux's `PATH_MAX`, so `/proc/PID/cgroup` shows no
/// longer path.
const MAX_PATH: usize = 4096;
/// The end of a path that was cut. No cgroup's name is written like this.
const CUT: &str = "/?...";

/// Returns a cgroup's path as text. Printable names are kept, including backslashes: systemd writes
/// a dash within a name as `\x2d`. Any other name is escaped behind a `?`, and a path that is too
/// long is cut and ends in `/?...`. Such a path still begins with the cgroups above it, but names
/// no cgroup ([`is_cgroup_path`]).
#[must_use]
pub fn cgroup_path(bytes: &[u8]) -> String {
    let mut parts = bytes.split(|byte| *byte == b'/');
    let mut path = cgroup_name(parts.next().unwrap_or_default());
    parts.for_each(|part| push_cgroup(&mut path, part));
    path
}

/// Appends the name of a cgroup to the path of the one above it. The length is bounded at any depth.
pub fn push_cgroup(path: &mut String, name: &[u8]) {
    if is_cut_path(path) {
        return;
    }
    let name = cgroup_name(name);
    if path.len() + name.len() < MAX_PATH {
        path.push('/');
        path.push_str(&name);
    } else {
        path.push_str(CUT);
    }
}

/// Returns whether a path was too long, and names only the cgroups above.
fn is_cut_path(path: &str) -> bool {
    path.ends_with(CUT)
}

/// Returns the name of a cgroup as [`cgroup_path`] writes it.
#[must_use]
pub fn cgroup_name(name: &[u8]) -> String {
    match std::str::from_utf8(name) {
        Ok(text) if !text.starts_with('?') && visible(text) == text => text.to_owned(),
        _ => format!("?{}", escape(name, MAX_PATH)),
    }
}

/// Returns whether `text` can be opened as the path of the cgroup that it names.
#[must_use]
pub fn is_cgroup_path(text: &str) -> bool {
    is_plain_path(text) && cgroup_path(text.as_bytes()) == text
}

/// Returns whether a path is absolute and all its parts are names. `/a.scope/.` would be opened as
/// `/a.scope` but checked by another name.
#[must_use]
pub fn is_plain_path(text: &str) -> bool {
    let is_name = |name: &str| !matches!(name, "" | "." | "..");
    let names = text.strip_prefix('/');
    names.is_some_and(|names| names.is_empty() || names.split('/').all(is_name))
}

/// Returns whether `c` is a direction mark or has no width: it can make a name look like another.
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
    use super::{cgroup_path, escape, is_cgroup_path, push_cgroup, visible, visible_within};
    use crate::container::container_in;

    #[test]
    fn hostile_bytes_become_printable_text() {
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
    fn escaped_text_is_not_escaped_again() {
        let once = escape(b"a\nb\x1b[2J", 100);
        assert_eq!(visible(&once), once);
        assert_eq!(visible("a\nb\x1b[2J"), once);
    }

    #[test]
    fn the_limit_is_enforced_and_a_cut_is_marked() {
        let text = escape(&[b'x'; 500], 40);
        assert_eq!(text.len(), 40);
        assert!(text.ends_with("..."));
        assert_eq!(visible_within("a\nb", 10), "a\\nb");
        assert_eq!(visible_within(&"x".repeat(50), 40).len(), 40);
        assert!(escape("\u{1f600}".repeat(50).as_bytes(), 41).len() <= 41);
    }

    #[test]
    fn a_printable_path_names_its_cgroup() {
        for path in
            ["/", "/a/b.service", r"/system-mcp\x2dserver.slice/mcp@1.service", "/caf\u{e9} 2"]
        {
            assert_eq!(cgroup_path(path.as_bytes()), path);
            assert!(is_cgroup_path(path), "{path}");
        }
    }

    #[test]
    fn any_other_path_names_no_cgroup_but_keeps_its_ancestors() {
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
        let mut deep = own.clone();
        (0..100_000).for_each(|_| push_cgroup(&mut deep, b"x"));
        assert!(deep.len() <= 4096 + 5 && deep.ends_with("/x/?..."), "{}", deep.len());
        // A cgroup may really have an escaped name. That name is escaped once more.
        let escaped = cgroup_path(b"/a\x1b");
        assert_ne!(cgroup_path(escaped.as_bytes()), escaped);
        let others = ["/a.scope/.", "/a/./b", "/a/../b", "/..", "/a/", "//a", "/a//b"];
        for bad in ["", "a", "?/a", "/a/?b", "/a\nb"].into_iter().chain(others) {
            assert!(!is_cgroup_path(bad), "{bad:?}");
        }
    }
}
