//! The executable and the working directory of a process decide what it runs, not its command line alone.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]

use std::{
    fs::{self, File},
    os::{fd::AsRawFd as _, unix::process::CommandExt as _},
    path::Path,
    process::{Child, Command, Stdio},
};

use mcp_guard_tests::{
    agent::Agent,
    cgroup::FixtureCgroup,
    leak::observing,
    lookalike::{self, ROLE},
};

/// A cgroup with processes that run until they are dropped, and wait meanwhile.
struct Scene {
    cgroup: FixtureCgroup,
    processes: Vec<Child>,
}

impl Scene {
    fn new() -> Self {
        Self { cgroup: FixtureCgroup::new("executable").unwrap(), processes: Vec::new() }
    }

    /// Starts a program in `folder`. Its command line begins with `claims`.
    fn start(&mut self, program: &Path, claims: &str, arguments: &[&str], folder: &Path) {
        let mut command = Command::new(program);
        command.arg0(claims).args(arguments).current_dir(folder).env(ROLE, "node");
        command.stdin(Stdio::piped());
        self.processes.push(self.cgroup.spawn(command).unwrap());
    }

    /// Waits until these identities have as many live servers each. Returns all identities.
    fn expect(&self, agent: &mut Agent, expected: &[(&str, usize)]) -> Vec<String> {
        let mut found = Vec::new();
        let is_seen = |agent: &mut Agent| {
            let all = agent.guard(self.cgroup.id())?.guard.identities;
            found = all.iter().map(|(name, one)| format!("{name} {}", one.live)).collect();
            let live = |name: &str| all.get(name).map_or(0, |one| one.live);
            Ok(expected.iter().all(|(name, number)| live(name) == *number))
        };
        let seen = agent.wait_until("the servers are identified", is_seen);
        assert!(seen.is_ok(), "{expected:?}, not {found:?}");
        found
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

#[test]
fn the_executable_decides_where_the_command_line_lies() {
    let node = lookalike::folder().unwrap().join("lookalike/node");
    let mut scene = Scene::new();
    let launcher = ["/usr/bin/npx", "-y", "demo-mcp"];
    scene.start(&node, "figma", &launcher, Path::new("/"));
    let mut agent = Agent::start(&observing(&scene.cgroup)).unwrap();
    scene.expect(&mut agent, &[("demo-mcp", 1)]);
    // It would be a package if it were npx.
    scene.start(&node, "npx", &["/srv/other.js"], Path::new("/"));
    // The path that the kernel was given does not name it, so it is read from `/proc`.
    let open = File::open(&node).unwrap();
    let unnamed = format!("/proc/self/fd/{}", open.as_raw_fd());
    scene.start(Path::new(&unnamed), "npx", &["/srv/again.js"], Path::new("/"));
    scene.start(&node, "figma", &launcher, Path::new("/"));
    let expected = [("demo-mcp", 2), ("/srv/other.js", 1), ("/srv/again.js", 1)];
    let found = scene.expect(&mut agent, &expected);
    assert!(!found.iter().any(|name| name.contains("figma")), "{found:?}");
}

#[test]
fn two_folders_may_each_have_a_server_of_one_name() {
    let node = lookalike::folder().unwrap().join("lookalike/node");
    let folder = tempfile::Builder::new().prefix("mcp-guard-test-").tempdir().unwrap();
    let [one, two] = ["one", "two"].map(|name| folder.path().join(name));
    fs::create_dir(&one).unwrap();
    fs::create_dir(&two).unwrap();
    let [first, second] = [&one, &two].map(|folder| format!("{}/server.js", folder.display()));
    let mut scene = Scene::new();
    scene.start(&node, "node", &["server.js"], &one);
    let mut agent = Agent::start(&observing(&scene.cgroup)).unwrap();
    scene.expect(&mut agent, &[(&first, 1)]);
    for folder in [&one, &two] {
        scene.start(&node, "node", &["server.js"], folder);
    }
    scene.expect(&mut agent, &[(&first, 2), (&second, 1)]);
}
