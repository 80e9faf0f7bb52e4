//! A rescan corrects what lost records have left in the registry.

use super::*;

fn observed(pid: u32, parent: u32, start_ticks: u64, words: &str) -> Observed {
    Observed {
        pid: Pid(pid),
        start_ticks: Ticks(start_ticks),
        parent: Pid(parent),
        command: command(words),
    }
}

#[test]
fn reconcile_finds_trees_orphans_and_dead_processes() {
    let mut fixture = Fixture::new();
    fixture.fork(1, 10);
    fixture.exec(10, "npx|gone");
    let seen = vec![
        observed(20, 1, 900, "npm exec @s/p@1||||"),
        observed(21, 20, 910, "sh|-c|'p'"),
        observed(22, 21, 911, "node|/c/_npx/0/node_modules/.bin/p"),
        observed(30, 1, 100, "node|/c/_npx/0/node_modules/.bin/stranded"),
        observed(40, 1, 50, "node|/srv/gateway.js"),
    ];
    fixture.registry.reconcile(Time(fixture.now), seen.clone(), &GRAMMAR);
    assert_eq!(fixture.live("gone"), (1, 0));
    assert_eq!(fixture.live("@s/p"), (1, 1));
    assert_eq!(fixture.live("stranded"), (1, 1));
    assert_eq!(fixture.registry.pids(), [20, 21, 22, 30, 40].map(Pid));
    assert_eq!(
        fixture.registry.identity("@s/p").and_then(|one| one.nth_oldest(1)),
        Some(Time(9 * SECOND)),
        "the tree is as old as its process, even if the agent is younger"
    );
    fixture.registry.reconcile(Time(fixture.now), seen, &GRAMMAR);
    assert_eq!(fixture.live("@s/p"), (1, 1), "a second rescan changes nothing");
}

/// A nearly full ring has no room for the launcher's exec, but still fits small records. The forks
/// of its shell and its server are reported, but not that their parent is a launcher.
#[test]
fn a_server_joins_a_launcher_that_only_a_rescan_finds() {
    let mut fixture = Fixture::new();
    for (parent, child) in [(1, 10), (10, 11), (11, 12), (1, 13)] {
        fixture.fork(parent, child);
    }
    fixture.exec(12, "node|/c/_npx/0/node_modules/.bin/p");
    let server = "node|/c/_npx/0/node_modules/.bin/p";
    let seen = vec![
        observed(10, 1, 100, "npm exec @s/p@1||||"),
        observed(11, 10, 200, "sh|-c|'p'"),
        observed(12, 11, 300, server),
        observed(13, 1, 400, server),
    ];
    for _ in 0..2 {
        fixture.registry.reconcile(Time(fixture.now), seen.clone(), &GRAMMAR);
        assert_eq!(fixture.live("@s/p"), (1, 1));
        assert_eq!(fixture.live("p"), (1, 1), "the server without a launcher above it");
    }
    fixture.registry.exit(Pid(10));
    fixture.registry.exit(Pid(11));
    assert_eq!(fixture.live("@s/p"), (1, 1), "the server still runs");
    fixture.registry.exit(Pid(12));
    assert_eq!(fixture.live("@s/p"), (1, 0));
}

/// The record of the birth of its leaf was lost, so the leaf was taken for a server without a launcher.
#[test]
fn a_leaf_whose_birth_was_lost_joins_its_launcher() {
    let leaf = "node|/c/_npx/0/node_modules/.bin/figma-mcp";
    let mut fixture = Fixture::new();
    fixture.exec(9, "gateway");
    fixture.fork(9, 10);
    fixture.exec(10, "npm exec figma-mcp");
    fixture.exec(11, leaf);
    assert_eq!(fixture.live("figma-mcp").1, 2);
    let ticks = |pid: u32| fixture.registry.processes[&Pid(pid)].born.0 / TICK_NS;
    let seen = vec![
        observed(9, 1, ticks(9), "gateway"),
        observed(10, 9, ticks(10), "npm exec figma-mcp"),
        observed(11, 10, ticks(11), leaf),
    ];
    fixture.registry.reconcile(Time(fixture.now), seen, &GRAMMAR);
    assert_eq!(fixture.live("figma-mcp").1, 1);
}

