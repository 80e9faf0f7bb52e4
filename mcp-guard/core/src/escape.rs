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
    use super::{escape, visible};

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
        assert!(escape("\u{1f600}".repeat(50).as_bytes(), 41).len() <= 41);
    }
}
