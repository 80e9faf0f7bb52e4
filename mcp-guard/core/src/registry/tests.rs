mod rescan;
mod servers;

use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000_000;

static GRAMMAR: LazyLock<Grammar> = LazyLock::new(Grammar::default);

struct Fixture {
    registry: Registry,
    now: u64,
}

impl Fixture {
    fn new() -> Self {
        Self { registry: Registry::default(), now: 0 }
    }

    fn fork(&mut self, parent: u32, child: u32) {
        self.now += SECOND;
        self.registry.fork(Time(self.now), Pid(child), Pid(parent));
    }

    fn exec(&mut self, pid: u32, words: &str) {
        self.now += SECOND;
        let now = Time(self.now);
        self.registry.exec(now, now, Pid(pid), &command(words), &GRAMMAR);
    }

    fn live(&self, identity: &str) -> (u64, usize) {
        self.registry.identity(identity).map_or((0, 0), |one| (one.starts, one.live()))
    }
}

fn exec_in(fixture: &mut Fixture, pid: u32, cwd: Option<&str>, words: &str) {
    fixture.now += SECOND;
    let now = Time(fixture.now);
    let cwd = cwd.map(|cwd| cwd.as_bytes().to_vec());
    let command = CommandLine { cwd, ..command(words) };
    fixture.registry.exec(now, now, Pid(pid), &command, &GRAMMAR);
}

fn command(words: &str) -> CommandLine {
    words.split('|').flat_map(|word| word.bytes().chain([0])).collect::<Vec<u8>>().into()
}

/// The process chain of one `npx -y figma-mcp` under dash, as the kernel reports it.
fn start_server(fixture: &mut Fixture, first: u32) {
    fixture.fork(1, first);
    fixture.exec(first, "sh|-c|npx -y figma-mcp");
    fixture.fork(first, first + 1);
    fixture.exec(first + 1, "/usr/bin/env|node|/usr/bin/npx|-y|figma-mcp");
    fixture.exec(first + 1, "node|/usr/bin/npx|-y|figma-mcp");
    fixture.fork(first + 1, first + 2);
    fixture.exec(first + 2, "sh|-c|'figma-mcp'");
    fixture.fork(first + 2, first + 3);
    fixture.exec(first + 3, "node|/c/_npx/0/node_modules/.bin/figma-mcp");
}

#[test]
fn a_tree_counts_once_and_lives_as_long_as_any_member() {
    let mut fixture = Fixture::new();
    start_server(&mut fixture, 10);
    assert_eq!(fixture.live("figma-mcp"), (1, 1));
    for pid in [11, 12] {
        fixture.registry.exit(Pid(pid));
        assert_eq!(fixture.live("figma-mcp"), (1, 1), "the server still runs");
    }
    fixture.registry.exit(Pid(13));
    assert_eq!(fixture.live("figma-mcp"), (1, 0));
    assert_eq!(fixture.registry.processes(), 1, "only the outer shell is left");
}

#[test]
fn busybox_runs_the_whole_chain_in_one_process() {
    let mut fixture = Fixture::new();
    fixture.fork(1, 10);
    fixture.exec(10, "/bin/sh|-c|npx -y figma-mcp");
    fixture.exec(10, "/usr/bin/env|node|/usr/bin/npx|-y|figma-mcp");
    fixture.exec(10, "node|/usr/bin/npx|-y|figma-mcp");
    assert_eq!(fixture.live("figma-mcp"), (1, 1));
    fixture.registry.exit(Pid(10));
    assert_eq!(fixture.live("figma-mcp"), (1, 0));
}

#[test]
fn a_launcher_wrapper_script_is_part_of_its_start() {
    let mut fixture = Fixture::new();
    fixture.fork(1, 10);
    fixture.exec(10, "/bin/sh|/usr/bin/npm|exec|figma-mcp");
    fixture.fork(10, 11);
    fixture.exec(11, "sh|-c|node npm-cli.js exec figma-mcp");
    fixture.fork(11, 12);
    fixture.exec(12, "node|/opt/npm-cli.js|exec|figma-mcp");
    assert_eq!(fixture.live("figma-mcp"), (1, 1));
}

