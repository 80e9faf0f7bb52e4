//! Which servers are ended alone, and when.

use mcp_guard_core::{
    effect::{Input, OperatorRequest},
    evidence::{AtWork, Contact, Quiescence, ServerSeen},
    id::Pid,
    incident::Outcome,
    policy::{Mode, Policy},
    refusal::Refusal,
    server_order::{ListedServer, ServersRequest},
};

use crate::story::{EVERY, GUARD, STDIO, Story, left, seen};

const REAP: &str = "[respond]\nservers = \"reap\"\n";

fn reap_by_hand(story: &mut Story, request: ServersRequest) -> Vec<u32> {
    story.reaps.clear();
    story.by_hand(OperatorRequest::Reap(request));
    story.reaps.pop().map(|(_, pids)| pids).unwrap_or_default()
}

#[test]
fn a_server_that_nobody_can_reach_is_ended_after_two_minutes() {
    let mut story = Story::new(REAP, Mode::Enforce);
    story.package(100, "figma-mcp");
    story.look(90, |_, _| seen(Contact::Connected, None, 7));
    story.look(120, left);
    assert_eq!(story.reaps, [], "the first look without its client was 90 s ago");
    story.look(30, left);
    assert_eq!(story.reaps, [(1240, vec![100])]);
    let (_, reap) = story.last.clone().expect("an order");
    assert_eq!((reap.mode, &*reap.servers[0].identity), (Mode::Enforce, "figma-mcp"));
    assert_eq!((reap.servers[0].stdio, reap.servers[0].members.len()), (STDIO, 1));
}

/// Each row is work, or may be.
#[test]
fn nothing_else_is_ended() {
    use Contact::{Closing, Connected, Disconnected, NoStdio, Unknown};
    let npx = b"npx\0-y\0figma-mcp\0".as_slice();
    for (what, command, look) in [
        ("connected", npx, seen(Connected, None, 7)),
        ("its client may wait for the result", npx, seen(Closing, None, 7)),
        ("unknown", npx, seen(Unknown, Some(false), 7)),
        ("a file as stdin", npx, seen(NoStdio, Some(false), 7)),
        ("it waits for a reply", npx, seen(Disconnected, Some(true), 7)),
        ("that could not be read", npx, seen(Disconnected, None, 7)),
        ("no MCP server by its name", b"uvx\0scheduler\0", seen(Disconnected, Some(false), 7)),
        ("no word of its name", b"uvx\0mcprotocol-udp\0", seen(Disconnected, Some(false), 7)),
        ("a script", b"node\0/srv/mcp.js\0", seen(Disconnected, Some(false), 7)),
        ("a program", b"mcp-job\0", seen(Disconnected, Some(false), 7)),
        ("a container", b"docker\0run\0-i\0mcp/time\0", seen(Disconnected, Some(false), 7)),
    ] {
        let mut story = Story::new(REAP, Mode::Enforce);
        story.start(100, command);
        story.look(7200, |_, _| look);
        assert_eq!(story.reaps, [], "{what}");
    }
    let mut story = Story::new(REAP, Mode::Enforce);
    story.package(100, "figma-mcp");
    story.look(7200, |_, now| seen(Contact::Disconnected, Some(false), now));
    assert_eq!(story.reaps, [], "it goes on reading or writing");
    story.look(90, left);
    let stopped = |_, _| ServerSeen { is_stopped: true, ..left(100, 0) };
    story.look(7200, stopped);
    assert_eq!(story.reaps, [], "it could not run, and so could not end");
}

#[test]
fn the_policy_says_what_is_ended() {
    let named = "[respond]\nservers = \"reap\"\n[detect.disconnected]\nservers = [\"/srv/*\"]\nact_age = \"10min\"\n";
    let mut story = Story::new(named, Mode::Enforce);
    story.start(100, b"node\0/srv/mcp.js\0");
    story.look(600, left);
    assert_eq!(story.reaps, []);
    story.look(60, left);
    assert_eq!(story.reaps.len(), 1);
    for policy in [
        "",
        "[respond]\nservers = \"record\"\n",
        "[respond]\nservers = \"reap\"\n[server.\"figma-mcp\".respond]\nservers = \"record\"\n",
        "[respond]\nservers = \"reap\"\n[server.\"figma-mcp\"]\nignore = true\n",
    ] {
        let mut story = Story::new(policy, Mode::Enforce);
        story.package(100, "figma-mcp");
        story.look(7200, left);
        assert_eq!(story.reaps, [], "{policy}");
    }
    assert!(Policy::parse("[detect.disconnected]\nact_age = \"29s\"\n").is_err());
}

