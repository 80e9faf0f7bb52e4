//! The long form of each finding, from `docs/findings.md`.

use super::code::Code;

const TEXT: &str = include_str!("../../../../docs/findings.md");

/// Returns the section of a code, from its heading to the next one.
#[must_use]
pub fn text(code: Code) -> Option<&'static str> {
    let heading = format!("## {code}");
    let start = TEXT.match_indices(&heading).map(|(at, _)| at).find(|at| {
        let rest = &TEXT[at + heading.len()..];
        (*at == 0 || TEXT[..*at].ends_with('\n')) && rest.starts_with([' ', '\n'])
    })?;
    let body = &TEXT[start..];
    let end = body[1..].find("\n## ").map_or(body.len(), |end| end + 1);
    Some(body[..end].trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_exactly_one_section() {
        for code in Code::ALL {
            let text =
                text(*code).unwrap_or_else(|| panic!("docs/findings.md has no section for {code}"));
            let heading = format!("## {code} {}", code.title());
            assert_eq!(text.lines().next(), Some(heading.as_str()));
            assert!(text.lines().count() > 2, "{code} is not explained");
            let width = text.lines().map(|line| line.chars().count()).max();
            assert!(width <= Some(120), "{code} has a line of {width:?}");
        }
        let sections = TEXT.lines().filter(|line| line.starts_with("## MG-"));
        assert_eq!(sections.count(), Code::ALL.len());
    }
}