#[test]
fn a_server_that_starts_itself_again_is_a_new_start() {
    let mut fixture = Fixture::new();
    start_server(&mut fixture, 10);
    fixture.fork(13, 20);
    fixture.exec(20, "npx|-y|figma-mcp");
    assert_eq!(fixture.live("figma-mcp"), (2, 2));
}

/// A test runner starts its workers from the cache that it was started from.
#[test]
fn helpers_from_the_cache_belong_to_the_server_that_starts_them() {
    let mut fixture = Fixture::new();
    start_server(&mut fixture, 10);
    for worker in 20..36 {
        fixture.fork(13, worker);
        fixture.exec(worker, "node|/c/_npx/0/node_modules/jest-worker/build/child.js");
    }
    assert_eq!(fixture.live("figma-mcp"), (1, 1));
    assert_eq!(fixture.live("jest-worker"), (0, 0));
}

#[test]
fn a_server_may_launch_another_package() {
    let mut fixture = Fixture::new();
    fixture.fork(1, 10);
    fixture.exec(10, "npx|supergateway");
    fixture.fork(10, 11);
    fixture.exec(11, "npx|figma-mcp");
    assert_eq!(fixture.live("supergateway"), (1, 1));
    assert_eq!(fixture.live("figma-mcp"), (1, 1));
    fixture.registry.exit(Pid(10));
    assert_eq!(fixture.live("supergateway"), (1, 0));
    assert_eq!(fixture.live("figma-mcp"), (1, 1));
}

#[test]
fn a_reused_pid_is_another_process() {
    let mut fixture = Fixture::new();
    fixture.fork(1, 10);
    fixture.exec(10, "npx|a");
    fixture.fork(1, 10);
    assert_eq!(fixture.live("a"), (1, 0));
    assert_eq!(fixture.registry.processes(), 1);
}

#[test]
fn identities_beyond_the_bound_share_a_name() {
    let mut registry = Registry::default();
    for pid in 0..(MAX_IDENTITIES as u32 + 5) {
        let command = command(&format!("npx|p{pid}"));
        registry.exec(Time(1), Time(1), Pid(pid), &command, &GRAMMAR);
    }
    assert_eq!(registry.identities().count(), MAX_IDENTITIES + 1);
    assert_eq!(registry.identity(OTHER_IDENTITIES).map(Identity::live), Some(5));
}

#[test]
fn a_package_with_the_shared_name_is_none_of_those_that_share_it() {
    let mut fixture = Fixture::new();
    fixture.fork(1, 10);
    fixture.exec(10, "npx|(other)");
    assert!(fixture.registry.identity(OTHER_IDENTITIES).is_none());
    assert_eq!(fixture.live("((other))"), (1, 1));
}

#[test]
fn identities_that_ended_take_no_place_and_are_bounded() {
    let mut registry = Registry::default();
    let mut start = |pid: u32, words: &str| {
        let time = Time(u64::from(pid) * 1000);
        registry.exec(time, time, Pid(pid), &command(words), &GRAMMAR);
        (pid > 0).then(|| registry.exit(Pid(pid)));
        assert!(registry.identities.len() <= 2 * MAX_IDENTITIES + 2);
    };
    // The first stays alive. The others end at once.
    start(0, "npx|first");
    (1..10_000).for_each(|pid| start(pid, &format!("npx|p{pid}")));
    (10_000..20_000).for_each(|pid| start(pid, &format!("/opt/tool-{pid}")));
    assert!(registry.identity(OTHER_IDENTITIES).is_none());
    assert_eq!(registry.identity("first").map(Identity::live), Some(1));
    assert!(registry.identity("p9999").is_some(), "a package is remembered");
    assert!(registry.identity("tool-19999").is_none(), "a plain program is not");
}

/// A build has many programs at once. Packages keep their places.
#[test]
fn plain_programs_take_no_place_of_a_package() {
    let mut registry = Registry::default();
    for pid in 0..(MAX_IDENTITIES as u32 + 5) {
        let command = command(&format!("/opt/tool-{pid}"));
        registry.exec(Time(1), Time(1), Pid(pid), &command, &GRAMMAR);
    }
    assert_eq!(registry.identity(OTHER_IDENTITIES).map(Identity::live), Some(5));
    registry.exec(Time(2), Time(2), Pid(9000), &command("npx|a"), &GRAMMAR);
    assert_eq!(registry.identity("a").map(Identity::live), Some(1));
}

