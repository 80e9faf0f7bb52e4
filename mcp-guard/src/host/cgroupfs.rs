//! Parsers for the files of a cgroup, see the kernel's `Documentation/admin-guide/cgroup-v2.rst`.
//! They take text and return values, and read no files.

use mcp_guard_core::id::Pid;

/// `cgroup.events`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Events {
    pub populated: bool,
    pub frozen: bool,
}

impl Events {
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let set = |key| keyed(text, key) == Some(1);
        Self { populated: set("populated"), frozen: set("frozen") }
    }
}

/// Returns one value of a flat keyed file, whose lines are `KEY VALUE`: `pids.events`,
/// `memory.events`.
#[must_use]
pub fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
}

/// Returns the number of cgroups in the hierarchy of a controller, from `/proc/cgroups`, see cgroups(7).
#[must_use]
pub fn number_of_cgroups(text: &str, controller: &str) -> Option<u64> {
    let fields = |line: &'_ str| -> Option<u64> {
        let mut fields = line.split_whitespace();
        (fields.next()? == controller).then(|| fields.nth(1)?.parse().ok())?
    };
    text.lines().find_map(fields)
}

/// Whether `cgroup.controllers` or `cgroup.subtree_control` names the pids controller.
#[must_use]
pub fn lists_pids(controllers: &str) -> bool {
    controllers.split_whitespace().any(|name| name == "pids")
}

/// Parses `cgroup.procs`.
#[must_use]
pub fn pids(procs: &[u8]) -> Vec<Pid> {
    let lines = procs.split(|byte| *byte == b'\n');
    lines.filter_map(|line| Some(Pid(std::str::from_utf8(line).ok()?.parse().ok()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_whole_word() {
        let memory = "low 0\nhigh 1\nmax 2\noom 3\noom_kill 4\noom_group_kill 5\n";
        assert_eq!(keyed(memory, "max"), Some(2));
        assert_eq!(keyed(memory, "oom_kill"), Some(4));
        assert_eq!(keyed(memory, "oom"), Some(3));
        assert_eq!(keyed(memory, "oo"), None);
        assert_eq!(keyed("max many\n", "max"), None);
        assert_eq!(keyed("", "max"), None);
    }

    #[test]
    fn the_cgroups_of_a_controller_are_counted() {
        let text =
            "#subsys_name\thierarchy\tnum_cgroups\tenabled\nmemory\t4\t51\t1\npids\t8\t7\t1\n";
        assert_eq!(number_of_cgroups(text, "pids"), Some(7));
        assert_eq!(number_of_cgroups(text, "pid"), None);
        assert_eq!(number_of_cgroups("pids 8", "pids"), None);
    }

    #[test]
    fn only_a_one_sets_an_event() {
        let parse = |text| {
            let events = Events::parse(text);
            (events.populated, events.frozen)
        };
        assert_eq!(parse("populated 1\nfrozen 0\n"), (true, false));
        assert_eq!(parse("populated 0\nfrozen 1\n"), (false, true));
        assert_eq!(parse("populated 1\n"), (true, false), "before Linux 5.2");
        assert_eq!(parse("frozen 10\n"), (false, false));
    }

    #[test]
    fn controllers_and_processes_are_parsed() {
        assert!(lists_pids("cpuset cpu pids\n"));
        assert!(!lists_pids("cpu pidsx\n") && !lists_pids(""));
        assert_eq!(pids(b"0\n10\n123\n"), [0, 10, 123].map(Pid));
        assert!(pids(b"").is_empty());
    }
}