#[test]
fn a_dry_run_comes_once_a_day_and_what_stays_is_tried_ever_later() {
    let mut story = Story::new(REAP, Mode::Observe);
    story.package(100, "figma-mcp");
    story.look(180, left);
    story.settle(Outcome::WouldDo);
    story.look(86_000, left);
    assert_eq!(story.reaps.len(), 1);
    story.look(600, left);
    assert_eq!(story.reaps.len(), 2);

    let mut story = Story::new(REAP, Mode::Enforce);
    story.package(100, "figma-mcp");
    let mut last = 0;
    for least in [0, 600, 1200, 2400, 4800, 9600, 19_200, 21_600, 21_600] {
        let orders = story.reaps.len();
        while story.reaps.len() == orders {
            story.look(EVERY, left);
        }
        let waited = story.seconds - last;
        assert!(least == 0 || (least..=least + EVERY).contains(&waited), "{least} {waited}");
        last = story.seconds;
        story.settle(Outcome::NotNeeded);
    }
}

#[test]
fn a_guard_has_one_order_at_a_time_of_64_servers_at_most() {
    let mut story = Story::new(REAP, Mode::Enforce);
    for pid in 100..200 {
        story.package(pid, "figma-mcp");
    }
    story.look(3600, left);
    assert_eq!(story.reaps.len(), 1, "the order is under way");
    let first = story.reaps[0].1.clone();
    assert_eq!(first.len(), 64);
    for pid in &first {
        story.step(Input::Exit { guard: GUARD, pid: Pid(*pid), code: 15 });
    }
    story.settle(Outcome::Done);
    story.look(60, left);
    let (_, second) = story.reaps[1].clone();
    assert!(second.len() == 36 && second.iter().all(|pid| !first.contains(pid)), "{second:?}");
}

#[test]
fn an_order_is_given_up_when_the_policy_does_not_want_it_any_more() {
    let mut story = Story::new(REAP, Mode::Enforce);
    story.package(100, "figma-mcp");
    story.look(180, left);
    assert_eq!((story.reaps.len(), story.given_up), (1, 0));
    let policy = Policy::parse("[respond]\nservers = \"record\"\n").expect("valid");
    story.step(Input::Policy(Box::new(policy)));
    story.look(60, left);
    assert_eq!(story.given_up, 1);
    story.settle(Outcome::NotNeeded);
    story.look(7200, left);
    assert_eq!(story.reaps.len(), 1);
}

#[test]
fn an_order_is_given_up_when_a_rule_forbids_it() {
    let mut story = Story::new(REAP, Mode::Enforce);
    story.package(100, "figma-mcp");
    story.look(180, left);
    let refusal = Some(Refusal::HoldsPid1);
    story.step(Input::Standing { guard: GUARD, refusal, asked: false });
    assert_eq!(story.given_up, 1);
    story.settle(Outcome::Refused);
    story.look(7200, left);
    assert_eq!(story.reaps.len(), 1);
}

#[test]
fn an_operator_may_end_what_no_detector_does() {
    let mut story = Story::new("", Mode::Observe);
    let mut starts = Vec::new();
    let mut start = |story: &mut Story, pid: u32, command: &[u8]| {
        story.start(pid, command);
        starts.push(ListedServer { pid: Pid(pid), started_boot_ns: story.now().0 });
    };
    for pid in 100..103 {
        start(&mut story, pid, b"npx\0-y\0figma-mcp\0");
    }
    start(&mut story, 103, b"node\0/srv/a.js\0");
    start(&mut story, 104, b"docker\0run\0-i\0mcp/time\0");
    let quiescent = |quiescence| ServerSeen { quiescence, ..seen(Contact::Connected, None, 7) };
    let look = |pid, now| match pid {
        103 | 104 => left(pid, now),
        101 => quiescent(Quiescence::AtWork(AtWork::Unread)),
        102 => seen(Contact::Closing, None, 7),
        _ => quiescent(Quiescence::Quiescent),
    };
    story.look(600, look);
    let by_hand =
        |servers: &[ListedServer]| ServersRequest { servers: servers.to_vec(), dry_run: false };
    assert_eq!(
        reap_by_hand(&mut story, by_hand(&starts)),
        [100, 103],
        "the rest works, or is a client of containers"
    );
    assert_eq!(reap_by_hand(&mut story, by_hand(&starts[1..3])), [0_u32; 0]);
    let other = ListedServer { started_boot_ns: 1, ..starts[0] };
    assert_eq!(reap_by_hand(&mut story, by_hand(&[other])), [0_u32; 0], "another one had its pid");
    story.seconds += 3600;
    assert_eq!(reap_by_hand(&mut story, by_hand(&starts)), [0_u32; 0], "an old look says nothing");
}
