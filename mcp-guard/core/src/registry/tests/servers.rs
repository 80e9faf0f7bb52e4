//! Single servers: who started them, which are looked at, and for how long they are idle.

use std::time::Duration;

use super::{super::servers::MAX_MEMBERS, *};
use crate::evidence::{Activity, Channel, Channels, Contact, ServerSeen, StdioAtExec};

impl Fixture {
    fn server(&self, identity: &str) -> LiveServer<'_> {
        self.registry.servers().find(|server| server.identity == identity).expect("it lives")
    }

    fn kept(&self, identity: &str) -> (Option<Pid>, Option<bool>) {
        let server = self.server(identity);
        (server.starter.map(|(pid, _)| pid), server.is_orphaned)
    }

    fn look(&mut self, identity: &str, cpu: u64) {
        self.now += 30 * SECOND;
        self.look_held_up(identity, cpu, 0);
    }

    /// Takes a look that has begun so many seconds ago.
    fn look_held_up(&mut self, identity: &str, cpu: u64, seconds: u64) {
        let (id, began) = (self.server(identity).id, Time(self.now - seconds * SECOND));
        let activity = Some(Activity { cpu, ..Activity::default() });
        let seen = ServerSeen { activity, contact: Contact::Closing, ..ServerSeen::default() };
        self.registry.looked(Time(self.now), Duration::from_secs(30), &[(id, began, seen)]);
    }

    fn idle(&self, identity: &str) -> Option<u64> {
        self.server(identity).known.idle().map(|idle| idle.as_secs())
    }
}

#[test]
fn a_client_is_the_nearest_program_behind_shells_and_wrappers() {
    let mut fixture = Fixture::new();
    fixture.fork(1, 5);
    fixture.exec(5, "node|/usr/bin/supergateway");
    start_server(&mut fixture, 10);
    assert_eq!(fixture.kept("figma-mcp"), (None, None), "nothing is known of process 1");
    fixture.fork(5, 20);
    fixture.exec(20, "sh|-c|timeout 9 uvx mcp-server-git & wait");
    fixture.fork(20, 21);
    fixture.exec(21, "timeout|9|uvx|mcp-server-git");
    fixture.fork(21, 22);
    fixture.exec(22, "/usr/bin/uvx|mcp-server-git");
    assert_eq!(fixture.kept("mcp-server-git"), (Some(Pid(5)), Some(false)));
    // A worker of the client is a client of its own: it may be meant to outlive its parent.
    fixture.fork(5, 30);
    fixture.fork(30, 31);
    fixture.exec(31, "npx|b");
    assert_eq!(fixture.kept("b"), (Some(Pid(30)), Some(false)));
    fixture.registry.exit(Pid(5));
    assert_eq!(fixture.kept("mcp-server-git"), (None, Some(true)));
    assert_eq!(fixture.kept("b"), (Some(Pid(30)), Some(false)));
    // The pid of the client is given to another process.
    fixture.fork(30, 5);
    assert_eq!(fixture.kept("mcp-server-git"), (None, Some(true)));
}

/// The script of an npm package only starts the program for this platform, which gets the script's stdio.
#[test]
fn a_script_and_the_program_that_it_starts_are_one_server() {
    let mut fixture = Fixture::new();
    let program = "/srv/node_modules/k8s-mcp-linux-amd64/bin/k8s-mcp-linux-amd64|--port|1";
    fixture.fork(1, 5);
    fixture.exec(5, "node|/srv/node_modules/.bin/k8s-mcp");
    fixture.fork(5, 6);
    fixture.exec(6, program);
    assert_eq!((fixture.server("k8s-mcp").processes, fixture.registry.trees().len()), (2, 1));
    // Another program is another server.
    fixture.fork(5, 7);
    fixture.exec(7, "/srv/node_modules/k8s-mcp/bin/helper-linux-amd64");
    assert_eq!(fixture.server("helper-linux-amd64").processes, 1);
    // By itself, it keeps its name.
    fixture.fork(1, 8);
    fixture.exec(8, program);
    assert_eq!(fixture.live("k8s-mcp-linux-amd64"), (1, 1));
    assert_eq!(fixture.live("k8s-mcp"), (1, 1));
}