#[test]
fn a_leaf_joins_a_launcher_whose_birth_was_lost() {
    let leaf = "node|/c/_npx/0/node_modules/.bin/figma-mcp";
    let mut fixture = Fixture::new();
    fixture.exec(9, "gateway");
    // The parent is not known.
    fixture.fork(10, 11);
    fixture.exec(11, leaf);
    let ticks = |pid: u32| fixture.registry.processes[&Pid(pid)].born.0 / TICK_NS;
    let seen = vec![
        observed(9, 1, ticks(9), "gateway"),
        observed(10, 9, ticks(9) + 1, "npm exec figma-mcp"),
        observed(11, 10, ticks(11), leaf),
    ];
    fixture.registry.reconcile(Time(fixture.now), seen, &GRAMMAR);
    assert_eq!(fixture.live("figma-mcp").1, 1);
}

#[test]
fn a_record_read_after_the_rescan_that_saw_its_process_changes_nothing() {
    let mut registry = Registry::default();
    registry.reconcile(Time(10 * SECOND), vec![observed(20, 1, 900, "npx|a")], &GRAMMAR);
    registry.fork(Time(9 * SECOND + 5), Pid(20), Pid(1));
    assert_eq!(registry.identity("a").map(|a| (a.starts, a.live())), Some((1, 1)));
}

#[test]
fn a_process_that_renamed_itself_stays_what_it_was() {
    let mut fixture = Fixture::new();
    fixture.exec(1, "/srv/bin/gunicorn|app");
    let mut renamed = observed(1, 0, 100, "gunicorn: master [app]");
    renamed.command.exe = Some(b"/usr/bin/python3.11".to_vec());
    fixture.registry.reconcile(Time(fixture.now), vec![renamed.clone()], &GRAMMAR);
    assert_eq!(fixture.registry.trees().len(), 1);
    // One that is found like this has no name, and so no server.
    renamed.pid = Pid(2);
    fixture.registry.reconcile(Time(fixture.now), vec![renamed], &GRAMMAR);
    assert_eq!(fixture.registry.trees(), []);
}

/// `figma-mcp` was started once, by the launcher that only the rescan finds.
#[test]
fn a_start_that_turns_out_to_be_a_part_of_another_is_counted_once() {
    let leaf = "node|/c/_npx/0/node_modules/.bin/figma-mcp";
    let mut fixture = Fixture::new();
    fixture.fork(10, 11);
    fixture.exec(11, leaf);
    let seen = vec![observed(10, 1, 50, "npm exec figma-mcp"), observed(11, 10, 100, leaf)];
    fixture.registry.reconcile(Time(fixture.now), seen, &GRAMMAR);
    assert_eq!(fixture.live("figma-mcp"), (1, 1));
    let figma = fixture.registry.identity("figma-mcp").expect("it lives");
    assert_eq!(figma.starts_within(Time(fixture.now), STARTS_KEPT), 1);
}

/// The gateway is found, and its servers stay what they are.
#[test]
fn a_server_below_a_parent_that_is_found_is_not_started_again() {
    let mut fixture = Fixture::new();
    fixture.fork(10, 11);
    fixture.exec(11, "node|/srv/server.js");
    let seen = vec![
        observed(10, 1, 50, "node|/srv/gateway.js"),
        observed(11, 10, 100, "node|/srv/server.js"),
    ];
    fixture.registry.reconcile(Time(fixture.now), seen, &GRAMMAR);
    assert_eq!(fixture.live("/srv/server.js"), (1, 1));
    assert_eq!(fixture.live("/srv/gateway.js"), (1, 1));
}

