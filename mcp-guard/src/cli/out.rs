//! The two places that write to the terminal.

use std::io::Write as _;

/// The answer. A reader that went away (`| head`) is no error.
pub fn answer(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{}", text.trim_end_matches('\n')).and_then(|()| stdout.flush());
}

/// Why there is none.
pub fn error(text: &str) {
    let _ = writeln!(std::io::stderr(), "mcp-guard: {text}");
}