/// A gateway that is installed like a script starts the program for each session, and never ends it.
#[test]
fn a_script_that_starts_its_program_again_and_again_does_not_hide_the_copies() {
    let mut fixture = Fixture::new();
    fixture.fork(1, 5);
    fixture.exec(5, "node|/srv/node_modules/.bin/k8s-mcp");
    for child in [6, 7, 8] {
        fixture.fork(5, child);
        fixture.exec(child, "/srv/node_modules/k8s-mcp-linux-amd64/bin/k8s-mcp-linux-amd64");
    }
    assert_eq!(fixture.server("k8s-mcp").processes, 2);
    assert_eq!(fixture.live("k8s-mcp-linux-amd64"), (2, 2));
    // A script that starts its program again after a crash has one.
    fixture.registry.exit(Pid(6));
    fixture.fork(5, 9);
    fixture.exec(9, "/srv/node_modules/k8s-mcp-linux-amd64/bin/k8s-mcp-linux-amd64");
    assert_eq!(fixture.server("k8s-mcp").processes, 2);
    assert_eq!(fixture.live("k8s-mcp-linux-amd64"), (2, 2));
}

#[test]
fn programs_for_two_platforms_are_two_programs() {
    let mut fixture = Fixture::new();
    for (pid, program) in [(5, "/usr/bin/qemu-system-x86_64"), (6, "/usr/bin/qemu-system-aarch64")]
    {
        fixture.fork(1, pid);
        fixture.exec(pid, program);
    }
    assert_eq!(fixture.live("qemu-system-x86_64"), (1, 1));
    assert_eq!(fixture.live("qemu-system-aarch64"), (1, 1));
}

#[test]
fn who_started_a_server_that_was_found_is_not_known_while_its_parent_lives() {
    let mut fixture = Fixture::new();
    let seen = |pid: u32, parent: u32, words: &str| Observed {
        pid: Pid(pid),
        start_ticks: Ticks(u64::from(pid)),
        parent: Pid(parent),
        command: command(words),
    };
    let all = vec![seen(1, 0, "node|gateway.js"), seen(2, 1, "npx|a")];
    fixture.registry.reconcile(Time(SECOND), all, &GRAMMAR);
    assert_eq!(fixture.kept("a"), (Some(Pid(1)), None), "process 1 may have adopted it");
    fixture.registry.exit(Pid(1));
    assert_eq!(fixture.kept("a"), (None, Some(true)));
}

#[test]
fn old_servers_and_copies_are_worth_a_look() {
    let mut fixture = Fixture::new();
    let worth = |fixture: &Fixture| {
        let all = fixture.registry.to_look_at(Time(fixture.now), Duration::from_secs(30));
        let pids = |one: ToLookAt| one.members.into_iter().map(|one| one.pid.0).collect();
        all.into_iter().map(pids).collect::<Vec<Vec<u32>>>()
    };
    start_server(&mut fixture, 10);
    assert_eq!(worth(&fixture), Vec::<Vec<u32>>::new());
    start_server(&mut fixture, 20);
    assert_eq!(worth(&fixture), [[11, 12, 13], [21, 22, 23]], "copies");
    for pid in 21..24 {
        fixture.registry.exit(Pid(pid));
    }
    assert_eq!(worth(&fixture), Vec::<Vec<u32>>::new());
    fixture.now += 30 * SECOND;
    assert_eq!(worth(&fixture), [[11, 12, 13]], "it is old");
    let all = fixture.registry.to_look_at(Time(fixture.now), Duration::ZERO);
    let launchers = all[0].members.iter().map(|one| one.is_launcher);
    assert_eq!(launchers.collect::<Vec<_>>(), [true, false, false]);
}

#[test]
fn a_server_with_very_many_processes_is_not_looked_into() {
    let mut fixture = Fixture::new();
    fixture.exec(10, "npx|a");
    (0..MAX_MEMBERS as u32).for_each(|worker| fixture.fork(10, 100 + worker));
    let members = |fixture: &Fixture| {
        let all = fixture.registry.to_look_at(Time(fixture.now), Duration::ZERO);
        all[0].members.len()
    };
    assert_eq!(members(&fixture), 0);
    fixture.registry.exit(Pid(100));
    assert_eq!(members(&fixture), MAX_MEMBERS);
}

