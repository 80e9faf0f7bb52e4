//! The results, as a table and as JSON.

use anyhow::Result;
use serde::Serialize;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// One number.
#[derive(Serialize)]
pub struct Line {
    pub name: String,
    pub value: f64,
    pub unit: &'static str,
    /// The largest value that meets the goal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goal: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub met: Option<bool>,
}

#[derive(Serialize)]
struct Section {
    title: String,
    lines: Vec<Line>,
}

#[derive(Default, Serialize)]
pub struct Report {
    sections: Vec<Section>,
}

impl Report {
    pub fn section(&mut self, title: &str) {
        self.sections.push(Section { title: title.to_owned(), lines: Vec::new() });
    }

    /// Adds a number without a goal.
    pub fn add(&mut self, name: &str, value: f64, unit: &'static str) {
        self.push(Line { name: name.to_owned(), value, unit, goal: None, met: None });
    }

    /// Adds a number with the largest value that meets the goal.
    pub fn add_goal(&mut self, name: &str, value: f64, unit: &'static str, goal: f64) {
        let met = Some(value <= goal);
        self.push(Line { name: name.to_owned(), value, unit, goal: Some(goal), met });
    }

    fn push(&mut self, line: Line) {
        if let Some(section) = self.sections.last_mut() {
            section.lines.push(line);
        }
    }

    pub fn table(&self) -> String {
        let mut text = String::new();
        for Section { title, lines } in &self.sections {
            let _ = writeln!(text, "\n{title}");
            for Line { name, value, unit, goal, met } in lines {
                let value = shown(*value);
                let _ = write!(text, "  {name:<58} {value:>9} {unit:<6}");
                if let (Some(goal), Some(met)) = (goal, met) {
                    let verdict = if *met { "met" } else { "MISSED" };
                    let _ = write!(text, " goal <= {goal:<6} {verdict}");
                }
                text.truncate(text.trim_end().len());
                text.push('\n');
            }
        }
        text
    }

    pub fn write(&self, file: &Path) -> Result<()> {
        Ok(fs::write(file, serde_json::to_string_pretty(self)? + "\n")?)
    }
}

/// Formats a number with about three significant digits: measurements are not more precise than that.
fn shown(value: f64) -> String {
    match value {
        value if value.fract() == 0.0 || value.abs() >= 100.0 => format!("{value:.0}"),
        value if value.abs() >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}
