//! The table of who wins, a row at a time.

use mcp_guard_core::{
    effect::{Input, PolicyThen},
    incident::Outcome,
    limit::Limit,
    refusal::Refusal,
    repair::Write,
};

use super::world::{
    Asked, CLAMP, GUARD, World, of_old_docker, of_old_podman, policy, writes_of_old_podman,
};

const NO_POLICY: PolicyThen = PolicyThen::Said(None);

#[test]
fn our_clamp_stands_until_it_is_given_back() {
    let mut world = World::leaking(Some(90), Some(200));
    world.settle_clamp(Outcome::Done);
    world.ask(60, PolicyThen::Said(Some(90)));
    world.step(Input::Declared { guard: GUARD, limit: Some(70) });
    world.wait(30);
    assert_eq!((world.in_force, world.written.len()), (CLAMP, 0), "whoever asks");
    world.thaw();
    world.wait(30);
    assert_eq!(world.in_force, Limit::Tasks(60), "what was asked for meanwhile");
}

#[test]
fn what_somebody_writes_over_our_clamp_stands_until_the_cool_down() {
    let mut world = World::leaking(None, Some(200));
    world.settle_clamp(Outcome::Done);
    world.in_force = Limit::Tasks(150);
    world.wait(1);
    assert!(!world.is_clamped() && world.disowned == 1, "the clamp is no longer ours");
    world.wait(50);
    assert_eq!((world.in_force, world.clamp), (Limit::Tasks(150), None));
    world.wait(20);
    assert!(world.clamp.is_some(), "the leak goes on, and its detector asks again");
}

#[test]
fn a_request_stands_against_the_policy_until_the_policys_number_changes() {
    let mut world = World::new(Some(90), None);
    world.ask(120, PolicyThen::Said(Some(90)));
    world.wait(30);
    assert_eq!((world.in_force, world.request.is_some()), (Limit::Tasks(120), true));
    world.step(Input::Policy(policy(Some(80))));
    world.wait(30);
    assert_eq!((world.in_force, world.request), (Limit::Tasks(80), None));
    assert!(world.logged.iter().any(|line| line.contains("120 is over")), "{:?}", world.logged);
}

#[test]
fn a_policy_that_changed_while_no_agent_ran_ends_a_request_too() {
    for (then, kept) in [
        (PolicyThen::Said(Some(90)), false),
        (NO_POLICY, false),
        (PolicyThen::Said(Some(80)), true),
        // Nobody knows what it stood against: what it meets first.
        (PolicyThen::Unknown, true),
    ] {
        let mut world = World::new(Some(80), None);
        world.ask(120, then);
        world.wait(30);
        let expected = if kept { 120 } else { 80 };
        assert_eq!(
            (world.in_force, world.request.is_some()),
            (Limit::Tasks(expected), kept),
            "{then:?}"
        );
    }
}

#[test]
fn the_policy_stands_against_what_the_engine_keeps() {
    let mut world = World::new(Some(90), Some(200));
    world.wait(5);
    assert_eq!(world.written, [Write::Docker { limit: 90 }]);
    // An operator's own update of the engine, above and then below.
    (world.stored, world.in_force) = (Some(150), Limit::Tasks(150));
    world.step(Input::Declared { guard: GUARD, limit: Some(150) });
    world.wait(5);
    assert_eq!((world.stored, world.in_force), (Some(90), Limit::Tasks(90)));
}

#[test]
fn without_a_policy_the_engines_word_counts() {
    let mut world = World::new(None, Some(90));
    world.in_force = Limit::Max;
    world.wait(5);
    assert_eq!(world.written, [Write::Docker { limit: 90 }]);
    // The engine was told another number, and nobody said so yet: the facts do.
    (world.stored, world.in_force) = (Some(150), Limit::Tasks(150));
    world.wait(5);
    assert_eq!((world.written.len(), world.wanted()), (1, Some(150)));
}

#[test]
fn a_lower_number_is_somebodys_brake() {
    for (policy, stored, request) in
        [(Some(90), None, None), (None, Some(90), None), (None, None, Some(90))]
    {
        let mut world = World::new(policy, stored);
        world.in_force = Limit::Tasks(50);
        if let Some(limit) = request {
            world.ask(limit, PolicyThen::Said(policy));
        }
        world.wait(60);
        assert_eq!((world.in_force, world.written.len()), (Limit::Tasks(50), 0));
        assert_eq!(world.wanted(), Some(90));
    }
}

