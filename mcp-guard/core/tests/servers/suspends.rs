//! Which servers are suspended, and when they run again.

use mcp_guard_core::{
    effect::{Input, OperatorRequest, Remark},
    evidence::{AtWork, Contact, Quiescence, ServerSeen},
    id::Pid,
    incident::Outcome,
    policy::{Mode, Policy},
    refusal::Refusal,
    registry::TreeId,
    server_order::{ListedServer, ServersRequest},
};

use crate::story::{EVERY, GUARD, Story, seen};

const SUSPEND: &str = "[respond]\nservers = \"suspend\"\n";

/// It waits for its client, and has done nothing since its start.
fn quiet(_: u32, _: u64) -> ServerSeen {
    ServerSeen { quiescence: Quiescence::Quiescent, ..seen(Contact::Connected, None, 7) }
}

fn leak(policy: &str, mode: Mode, servers: u32) -> Story {
    let mut story = Story::new(policy, mode);
    for pid in 100..100 + servers {
        story.package(pid, "figma-mcp");
    }
    story
}

#[test]
fn the_surplus_is_suspended_and_the_newest_stays_awake() {
    let mut story = leak(SUSPEND, Mode::Enforce, 12);
    story.look(60, quiet);
    assert_eq!(story.suspends, [], "idle for 30 s");
    story.look(60, quiet);
    assert_eq!(story.suspends.len(), 1);
    assert_eq!(story.suspends[0].1, (100..111).collect::<Vec<_>>());
    story.fall_asleep();
    story.look(3600, quiet);
    assert_eq!((story.suspends.len(), story.clamps), (1, 0), "one of twelve is awake");
    assert!(story.warnings >= 1, "it is a leak all the same");
}

/// Each row has nothing to suspend.
#[test]
fn nothing_else_is_suspended() {
    use Contact::{Closing, Connected, Disconnected, NoStdio, Unknown};
    let quiescent = |contact| ServerSeen { contact, ..quiet(0, 0) };
    for (what, servers, look) in [
        ("few", 9, quiescent(Connected)),
        (
            "at work",
            12,
            ServerSeen { quiescence: Quiescence::AtWork(AtWork::Unread), ..quiet(0, 0) },
        ),
        ("not known", 12, ServerSeen { quiescence: Quiescence::Unknown, ..quiet(0, 0) }),
        (
            "no client",
            12,
            ServerSeen { quiescence: Quiescence::Unknown, ..quiescent(Disconnected) },
        ),
        ("closing", 12, ServerSeen { quiescence: Quiescence::Unknown, ..quiescent(Closing) }),
        ("no stdio", 12, ServerSeen { quiescence: Quiescence::Unknown, ..quiescent(NoStdio) }),
        ("unknown", 12, ServerSeen { quiescence: Quiescence::Unknown, ..quiescent(Unknown) }),
    ] {
        let mut story = leak(SUSPEND, Mode::Enforce, servers);
        story.look(600, |_, _| look);
        assert_eq!(story.suspends, [], "{what}");
    }
    let mut story = leak(SUSPEND, Mode::Enforce, 12);
    story.look(600, |_, now| ServerSeen { ..seen(Contact::Connected, None, now) });
    assert_eq!(story.suspends, [], "in use");
    let mut story = Story::new(SUSPEND, Mode::Enforce);
    for pid in 100..140 {
        story.start(pid, b"python3\0/srv/worker.py\0");
    }
    story.look(600, quiet);
    assert_eq!(story.suspends, [], "the workers of a pool may be idle, too");
    let mut story = leak("", Mode::Enforce, 12);
    story.look(600, quiet);
    assert!(story.suspends.is_empty() && story.clamps >= 1, "the default");
}