#[test]
fn a_server_is_used_if_one_inside_it_is() {
    let mut fixture = Fixture::new();
    fixture.exec(10, "npx|outer");
    fixture.fork(10, 11);
    fixture.exec(11, "npx|inner");
    for _ in 0..2 {
        fixture.look("outer", 7);
        fixture.look("inner", 7);
    }
    assert_eq!((fixture.idle("outer"), fixture.idle("inner")), (Some(60), Some(60)));
    fixture.look("inner", 8);
    assert_eq!((fixture.idle("outer"), fixture.idle("inner")), (Some(0), Some(0)));
    // D counts those that were not used for its age.
    let idle = |name: &str, age| {
        let identity = fixture.registry.identity(name).expect("it lives");
        identity.launched_idle(Time(fixture.now), Duration::from_secs(age))
    };
    assert_eq!(
        (idle("inner", 0), idle("outer", 0)),
        (0, 0),
        "it may be in use until the next look"
    );
    fixture.look("inner", 8);
    let idle = |name: &str, age| {
        let identity = fixture.registry.identity(name).expect("it lives");
        identity.launched_idle(Time(fixture.now), Duration::from_secs(age))
    };
    assert_eq!((idle("inner", 0), idle("outer", 0), idle("inner", 1)), (1, 1, 0));
    assert_eq!(fixture.server("inner").known.contact, Contact::Closing);
}

#[test]
fn a_look_that_was_held_up_is_as_old_as_its_beginning() {
    let mut fixture = Fixture::new();
    fixture.exec(10, "npx|a");
    fixture.look("a", 7);
    let first = fixture.now;
    fixture.now += 100 * SECOND;
    fixture.look_held_up("a", 7, 60);
    assert_eq!(fixture.idle("a"), Some(40));
    assert_eq!(fixture.server("a").known.looked(), Some(Time(first + 40 * SECOND)));
    // It says nothing of the present any more.
    fixture.now += 200 * SECOND;
    fixture.look_held_up("a", 8, 120);
    assert_eq!(fixture.idle("a"), Some(40));
    fixture.look_held_up("a", 7, 119);
    assert_eq!(fixture.idle("a"), Some(40 + 141));
}

#[test]
fn processes_around_a_server_are_known_by_their_start_times() {
    let mut fixture = Fixture::new();
    fixture.fork(1, 5);
    fixture.exec(5, "node|/usr/bin/supergateway");
    fixture.fork(5, 6);
    fixture.exec(6, "npx|a");
    let start = |pid: u32| {
        let (born, _) =
            fixture.registry.births.iter().find(|(_, one)| one.0 == pid).expect("it lives");
        (Pid(pid), ticks(*born))
    };
    let sought = fixture.registry.clients_of(Some("a"), 1).remove(0);
    let (members, starter) = (vec![start(6)], Some(start(5)));
    assert_eq!(sought, SoughtClient { holds: None, members, starter });
}

#[test]
fn stdio_is_kept_for_the_process_that_began_the_server_if_it_was_read_in_time() {
    let mut fixture = Fixture::new();
    start_server(&mut fixture, 10);
    assert_eq!(fixture.registry.take_begun(), [Pid(11)]);
    let [stdin, stdout] = [Channel::Pipe(1), Channel::Pipe(2)];
    let stdio = StdioAtExec::Are(Channels { stdin, stdout });
    let start = |pid: u32| ticks(fixture.registry.processes[&Pid(pid)].born);
    let (root, leaf) = (start(11), start(13));
    let began = fixture.server("figma-mcp").started;
    fixture.registry.stdio_read(began, Pid(13), leaf, stdio);
    fixture.registry.stdio_read(began, Pid(11), Ticks(root.0 + 1), stdio);
    fixture.registry.stdio_read(began.after(Duration::from_secs(1)), Pid(11), root, stdio);
    assert_eq!(fixture.server("figma-mcp").known.stdio, StdioAtExec::Unread);
    fixture.registry.stdio_read(began.after(Duration::from_millis(999)), Pid(11), root, stdio);
    assert_eq!(fixture.server("figma-mcp").known.stdio, stdio);
}

#[test]
fn stdio_is_read_of_what_has_just_begun_however_it_was_found() {
    let mut fixture = Fixture::new();
    let born = Time(60 * SECOND);
    let seen = |pid: u32| Observed {
        pid: Pid(pid),
        start_ticks: ticks(born),
        parent: Pid(0),
        command: command("npx|a"),
    };
    let soon = born.after(Duration::from_millis(999));
    fixture.registry.arrive(soon, born, Pid(7), Some(&seen(7)), &GRAMMAR);
    let later = born.after(Duration::from_secs(1));
    fixture.registry.arrive(later, born, Pid(8), Some(&seen(8)), &GRAMMAR);
    fixture.registry.reconcile(later, [7, 8, 9].map(seen).to_vec(), &GRAMMAR);
    assert_eq!(fixture.registry.take_begun(), [Pid(7)]);
    assert_eq!(fixture.registry.take_begun(), []);
}
