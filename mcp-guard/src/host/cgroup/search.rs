//! Finds cgroups by patterns of their names.

use std::{fs, path::Path};

use mcp_guard_core::{
    escape::is_cgroup_path,
    policy::{CgroupPattern, Pattern, Policy},
};

use crate::host::layout::Layout;

/// Most names read in one search: a process that owns a subtree can create thousands of cgroups.
const MOST: usize = 8192;
/// Most slices inside each other. systemd makes one for each dash in a name.
const MOST_SLICES: usize = 8;

/// A search in the unified tree.
pub struct CgroupSearch<'a> {
    tree: Option<&'a Path>,
    left: usize,
    found: Vec<String>,
}

impl<'a> CgroupSearch<'a> {
    #[must_use]
    pub fn new(layout: &'a Layout) -> Self {
        Self { tree: layout.unified.as_deref(), left: MOST, found: Vec::new() }
    }

    /// Searches for what the rules of a policy name by path or unit.
    pub fn rules(&mut self, policy: &Policy) {
        for rule in &policy.guard {
            match (&rule.cgroup, &rule.unit) {
                (Some(path), _) => self.path(path),
                (None, Some(unit)) => self.unit(unit),
                (None, None) => {}
            }
        }
    }

    /// Searches for the cgroups that a pattern names. Only levels whose name is a pattern are listed.
    pub fn path(&mut self, pattern: &CgroupPattern) {
        match pattern.exact() {
            Some(path) => self.found.push(path.to_owned()),
            None => self.below("", pattern.names()),
        }
    }

    fn below(&mut self, path: &str, names: &[Pattern]) {
        let Some((name, rest)) = names.split_first() else {
            return self.found.push(path.to_owned());
        };
        if name.is_exact() {
            return self.below(&format!("{path}/{}", name.text()), rest);
        }
        for found in self.names(path) {
            if name.matches(&found) {
                self.below(&format!("{path}/{found}"), rest);
            }
        }
    }

    /// Searches for the units of the system's service manager that a pattern names. They are in slices. Below any
    /// other cgroup, other programs choose the names.
    pub fn unit(&mut self, pattern: &Pattern) {
        self.units("", pattern, MOST_SLICES);
    }

    fn units(&mut self, path: &str, pattern: &Pattern, deeper: usize) {
        for name in self.names(path) {
            let below = format!("{path}/{name}");
            if name.ends_with(".slice") && deeper > 0 {
                self.units(&below, pattern, deeper - 1);
            } else if (name.ends_with(".service") || name.ends_with(".scope"))
                && pattern.matches(&name)
            {
                self.found.push(below);
            }
        }
    }

    /// Returns the names of the cgroups directly below one. One that is gone has none.
    fn names(&mut self, path: &str) -> Vec<String> {
        let Some(tree) = self.tree else { return Vec::new() };
        let Ok(entries) = fs::read_dir(tree.join(path.trim_start_matches('/'))) else {
            return Vec::new();
        };
        let mut names = Vec::new();
        for entry in entries.flatten() {
            if self.left == 0 {
                break;
            }
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            self.left -= 1;
            // A name that is not text, or looks like another, is not matched.
            let name = entry.file_name().into_string().ok();
            names.extend(name.filter(|name| is_cgroup_path(&format!("/{name}"))));
        }
        names.sort();
        names
    }

    /// Whether there were more names than are read.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.left == 0
    }

    /// Returns the paths of what was found. Exact paths are not looked for.
    #[must_use]
    pub fn found(self) -> Vec<String> {
        self.found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(tree: &Path) -> Layout {
        Layout { unified: Some(tree.to_owned()), ..Layout::bare() }
    }

    #[test]
    fn cgroups_are_found_by_pattern_and_units_in_slices_only() {
        let tree = tempfile::tempdir().unwrap();
        for path in [
            "system.slice/mcp-a.service/mcp-x.service",
            "system.slice/system-mcp.slice/mcp-b.service",
            "system.slice/web.service",
            "user.slice/user-1.slice/user@1.service/app.slice/mcp-u.service",
            "docker/1/mcp-d.service",
            "mcp-top.scope",
        ] {
            fs::create_dir_all(tree.path().join(path)).unwrap();
        }
        fs::write(tree.path().join("mcp-file.service"), "").unwrap();
        let layout = layout(tree.path());
        let found = |look: &dyn Fn(&mut CgroupSearch<'_>)| {
            let mut search = CgroupSearch::new(&layout);
            look(&mut search);
            search.found()
        };
        let unit = Pattern::from("mcp-*".to_owned());
        assert_eq!(
            found(&|search| search.unit(&unit)),
            [
                "/mcp-top.scope",
                "/system.slice/mcp-a.service",
                "/system.slice/system-mcp.slice/mcp-b.service"
            ]
        );
        let path = |text: &str| CgroupPattern::try_from(text.to_owned()).unwrap();
        for (pattern, expected) in [
            (
                "/system.slice/*.service",
                &["/system.slice/mcp-a.service", "/system.slice/web.service"][..],
            ),
            (
                "/user.slice/*/user@*.service/app.slice/mcp-*",
                &["/user.slice/user-1.slice/user@1.service/app.slice/mcp-u.service"],
            ),
            ("/none/*", &[]),
            ("/exact", &["/exact"]),
        ] {
            assert_eq!(found(&|search| search.path(&path(pattern))), expected, "{pattern}");
        }
    }

    #[test]
    fn a_search_is_bounded_and_says_so() {
        let tree = tempfile::tempdir().unwrap();
        for at in 0..=MOST {
            fs::create_dir(tree.path().join(at.to_string())).unwrap();
        }
        let layout = layout(tree.path());
        let mut search = CgroupSearch::new(&layout);
        search.path(&CgroupPattern::try_from("/*".to_owned()).unwrap());
        assert!(search.is_cut());
        assert_eq!(search.found().len(), MOST);
    }
}