#[test]
fn what_cannot_be_suspended_is_clamped() {
    let mut story = leak(SUSPEND, Mode::Enforce, 12);
    let busy = |pid: u32, now: u64| {
        if pid < 107 { seen(Contact::Connected, None, 7) } else { quiet(pid, now) }
    };
    story.look(600, busy);
    assert!(story.clamps >= 1, "less than half of the surplus is quiescent");
    assert_eq!(story.suspends[0].1, (107..111).collect::<Vec<_>>(), "and that is suspended");

    let mut story = leak(SUSPEND, Mode::Enforce, 12);
    story.look(120, quiet);
    assert_eq!(story.clamps, 0);
    story.settle(Outcome::NotNeeded);
    story.look(EVERY, quiet);
    assert!(story.clamps >= 1, "none was as the looks had shown it");

    let policy = format!("{SUSPEND}suspended_max = 5\nkeep = 2\n");
    let mut story = leak(&policy, Mode::Enforce, 30);
    story.look(120, quiet);
    assert_eq!(story.suspends[0].1, (100..105).collect::<Vec<_>>());
    story.fall_asleep();
    story.look(600, quiet);
    assert!(story.suspends.len() == 1 && story.clamps >= 1, "as many as the policy allows");
}

#[test]
fn a_server_that_was_woken_rests_and_is_suspended_again() {
    let mut story = leak(SUSPEND, Mode::Enforce, 12);
    story.look(120, quiet);
    let (ticket, servers) = story.fall_asleep();
    story.settle_with(ticket, Outcome::Done, Some(Remark::Resumed(servers)));
    let woke = story.seconds;
    story.look(600, quiet);
    let again = story.suspends[1].0 - woke;
    assert!((60..=150).contains(&again), "{again}");
    assert_eq!(story.clamps, 0);
}

#[test]
fn a_dry_run_says_it_once_and_stands_for_the_clamp() {
    let mut story = leak(SUSPEND, Mode::Observe, 12);
    story.look(120, quiet);
    story.settle(Outcome::WouldDo);
    story.look(7200, quiet);
    assert_eq!((story.suspends.len(), story.clamps), (1, 0));
}

#[test]
fn all_run_again_when_their_guard_ends_and_none_sleeps_against_a_rule() {
    let mut story = leak(SUSPEND, Mode::Enforce, 12);
    story.look(120, quiet);
    let (ticket, servers) = story.fall_asleep();
    let nothing = Policy::parse("[[guard]]\nname = \"another\"\n").expect("valid");
    story.step(Input::Policy(Box::new(nothing)));
    story.step(Input::Tick);
    assert_eq!(story.resumed, servers, "once");
    assert!(story.core.guard(GUARD).is_some());
    story.settle_with(ticket, Outcome::Done, Some(Remark::Resumed(servers)));
    story.step(Input::Tick);

    let mut story = leak(SUSPEND, Mode::Enforce, 12);
    let refusal = Some(Refusal::HoldsPid1);
    story.step(Input::Standing { guard: GUARD, refusal, asked: false });
    story.look(600, quiet);
    assert_eq!(story.suspends, []);
}

#[test]
fn an_operator_suspends_what_is_quiescent_and_resumes_it() {
    let mut story = Story::new("", Mode::Observe);
    story.start(100, b"node\0/srv/a.js\0");
    story.start(101, b"node\0/srv/a.js\0");
    let started_boot_ns = story.now().0;
    let all: Vec<_> = [100, 101].map(|pid| ListedServer { pid: Pid(pid), started_boot_ns }).into();
    story.look(60, |pid, now| match pid {
        100 => quiet(pid, now),
        _ => seen(Contact::Connected, None, 7),
    });
    let request = || ServersRequest { servers: all.clone(), dry_run: false };
    story.by_hand(OperatorRequest::Suspend(request()));
    assert_eq!(story.suspends.pop().map(|(_, pids)| pids), Some(vec![100]));
    let (_, servers): (_, Vec<TreeId>) = story.fall_asleep();
    story.by_hand(OperatorRequest::Suspend(request()));
    assert_eq!(story.suspends, [], "it sleeps already");
    story.by_hand(OperatorRequest::Resume(request()));
    assert_eq!(story.resumed, servers);
}
