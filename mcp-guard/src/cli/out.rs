//! The only two functions that write to the terminal.

use std::io::Write as _;

use mcp_guard_core::escape::visible;

/// Prints the answer to stdout. Its view has already escaped untrusted text. A closed pipe (`| head`) is
/// not an error.
pub fn answer(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{}", text.trim_end_matches('\n')).and_then(|()| stdout.flush());
}

/// Prints an error to stderr, escaped: its text may come from an engine or a file.
pub fn error(text: &str) {
    let _ = writeln!(std::io::stderr(), "mcp-guard: {}", lines(text));
}

/// Escapes control characters and keeps line breaks.
fn lines(text: &str) -> String {
    text.split('\n').map(visible).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::lines;

    #[test]
    fn line_breaks_are_kept_and_control_characters_are_escaped() {
        assert_eq!(lines("a\n  b\x1b[2J\r\n"), "a\n  b\\u{1b}[2J\\r\n");
    }
}