#[test]
fn a_server_needs_no_launcher() {
    let mut fixture = Fixture::new();
    fixture.exec(1, "node|/srv/gateway.js");
    for (pid, words, identity) in [
        (10, "node|/srv/server.js", "/srv/server.js"),
        (11, "python3|-m|mcp_server|--port|1", "mcp_server"),
        (12, "docker|run|-i|--rm|mcp/time", "mcp/time"),
        (13, "/opt/go-server|stdio", "go-server"),
    ] {
        fixture.fork(1, pid);
        fixture.exec(pid, words);
        assert_eq!(fixture.live(identity), (1, 1), "{words}");
        fixture.registry.exit(Pid(pid));
        assert_eq!(fixture.registry.identity(identity).map_or(0, Identity::live), 0, "{words}");
    }
    assert_eq!(fixture.live("/srv/gateway.js"), (1, 1));
}

#[test]
fn wrappers_and_shells_are_merged_into_the_server_they_start() {
    let mut fixture = Fixture::new();
    fixture.exec(1, "node|/srv/gateway.js");
    fixture.fork(1, 10);
    fixture.exec(10, "sh|-c|uv run server.py");
    fixture.fork(10, 11);
    fixture.exec(11, "timeout|9|uv|run|/srv/server.py");
    fixture.exec(11, "uv|run|/srv/server.py");
    fixture.fork(11, 12);
    fixture.exec(12, "/srv/.venv/bin/python3|/srv/server.py");
    assert_eq!(fixture.live("/srv/server.py"), (1, 1));
    assert_eq!(fixture.registry.trees().len(), 2, "the gateway and the server");
    // A child of the package's script that becomes another program.
    fixture.fork(1, 20);
    fixture.exec(20, "npx|-y|a");
    fixture.fork(20, 21);
    fixture.exec(21, "sh|-c|a");
    fixture.exec(21, "/usr/bin/env|node|/c/_npx/0/node_modules/.bin/a");
    fixture.exec(21, "node|/c/_npx/0/node_modules/.bin/a");
    fixture.exec(21, "/c/_npx/0/node_modules/a-linux/server|stdio");
    assert_eq!(fixture.registry.trees().len(), 3);
}

/// They run the script themselves, so what they start is not the script.
#[test]
fn servers_of_a_gateway_that_is_interpreted_are_servers() {
    for gateway in ["ts-node|/srv/gateway.ts", "fastmcp|run|/srv/gateway.py", "mcp|run|/srv/g.py"] {
        let mut fixture = Fixture::new();
        fixture.exec(1, gateway);
        for pid in 10..13 {
            fixture.fork(1, pid);
            fixture.exec(pid, "node|/srv/server.js");
        }
        assert_eq!(fixture.live("/srv/server.js"), (3, 3), "{gateway}");
    }
}

#[test]
fn a_server_inside_a_server_is_one_of_its_own() {
    let mut fixture = Fixture::new();
    fixture.fork(1, 10);
    fixture.exec(10, "npx|@playwright/mcp");
    fixture.fork(10, 11);
    fixture.exec(11, "node|/c/_npx/0/node_modules/.bin/mcp-server-playwright");
    for root in [20, 30] {
        fixture.fork(11, root);
        fixture.exec(root, "/opt/chrome/chrome|--headless");
        fixture.fork(root, root + 1);
        fixture.exec(root + 1, "/opt/chrome/chrome|--type=zygote");
        fixture.fork(root + 1, root + 2);
    }
    assert_eq!(fixture.live("@playwright/mcp"), (1, 1));
    assert_eq!(fixture.live("chrome"), (2, 2), "each with its zygote");
    let launched = fixture.registry.launched();
    assert_eq!(launched.len(), 1);
    assert_eq!(launched[0].1.len(), 8, "all of it came from the package");
    fixture.registry.exit(Pid(20));
    assert_eq!(fixture.live("chrome"), (2, 2), "it lives as long as any of its processes");
    for pid in [21, 22] {
        fixture.registry.exit(Pid(pid));
    }
    assert_eq!(fixture.live("chrome"), (2, 1));
}