#[test]
fn the_third_reversion_within_an_hour_is_left_and_both_are_named() {
    let mut world = World::new(Some(90), None);
    world.wait(5);
    for _ in 0..3 {
        world.in_force = Limit::Tasks(500);
        world.wait(20);
    }
    assert_eq!((world.written.len(), world.in_force), (3, Limit::Tasks(500)));
    let [(Outcome::NotOurs, detail)] = &world.left[..] else { panic!("{:?}", world.left) };
    assert!(detail.contains("90 is wanted, 500 is in force"), "{detail}");
    assert!(world.core.guard(GUARD).is_some_and(|guard| guard.limits.is_left()));
    world.wait(600);
    assert_eq!((world.written.len(), world.left.len()), (3, 1), "said once, and left");
    world.ask(90, PolicyThen::Said(Some(90)));
    world.wait(20);
    assert_eq!(world.in_force, Limit::Tasks(90), "an operator who asks again is heard");
}

#[test]
fn a_request_is_over_when_the_engine_keeps_it() {
    let mut world = World::new(None, None);
    world.ask(60, NO_POLICY);
    world.wait(5);
    assert_eq!((world.stored, world.request), (Some(60), None));
    // It would undo the engine's next word.
    (world.stored, world.in_force) = (Some(100), Limit::Tasks(100));
    world.step(Input::Declared { guard: GUARD, limit: Some(100) });
    world.wait(60);
    assert_eq!(world.in_force, Limit::Tasks(100));
}

#[test]
fn what_runs_there_is_not_broken_on_the_way_down() {
    let mut world = World::new(Some(40), None);
    world.tasks = Some(300);
    world.wait(1);
    assert_eq!(world.in_force, Limit::Tasks(320));
    let mut last = world.in_force;
    for tasks in (1..15).rev().map(|times| 20 * times) {
        world.tasks = Some(tasks);
        world.wait(11);
        assert!(world.in_force <= last, "never up again");
        assert!(world.in_force >= Limit::Tasks(tasks + 20) || tasks <= 35);
        last = world.in_force;
    }
    assert_eq!((world.in_force, world.stored), (Limit::Tasks(40), Some(40)));
    let (store, steps) = world.written.split_last().expect("written");
    assert_eq!(*store, Write::Docker { limit: 40 });
    assert!(steps.iter().all(|write| matches!(write, Write::PidsMax { .. })), "the store is last");
}

#[test]
fn observe_mode_goes_the_same_way_to_the_last_step() {
    let mut world = World::observing(Some(90), Some(200));
    world.wait(60);
    let [(Outcome::WouldDo, _)] = &world.left[..] else { panic!("{:?}", world.left) };
    assert_eq!((world.written.len(), world.in_force), (0, Limit::Tasks(200)));
    // A new policy enforces it, though the number is the same.
    world.step(Input::Policy(policy(Some(90))));
    world.wait(5);
    assert_eq!(world.in_force, Limit::Tasks(90));
}

#[test]
fn an_agent_that_only_observes_removes_no_request() {
    let mut world = World::observing(None, None);
    world.ask(60, PolicyThen::Said(Some(90)));
    world.wait(30);
    assert_eq!((world.request.is_some(), world.wanted()), (true, None), "it lapses, and is kept");
}

#[test]
fn no_limit_is_written_where_nothing_may_be_done() {
    let mut world = World::new(Some(90), None);
    let refusal = Some(Refusal::HoldsPid1);
    world.step(Input::Standing { guard: GUARD, refusal });
    world.wait(30);
    assert_eq!(world.written.len(), 0);
    world.step(Input::Standing { guard: GUARD, refusal: None });
    world.wait(30);
    assert_eq!(world.in_force, Limit::Tasks(90));
}

#[test]
fn a_step_leaves_the_headroom_of_the_policy_that_holds() {
    let mut world = World::new(Some(40), None);
    world.tasks = Some(300);
    // A plan waits for tasks to end.
    world.wait(25);
    assert_eq!(world.in_force, Limit::Tasks(320));
    let mut other = *policy(Some(40));
    other.respond.clamp_headroom = 10;
    world.step(Input::Policy(Box::new(other)));
    world.wait(30);
    assert_eq!(world.in_force, Limit::Tasks(310));
}

#[test]
fn what_fails_is_tried_again_and_said_once() {
    let mut world = World::new(Some(90), None);
    world.unread = Some("the engine is away".to_owned());
    world.wait(60);
    assert_eq!((world.logged.len(), world.written.len()), (1, 0), "{:?}", world.logged);
    world.unread = None;
    world.refuses = true;
    world.wait(120);
    assert_eq!(world.in_force, Limit::Max);
    world.refuses = false;
    world.wait(60);
    assert_eq!(world.in_force, Limit::Tasks(90));
}

