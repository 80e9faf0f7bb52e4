//! Finds cgroups by patterns of their names.

use std::{fs, path::Path};

use mcp_guard_core::{
    escape::is_cgroup_path,
    policy::{CgroupPattern, Pattern, Policy, Rule},
};

use crate::host::{cgroupfs::Events, layout::Layout};

/// Most names read for one rule, and most of one directory: a process that owns a subtree can create thousands
/// of cgroups, and must not hide those of others.
const MOST: usize = 8192;
const MOST_SIBLINGS: usize = 1024;
/// Most cgroups that one pattern finds.
const MOST_FOUND: usize = 256;
/// Most slices inside each other. systemd makes one for each dash in a name.
const MOST_SLICES: usize = 8;

/// A search in the unified tree.
pub struct CgroupSearch<'a> {
    tree: Option<&'a Path>,
    /// Names that may still be read for this rule.
    left: usize,
    is_cut: bool,
    found: Vec<String>,
}

impl<'a> CgroupSearch<'a> {
    #[must_use]
    pub fn new(layout: &'a Layout) -> Self {
        Self { tree: layout.unified.as_deref(), left: MOST, is_cut: false, found: Vec::new() }
    }

    /// Searches for what the rules of a policy name by path or unit.
    pub fn rules(&mut self, policy: &Policy) {
        let paths = policy.guard.iter().filter_map(|rule| rule.cgroup.as_ref());
        paths.for_each(|path| self.path(path));
        let is_by_unit = |rule: &&Rule| rule.cgroup.is_none();
        let units: Vec<_> =
            policy.guard.iter().filter(is_by_unit).filter_map(|rule| rule.unit.as_ref()).collect();
        if !units.is_empty() {
            self.units_of(&units);
        }
    }

    /// Searches for the cgroups that a pattern names. Only levels whose name is a pattern are listed.
    pub fn path(&mut self, pattern: &CgroupPattern) {
        match pattern.exact() {
            Some(path) => self.found.push(path.to_owned()),
            None => self.within_bounds(|search| search.below("", pattern.names())),
        }
    }

    /// Searches for one rule, or for all that name units.
    fn within_bounds(&mut self, search: impl FnOnce(&mut Self)) {
        self.left = MOST;
        let before = self.found.len();
        search(self);
        if self.found.len() - before > MOST_FOUND {
            self.found.truncate(before + MOST_FOUND);
            self.is_cut = true;
        }
    }

    /// Notes a cgroup that a pattern names, if there are processes in it: anybody who owns a subtree can create
    /// any number of empty ones.
    fn note(&mut self, path: String) {
        let events = self.tree.map(|tree| tree.join(&path[1..]).join("cgroup.events"));
        let events = events.and_then(|events| fs::read_to_string(events).ok());
        if events.is_some_and(|events| Events::parse(&events).populated) {
            self.found.push(path);
        }
    }

    fn below(&mut self, path: &str, names: &[Pattern]) {
        let Some((name, rest)) = names.split_first() else {
            return self.note(path.to_owned());
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
        self.units_of(&[pattern]);
    }

    fn units_of(&mut self, patterns: &[&Pattern]) {
        self.within_bounds(|search| search.units("", patterns, MOST_SLICES));
    }

    fn units(&mut self, path: &str, patterns: &[&Pattern], deeper: usize) {
        for name in self.names(path) {
            let below = format!("{path}/{name}");
            if name.ends_with(".slice") && deeper > 0 {
                self.units(&below, patterns, deeper - 1);
            } else if (name.ends_with(".service") || name.ends_with(".scope"))
                && patterns.iter().any(|pattern| pattern.matches(&name))
            {
                self.note(below);
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
        let mut siblings = 0;
        for entry in entries.flatten() {
            if self.left == 0 || siblings == MOST_SIBLINGS {
                self.is_cut = true;
                break;
            }
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            self.left -= 1;
            siblings += 1;
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
        self.is_cut
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

    /// Creates a cgroup. A populated one makes those above it populated.
    fn made(tree: &Path, path: &str, is_populated: bool) {
        fs::create_dir_all(tree.join(path)).unwrap();
        let events = format!("populated {}\nfrozen 0\n", u8::from(is_populated));
        let above = Path::new(path).ancestors().take(if is_populated { usize::MAX } else { 1 });
        for cgroup in above {
            fs::write(tree.join(cgroup).join("cgroup.events"), &events).unwrap();
        }
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
            made(tree.path(), path, true);
        }
        made(tree.path(), "system.slice/mcp-empty.service", false);
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
    fn a_search_is_bounded_and_reports_it() {
        let tree = tempfile::tempdir().unwrap();
        for at in 0..=MOST_SIBLINGS {
            made(tree.path(), &format!("hostile/{at}"), true);
        }
        made(tree.path(), "honest/a", true);
        let layout = layout(tree.path());
        let found = |pattern: &str| {
            let mut search = CgroupSearch::new(&layout);
            search.path(&CgroupPattern::try_from(pattern.to_owned()).unwrap());
            (search.is_cut(), search.found().len())
        };
        assert_eq!(found("/hostile/*"), (true, MOST_FOUND));
        assert_eq!(found("/*/a"), (false, 1));
        assert_eq!(found("/honest/*"), (false, 1));
    }

    #[test]
    fn each_rule_has_bounds_of_its_own() {
        let tree = tempfile::tempdir().unwrap();
        for at in 0..=MOST_SIBLINGS {
            made(tree.path(), &format!("hostile/{at}"), true);
        }
        made(tree.path(), "honest/a", true);
        let layout = layout(tree.path());
        let mut search = CgroupSearch::new(&layout);
        for pattern in ["/hostile/*", "/honest/*"] {
            search.path(&CgroupPattern::try_from(pattern.to_owned()).unwrap());
        }
        assert!(search.found().contains(&"/honest/a".to_owned()));
    }
}
