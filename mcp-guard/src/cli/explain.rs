//! `explain`: the long form of a finding. It reads nothing from this host.

use mcp_guard_core::diagnose::{code::Code, explain};

use super::{Exit, Failure, out};

pub fn explain(code: Option<&str>) -> Result<Exit, Failure> {
    let Some(code) = code else {
        let line = |code: &Code| format!("{code}  {:<8}  {}\n", code.severity(), code.title());
        out::answer(&Code::ALL.iter().map(line).collect::<String>());
        return Ok(Exit::Done);
    };
    let code: Code = code.parse().map_err(Failure::usage)?;
    let text = explain::text(code);
    out::answer(text.unwrap_or_else(|| code.title()));
    Ok(Exit::Done)
}