#[test]
fn a_request_is_wanted_as_soon_as_it_is_stored() {
    let mut world = World::new(Some(90), None);
    world.wait(5);
    world.ask(120, PolicyThen::Said(Some(90)));
    let limits = |world: &World| {
        let guard = world.core.guard(GUARD).expect("guarded");
        guard.limits.wanted_now(guard.terms.pids_limit, world.request)
    };
    assert_eq!((world.wanted(), limits(&world)), (Some(90), Some(120)), "before the next look");
    world.wait(1);
    assert_eq!((world.wanted(), limits(&world)), (Some(120), Some(120)));
    // One that a change of the policy has ended is not wanted while its file is still there.
    let stored = world.request;
    world.step(Input::Policy(policy(Some(80))));
    world.wait(1);
    world.request = stored;
    world.look();
    assert_eq!(limits(&world), Some(80));
}

#[test]
fn a_request_that_comes_while_facts_are_read_is_the_one_that_is_written() {
    let mut world = World::new(Some(90), None);
    world.look();
    world.ask(60, PolicyThen::Said(Some(90)));
    world.answer();
    world.answer();
    assert_eq!(world.written, [Write::Docker { limit: 60 }]);
}

#[test]
fn a_limit_that_is_written_in_two_places_is_reached_with_the_second() {
    let mut world = World::new(Some(90), None);
    world.engine = of_old_podman;
    world.wait(5);
    assert_eq!(world.written, writes_of_old_podman(90));
    // The second fails: both are written again.
    let mut world = World::new(Some(90), None);
    world.engine = of_old_podman;
    world.look();
    world.answer();
    world.answer();
    world.next_refused = true;
    world.answer();
    world.in_force = Limit::Max;
    world.wait(5);
    let [kernel, unit] = writes_of_old_podman(90);
    assert_eq!(world.written, [kernel.clone(), kernel, unit]);
}

#[test]
fn what_its_owner_does_not_keep_is_requested_until_somebody_ends_it() {
    for (engine, kept) in [(of_old_podman as fn(_) -> _, true), (|facts| facts, false)] {
        let mut world = World::new(None, None);
        world.engine = engine;
        world.ask(60, NO_POLICY);
        world.wait(30);
        assert_eq!((world.in_force, world.request.is_some()), (Limit::Tasks(60), kept));
    }
}

#[test]
fn a_limit_that_cannot_be_planned_is_said_and_tried_again_seldom() {
    let mut world = World::new(Some(90), None);
    world.engine = of_old_docker;
    world.wait(90);
    assert!(world.written.is_empty());
    let refused = world.logged.iter().filter(|line| line.contains("API 1.39")).count();
    assert_eq!(refused, 5, "after 2, 5, 15 and 60 s: {:?}", world.logged);
    world.engine = |facts| facts;
    world.wait(60);
    assert_eq!(world.in_force, Limit::Tasks(90));
}

#[test]
fn tasks_that_cannot_be_counted_are_not_taken_for_none() {
    let mut world = World::new(Some(90), None);
    world.tasks = None;
    world.wait(30);
    assert!(world.written.is_empty());
    world.tasks = Some(300);
    world.wait(60);
    assert_eq!(world.in_force, Limit::Tasks(320));
}

#[test]
fn no_more_is_asked_while_an_answer_is_awaited_though_another_limit_is_wanted() {
    let mut world = World::new(Some(90), None);
    world.look();
    world.step(Input::Policy(policy(Some(80))));
    for _ in 0..100 {
        world.look();
    }
    assert_eq!(world.waiting.len(), 1, "the first facts");
    world.answer();
    assert_eq!(world.waiting.len(), 1, "their write");
    for _ in 0..100 {
        world.ask(70, PolicyThen::Said(Some(80)));
        world.look();
    }
    assert_eq!(world.waiting.len(), 1);
    world.wait(5);
    assert_eq!(world.in_force, Limit::Tasks(70));
}

#[test]
fn facts_of_a_guard_that_is_gone_are_nothing_to_the_next() {
    let mut world = World::new(Some(90), None);
    world.look();
    world.begin_again();
    world.look();
    world.answer();
    assert!(matches!(world.waiting[..], [Asked::Facts(_)]), "its own are awaited");
    world.wait(1);
    assert_eq!(world.in_force, Limit::Tasks(90));
}

#[test]
fn a_write_for_a_guard_that_is_gone_is_nothing_to_the_next() {
    let mut world = World::new(Some(90), None);
    world.engine = of_old_podman;
    world.look();
    world.answer();
    world.begin_again();
    world.look();
    // The new one's facts are there first.
    let stale = world.waiting.remove(0);
    world.answer();
    world.waiting.insert(0, stale);
    world.answer();
    assert!(matches!(world.waiting[..], [Asked::Write(..)]), "its first write is awaited");
    world.wait(1);
    assert_eq!(world.written, writes_of_old_podman(90));
}
