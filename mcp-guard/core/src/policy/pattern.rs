//! Patterns of names and of cgroup paths.

use serde::{Deserialize, Serialize};
use wildmatch::WildMatch;

use crate::escape::is_plain_path;

/// A name pattern with `*` and `?`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct Pattern {
    text: String,
    matcher: WildMatch,
}

impl From<String> for Pattern {
    fn from(text: String) -> Self {
        Self { matcher: WildMatch::new(&text), text }
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.text
    }
}

impl Pattern {
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        self.matcher.matches(text)
    }

    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it matches only its own text.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        !self.text.contains(['*', '?'])
    }

    /// Counts the characters that must be there as they are.
    pub(super) fn literals(&self) -> usize {
        self.text.chars().filter(|c| !matches!(c, '*' | '?')).count()
    }
}

/// The path of a cgroup, in which `*` and `?` stand for text without `/`: a container that makes
/// cgroups below its own is not matched by a pattern for containers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CgroupPattern {
    text: String,
    names: Vec<Pattern>,
}

impl TryFrom<String> for CgroupPattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if !is_plain_path(&text) {
            return Err(format!(
                "cgroup {text:?} must be an absolute path without \".\", \"..\", \"//\" or a \
                 trailing \"/\""
            ));
        }
        let names = names(&text).map(|name| Pattern::from(name.to_owned())).collect();
        Ok(Self { text, names })
    }
}

impl From<CgroupPattern> for String {
    fn from(pattern: CgroupPattern) -> Self {
        pattern.text
    }
}

impl CgroupPattern {
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        let mut found = names(path);
        self.names.iter().all(|name| found.next().is_some_and(|found| name.matches(found)))
            && found.next().is_none()
    }

    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The path, if it is no pattern.
    #[must_use]
    pub fn exact(&self) -> Option<&str> {
        self.names.iter().all(Pattern::is_exact).then_some(&self.text)
    }

    /// One pattern for each level, from the top.
    #[must_use]
    pub fn names(&self) -> &[Pattern] {
        &self.names
    }
}

/// The names in a path. The root has none.
fn names(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_in_a_cgroup_does_not_cross_a_level() {
        let matches = |pattern: &str, path: &str| {
            CgroupPattern::try_from(pattern.to_owned()).expect("a path").matches(path)
        };
        for (pattern, path, expected) in [
            ("/system.slice/mcp-*.service", "/system.slice/mcp-a.service", true),
            ("/system.slice/mcp-*.service", "/system.slice/mcp-a.service/mcp-b.service", false),
            ("/system.slice/*", "/system.slice/x/y", false),
            ("/system.slice/*", "/system.slice", false),
            (
                "/user.slice/*/user@*.service/*.service",
                "/user.slice/a/user@1.service/b.service",
                true,
            ),
            ("/a/b?", "/a/bc", true),
            ("/", "/", true),
            ("/", "/a", false),
        ] {
            assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
        }
        assert!(CgroupPattern::try_from("/a/../b".to_owned()).is_err());
    }
}
