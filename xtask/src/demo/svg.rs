//! The demo's output as a picture, for the README.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anstyle_svg::Term;
use anyhow::{Context, Result};

use crate::{program, workspace};

/// Runs `mcp-guard demo` and draws what it prints.
pub fn draw() -> Result<PathBuf> {
    workspace::build_agent()?;
    let shown = program::output(Command::new(workspace::agent()).arg("demo"))?;
    let file = workspace::root().join("docs/demo.svg");
    let text = format!("\x1b[1m$ sudo mcp-guard demo\x1b[0m\n{}\n", coloured(&shown));
    fs::write(&file, Term::new().render_svg(&text)).with_context(|| file.display().to_string())?;
    Ok(file)
}

/// With the first word of each line in bold, and what matters in colour.
fn coloured(shown: &str) -> String {
    let line = |line: &str| {
        let Some((word, rest)) = line.split_once(' ').filter(|(word, _)| !word.is_empty()) else {
            return line.to_owned();
        };
        let colour = match word {
            "warning" => "33",
            "contained" | "stopped" | "cleaned" => "32",
            _ => "1",
        };
        format!("\x1b[{colour}m{word}\x1b[0m {rest}")
    };
    shown.lines().map(line).collect::<Vec<_>>().join("\n")
}
