//! The two places that write to the terminal.

use std::io::Write as _;

use mcp_guard_core::escape::visible;

/// The answer, whose own view has made visible what others wrote. A reader that went away (`| head`) is no error.
pub fn answer(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{}", text.trim_end_matches('\n')).and_then(|()| stdout.flush());
}

/// Why there is none. It may be in the words of an engine or of a file.
pub fn error(text: &str) {
    let _ = writeln!(std::io::stderr(), "mcp-guard: {}", lines(text));
}

/// Lines stay lines, and control characters come out as text.
fn lines(text: &str) -> String {
    text.split('\n').map(visible).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::lines;

    #[test]
    fn lines_stay_and_control_characters_do_not() {
        assert_eq!(lines("a\n  b\x1b[2J\r\n"), "a\n  b\\u{1b}[2J\\r\n");
    }
}