#[test]
fn workers_belong_to_their_parent() {
    let mut fixture = Fixture::new();
    fixture.exec(1, "node|/srv/cluster.js");
    for pid in 10..42 {
        fixture.fork(1, pid);
        fixture.exec(pid, "/usr/bin/node|/srv/cluster.js");
    }
    fixture.fork(1, 50);
    assert_eq!(fixture.live("/srv/cluster.js"), (1, 1));
    assert_eq!(fixture.registry.trees()[0].1.len(), 34);
}

/// A gateway and its servers may each be a `server.js` in a folder of their own.
#[test]
fn a_relative_file_belongs_to_its_folder() {
    let mut fixture = Fixture::new();
    exec_in(&mut fixture, 1, Some("/srv/gateway"), "node|server.js");
    fixture.fork(1, 10);
    exec_in(&mut fixture, 10, Some("/srv/time"), "node|server.js");
    fixture.fork(1, 20);
    exec_in(&mut fixture, 20, Some("/srv/gateway"), "node|server.js");
    assert_eq!(fixture.live("/srv/gateway/server.js"), (1, 1), "with its worker");
    assert_eq!(fixture.live("/srv/time/server.js"), (1, 1));
}

/// The process may have ended before its folder was read.
#[test]
fn a_relative_file_without_its_folder_is_a_server_of_its_own() {
    let mut fixture = Fixture::new();
    exec_in(&mut fixture, 1, None, "node|server.js");
    fixture.fork(1, 10);
    exec_in(&mut fixture, 10, None, "/usr/bin/env|node|server.js");
    exec_in(&mut fixture, 10, None, "node|server.js");
    assert_eq!(fixture.live("server.js"), (2, 2));
}

#[derive(Clone, Debug)]
enum Step {
    Fork(u32, u32),
    Exec(u32, &'static str),
    Exit(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let pid = || 1u32..12;
    let command =
        prop::sample::select(vec!["npx|a", "npx|b", "sh|-c|x", "node|s.js", "uv|run|s.py", "a"]);
    prop_oneof![
        (pid(), pid()).prop_map(|(parent, child)| Step::Fork(parent, child)),
        (pid(), command).prop_map(|(pid, command)| Step::Exec(pid, command)),
        pid().prop_map(Step::Exit),
    ]
}

proptest! {
    /// Each tree has as many members as there are processes in it, and an identity's live trees are
    /// those that exist.
    #[test]
    fn members_trees_and_identities_agree(steps in prop::collection::vec(step(), 0..200)) {
        let mut registry = Registry::default();
        for (at, step) in steps.into_iter().enumerate() {
            let now = Time(at as u64 * SECOND);
            match step {
                Step::Fork(parent, child) => registry.fork(now, Pid(child), Pid(parent)),
                Step::Exec(pid, words) => registry.exec(now, now, Pid(pid), &command(words), &GRAMMAR),
                Step::Exit(pid) => { registry.exit(Pid(pid)); }
            }
            for (id, tree) in &registry.trees {
                let members = registry.processes.values().filter(|p| p.tree == Some(*id)).count();
                prop_assert_eq!(tree.members as usize, members);
                prop_assert!(members > 0);
            }
            let live: usize = registry.identities.values().map(Identity::live).sum();
            prop_assert_eq!(live, registry.trees.len());
            let members: usize = registry.identities.values().map(|one| one.processes).sum();
            let in_trees = registry.processes.values().filter(|one| one.tree.is_some()).count();
            prop_assert_eq!(members, in_trees);
            for is_firm in [false, true] {
                let live = registry.identities.values().filter(|one| one.of_kind(is_firm) > 0);
                prop_assert_eq!(live.count(), registry.live_identities[usize::from(is_firm)]);
            }
            prop_assert_eq!(registry.births.len(), registry.processes.len());
        }
    }
}