#[test]
fn an_unreadable_child_of_a_parent_that_is_found_stays_what_it_is() {
    let mut fixture = Fixture::new();
    fixture.fork(10, 11);
    fixture.exec(11, "node|/srv/server.js");
    let unreadable = Observed { command: CommandLine::default(), ..observed(11, 10, 100, "") };
    let seen = vec![observed(10, 1, 50, "npm exec a"), unreadable];
    fixture.registry.reconcile(Time(fixture.now), seen, &GRAMMAR);
    assert_eq!(fixture.live("/srv/server.js"), (1, 1), "nothing says that it is a part of `a`");
    // Its command line can be read again.
    let seen =
        vec![observed(10, 1, 50, "npm exec a"), observed(11, 10, 100, "node|/srv/server.js")];
    fixture.registry.reconcile(Time(fixture.now), seen, &GRAMMAR);
    assert_eq!((fixture.live("a"), fixture.live("/srv/server.js").1), ((1, 1), 0));
}

/// The launcher is the first process of a container, which is given every process whose parent has ended.
#[test]
fn a_launcher_is_not_the_start_of_what_was_given_to_it() {
    let leaf = |number: u32| format!("node|/c/_npx/{number}/node_modules/.bin/figma-mcp");
    let mut seen = vec![
        observed(1, 0, 10, "npm exec supergateway"),
        observed(2, 1, 11, "sh|-c|supergateway"),
        observed(3, 2, 12, "node|/c/_npx/0/node_modules/.bin/supergateway"),
        observed(4, 3, 20, "npm exec figma-mcp"),
        observed(5, 4, 21, &leaf(1)),
    ];
    // Their launchers were killed, and one left its shell behind.
    seen.extend((6..9).map(|pid| observed(pid, 1, u64::from(20 * pid), &leaf(1))));
    seen.push(observed(9, 1, 300, "sh|-c|'figma-mcp'"));
    seen.push(observed(10, 9, 301, &leaf(1)));
    let mut fixture = Fixture::new();
    for _ in 0..2 {
        fixture.registry.reconcile(Time(400 * SECOND), seen.clone(), &GRAMMAR);
        assert_eq!(fixture.live("supergateway"), (1, 1));
        assert_eq!(fixture.live("figma-mcp"), (5, 5));
    }
}

#[test]
fn a_program_whose_exec_was_lost_is_found() {
    let mut fixture = Fixture::new();
    fixture.exec(1, "node|/srv/gateway.js");
    fixture.fork(1, 10);
    fixture.exec(10, "/usr/bin/env|node|/srv/start.js");
    let ticks = |pid: u32| fixture.registry.processes[&Pid(pid)].born.0 / TICK_NS;
    let seen = vec![
        observed(1, 0, ticks(1), "node|/srv/gateway.js"),
        observed(10, 1, ticks(10), "node|/srv/server.js|--port|1"),
    ];
    for _ in 0..2 {
        fixture.registry.reconcile(Time(fixture.now), seen.clone(), &GRAMMAR);
        assert_eq!(fixture.live("/srv/start.js").1, 0);
        assert_eq!(fixture.live("/srv/server.js"), (1, 1));
    }
}

/// Each is what it was, although it shows another command line, or is shown by another name.
#[test]
fn a_title_is_no_program() {
    let cases = [
        ("npx|-y|-p|@s/p|serve", "npm exec serve||||", "/usr/bin/node", "@s/p"),
        ("claude|mcp|serve", "claude", "/opt/claude/versions/1.0.30", "claude mcp serve"),
        ("claude|mcp|serve", "claude||||", "/opt/claude/versions/1.0.30", "claude mcp serve"),
        ("tool|serve|one", "tool: serving||", "/opt/tool", "tool serve one"),
        ("/srv/tool|--key|k", "/srv/tool|--key|x", "/srv/tool", "tool"),
        // The kernel was given the name of a link.
        ("awk|program", "awk|program", "/usr/bin/mawk", "awk program"),
    ];
    for (started, shown, exe, identity) in cases {
        let mut fixture = Fixture::new();
        fixture.exec(1, started);
        let mut seen = observed(1, 0, fixture.now / TICK_NS, shown);
        seen.command.exe = Some(exe.as_bytes().to_vec());
        fixture.registry.reconcile(Time(fixture.now), vec![seen], &GRAMMAR);
        assert_eq!(fixture.live(identity), (1, 1), "{shown}");
        assert_eq!(fixture.registry.trees().len(), 1, "{shown}");
    }
}
