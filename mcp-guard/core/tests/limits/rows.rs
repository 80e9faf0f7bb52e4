//! The table in `limits` of which limit wins, row by row.

use std::time::Duration;

use mcp_guard_core::{
    effect::{Input, PolicyThen},
    incident::Outcome,
    limit::Limit,
    refusal::Refusal,
    repair::Write,
};

use super::world::{
    Asked, CLAMP, GUARD, World, of_old_docker, of_old_podman, policy, policy_with,
    with_five_servers, writes_of_old_podman,
};

const NO_POLICY: PolicyThen = PolicyThen::Said(None);

#[test]
fn our_clamp_stays_in_force_until_it_is_removed() {
    let mut world = World::leaking(Some(90), Some(200));
    world.settle_clamp(Outcome::Done);
    world.ask(60, PolicyThen::Said(Some(90)));
    world.step(Input::Declared { guard: GUARD, limit: Some(70) });
    world.wait(30);
    assert_eq!((world.in_force, world.written.len()), (CLAMP, 0), "no source overrides the clamp");
    world.thaw();
    world.wait(30);
    assert_eq!(world.in_force, Limit::Tasks(60), "the request made meanwhile");
}

/// Many tasks run, so that the clamp is above every limit that is wanted, and is no brake.
#[test]
fn a_clamp_above_the_wanted_limit_stays_in_force_too() {
    let mut world = World::leaking(Some(90), Some(200));
    world.clamps_to = Limit::Tasks(150);
    world.settle_clamp(Outcome::Done);
    world.ask(60, PolicyThen::Said(Some(90)));
    world.step(Input::Declared { guard: GUARD, limit: Some(70) });
    world.wait(30);
    assert_eq!((world.in_force, world.written.len()), (Limit::Tasks(150), 0));
    world.thaw();
    world.wait(30);
    assert_eq!(world.in_force, Limit::Tasks(60), "the request made meanwhile");
}

/// A freeze lowers the limit until it ends, and its outcome may take long.
#[test]
fn no_limit_is_written_during_a_freeze_and_its_own_limit_is_no_brake() {
    let mut world = World::new(Some(90), Some(200));
    world.refuses = true;
    for _ in 0..3 {
        world.wait(30);
        world.freeze();
        world.in_force = Limit::Tasks(10);
        world.wait(30);
        world.thaw();
        world.in_force = Limit::Tasks(200);
    }
    world.refuses = false;
    world.wait(100);
    assert_eq!(world.left, [], "the end of a freeze is no reversion");
    assert_eq!(world.in_force, Limit::Tasks(90));
    world.freeze();
    world.ask(120, PolicyThen::Said(Some(90)));
    world.wait(100);
    assert_eq!(world.in_force, Limit::Tasks(90));
    world.thaw();
    world.wait(30);
    assert_eq!(world.in_force, Limit::Tasks(120), "the request made meanwhile");
}

#[test]
fn a_write_over_our_clamp_stays_in_force_until_the_cool_down_ends() {
    let mut world = World::leaking(None, Some(200));
    world.settle_clamp(Outcome::Done);
    world.in_force = Limit::Tasks(150);
    world.wait(1);
    assert!(!world.is_clamped() && world.disowned == 1, "the clamp is no longer ours");
    world.wait(50);
    assert_eq!((world.in_force, world.clamp), (Limit::Tasks(150), None));
    world.wait(20);
    assert!(world.clamp.is_some(), "the leak continues, and its detector asks again");
}

#[test]
fn a_request_overrides_the_policy_until_the_policys_number_changes() {
    let mut world = World::new(Some(90), None);
    world.ask(120, PolicyThen::Said(Some(90)));
    world.wait(30);
    assert_eq!((world.in_force, world.request.is_some()), (Limit::Tasks(120), true));
    world.step(Input::Policy(policy(Some(80))));
    world.wait(30);
    assert_eq!((world.in_force, world.request), (Limit::Tasks(80), None));
    assert!(world.logged.iter().any(|line| line.contains("120 has ended")), "{:?}", world.logged);
}

#[test]
fn a_policy_that_changed_while_no_agent_ran_also_ends_a_request() {
    for (then, kept) in [
        (PolicyThen::Said(Some(90)), false),
        (NO_POLICY, false),
        (PolicyThen::Said(Some(80)), true),
        // The policy's number at the time is not known, so the first one seen counts.
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
fn the_policy_overrides_the_limit_that_the_engine_stores() {
    let mut world = World::new(Some(90), Some(200));
    world.wait(5);
    assert_eq!(world.written, [Write::Docker { limit: 90 }]);
    // An operator's own update of the engine, above and then below.
    (world.stored, world.in_force) = (Some(150), Limit::Tasks(150));
    world.step(Input::Declared { guard: GUARD, limit: Some(150) });
    world.wait(5);
    assert_eq!((world.stored, world.in_force), (Some(90), Limit::Tasks(90)));
    (world.stored, world.in_force) = (Some(50), Limit::Tasks(50));
    world.step(Input::Declared { guard: GUARD, limit: Some(50) });
    world.wait(5);
    let now = (world.stored, world.in_force, world.wanted());
    assert_eq!(now, (Some(50), Limit::Tasks(50), Some(90)), "a lower limit is a brake");
}

#[test]
fn without_a_policy_the_engines_limit_is_wanted() {
    let mut world = World::new(None, Some(90));
    world.in_force = Limit::Max;
    world.wait(5);
    assert_eq!(world.written, [Write::Docker { limit: 90 }]);
    // The engine was updated, and the agent has not been notified. It learns the new limit from the facts.
    (world.stored, world.in_force) = (Some(150), Limit::Tasks(150));
    world.wait(5);
    assert_eq!((world.written.len(), world.wanted()), (1, Some(150)));
}

#[test]
fn a_lower_limit_is_left_alone_as_a_brake() {
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
fn after_the_third_reversion_within_an_hour_the_limit_is_left_alone() {
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
    assert_eq!((world.written.len(), world.left.len()), (3, 1), "recorded once and left alone");
    world.ask(90, PolicyThen::Said(Some(90)));
    world.wait(20);
    assert_eq!(world.in_force, Limit::Tasks(90), "a new request is carried out");
}

#[test]
fn a_request_ends_when_the_engine_stores_its_limit() {
    let mut world = World::new(None, None);
    world.ask(60, NO_POLICY);
    world.wait(5);
    assert_eq!((world.stored, world.request), (Some(60), None));
    // A request that stays would undo the engine's next update.
    (world.stored, world.in_force) = (Some(100), Limit::Tasks(100));
    world.step(Input::Declared { guard: GUARD, limit: Some(100) });
    world.wait(60);
    assert_eq!(world.in_force, Limit::Tasks(100));
}

#[test]
fn a_limit_is_lowered_without_breaking_running_tasks() {
    let mut world = World::new(Some(40), None);
    world.tasks = Some(300);
    world.wait(1);
    assert_eq!(world.in_force, Limit::Tasks(320));
    let mut last = world.in_force;
    for tasks in (1..15).rev().map(|times| 20 * times) {
        world.tasks = Some(tasks);
        world.wait(11);
        assert!(world.in_force <= last, "it never rises");
        assert!(world.in_force >= Limit::Tasks(tasks + 20) || tasks <= 35);
        last = world.in_force;
    }
    assert_eq!((world.in_force, world.stored), (Limit::Tasks(40), Some(40)));
    let (store, steps) = world.written.split_last().expect("written");
    assert_eq!(*store, Write::Docker { limit: 40 });
    assert!(
        steps.iter().all(|write| matches!(write, Write::PidsMax { .. })),
        "the engine is written last"
    );
}

#[test]
fn observe_mode_stops_before_the_write() {
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
fn an_agent_in_observe_mode_keeps_a_request() {
    let mut world = World::observing(None, None);
    world.ask(60, PolicyThen::Said(Some(90)));
    world.wait(30);
    assert_eq!(
        (world.request.is_some(), world.wanted()),
        (true, None),
        "it has no effect, but its file is kept"
    );
}

#[test]
fn no_limit_is_written_while_the_guard_is_refused() {
    let mut world = World::new(Some(90), None);
    let refusal = Some(Refusal::HoldsPid1);
    world.step(Input::Standing { guard: GUARD, refusal, asked: true });
    world.wait(30);
    assert_eq!(world.written.len(), 0);
    world.step(Input::Standing { guard: GUARD, refusal: None, asked: true });
    world.wait(30);
    assert_eq!(world.in_force, Limit::Tasks(90));
}

#[test]
fn a_step_uses_the_headroom_of_the_current_policy() {
    let mut world = World::new(Some(40), None);
    world.tasks = Some(300);
    // The plan waits for tasks to end.
    world.wait(25);
    assert_eq!(world.in_force, Limit::Tasks(320));
    world.step(Input::Policy(policy_with(Some(40), "clamp_headroom = 10\n")));
    world.wait(30);
    assert_eq!(world.in_force, Limit::Tasks(310));
}

#[test]
fn a_failure_is_retried_and_logged_once() {
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
    assert_eq!((world.wanted(), limits(&world)), (Some(90), Some(120)), "before the next check");
    world.wait(1);
    assert_eq!((world.wanted(), limits(&world)), (Some(120), Some(120)));
    // A request that a policy change has ended is not wanted, even while its file still exists.
    let stored = world.request;
    world.step(Input::Policy(policy(Some(80))));
    world.wait(1);
    world.request = stored;
    world.look();
    assert_eq!(limits(&world), Some(80));
}

#[test]
fn a_request_made_while_facts_are_read_is_written() {
    let mut world = World::new(Some(90), None);
    world.look();
    world.ask(60, PolicyThen::Said(Some(90)));
    world.answer();
    world.answer();
    assert_eq!(world.written, [Write::Docker { limit: 60 }]);
}

#[test]
fn a_limit_in_two_places_is_reached_with_the_second_write() {
    let mut world = World::new(Some(90), None);
    world.engine = of_old_podman;
    world.wait(5);
    assert_eq!(world.written, writes_of_old_podman(90));
    // If the second write fails, both are written again.
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
fn a_request_stays_if_the_owner_does_not_keep_its_limit() {
    for (engine, kept) in [(of_old_podman as fn(_) -> _, true), (|facts| facts, false)] {
        let mut world = World::new(None, None);
        world.engine = engine;
        world.ask(60, NO_POLICY);
        world.wait(30);
        assert_eq!((world.in_force, world.request.is_some()), (Limit::Tasks(60), kept));
    }
}

#[test]
fn a_limit_without_a_plan_is_logged_and_retried_with_growing_delays() {
    let mut world = World::new(Some(90), None);
    world.engine = of_old_docker;
    world.wait(90);
    assert!(world.written.is_empty());
    let refused = world.logged.iter().filter(|line| line.contains("API 1.39")).count();
    assert_eq!(refused, 5, "at once, and after 2, 5, 15 and 60 s: {:?}", world.logged);
    world.engine = |facts| facts;
    world.wait(60);
    assert_eq!(world.in_force, Limit::Tasks(90));
}

#[test]
fn tasks_that_cannot_be_counted_are_not_treated_as_zero() {
    let mut world = World::new(Some(90), None);
    world.tasks = None;
    world.wait(30);
    assert!(world.written.is_empty());
    world.tasks = Some(300);
    world.wait(60);
    assert_eq!(world.in_force, Limit::Tasks(320));
}

#[test]
fn at_most_one_request_waits_even_if_the_wanted_limit_changes() {
    let mut world = World::new(Some(90), None);
    world.look();
    world.step(Input::Policy(policy(Some(80))));
    for _ in 0..100 {
        world.look();
    }
    assert_eq!(world.waiting.len(), 1, "the first read of facts");
    world.answer();
    assert_eq!(world.waiting.len(), 1, "the write that follows");
    for _ in 0..100 {
        world.ask(70, PolicyThen::Said(Some(80)));
        world.look();
    }
    assert_eq!(world.waiting.len(), 1);
    world.wait(5);
    assert_eq!(world.in_force, Limit::Tasks(70));
}

#[test]
fn facts_of_a_former_guard_are_ignored() {
    let mut world = World::new(Some(90), None);
    world.look();
    world.begin_again();
    world.look();
    world.answer();
    assert!(matches!(world.waiting[..], [Asked::Facts(_)]), "it waits for its own facts");
    world.wait(1);
    assert_eq!(world.in_force, Limit::Tasks(90));
}

#[test]
fn a_write_for_a_former_guard_is_ignored() {
    let mut world = World::new(Some(90), None);
    world.engine = of_old_podman;
    world.look();
    world.answer();
    world.begin_again();
    world.look();
    // The new guard's facts arrive first.
    let stale = world.waiting.remove(0);
    world.answer();
    world.waiting.insert(0, stale);
    world.answer();
    assert!(matches!(world.waiting[..], [Asked::Write(..)]), "it waits for its own first write");
    world.wait(1);
    assert_eq!(world.written, writes_of_old_podman(90));
}

#[test]
fn a_limit_of_our_own_is_nobodys_brake() {
    // A step on the way down, and then the policy allows more.
    let mut world = World::new(Some(40), None);
    world.tasks = Some(300);
    world.wait(5);
    assert_eq!(world.in_force, Limit::Tasks(320));
    world.step(Input::Policy(policy(Some(1000))));
    world.wait(15);
    assert_eq!(world.in_force, Limit::Tasks(1000));
    // The request that asked for the step is removed, and the engine stores more.
    let mut world = World::new(None, Some(2000));
    world.tasks = Some(300);
    world.ask(40, NO_POLICY);
    world.wait(5);
    assert_eq!(world.in_force, Limit::Tasks(320));
    world.request = None;
    world.wait(15);
    assert_eq!(world.in_force, Limit::Tasks(2000));
    // A raised policy while the lower limit is being written.
    let mut world = World::new(Some(40), None);
    world.look();
    world.answer();
    world.step(Input::Policy(policy(Some(60))));
    world.wait(15);
    assert_eq!(world.in_force, Limit::Tasks(60));
}

#[test]
fn a_brake_below_the_requested_limit_does_not_end_the_request() {
    let mut world = World::new(None, Some(40));
    world.ask(40, NO_POLICY);
    world.in_force = Limit::Tasks(30);
    world.wait(10);
    assert!(world.request.is_some(), "the limit is not in force");
    world.in_force = Limit::Tasks(40);
    world.wait(2);
    assert_eq!(world.request, None);
}

#[test]
fn servers_that_have_ended_keep_no_room() {
    let mut world = World::new(Some(40), None);
    world.engine = with_five_servers;
    (world.in_force, world.tasks) = (Limit::Tasks(50), Some(30));
    world.wait(30);
    assert_eq!(world.in_force, Limit::Tasks(50), "each may still start a pool of threads");
    world.engine = |facts| facts;
    world.wait(75);
    assert_eq!(world.in_force, Limit::Tasks(40));
}

#[test]
fn a_clamp_waits_until_both_writes_of_a_limit_have_ended() {
    let mut world = World::new(Some(90), None);
    world.engine = of_old_podman;
    world.look();
    world.answer();
    for write in writes_of_old_podman(90) {
        assert!(matches!(&world.waiting[..], [Asked::Write(_, waiting)] if *waiting == write));
        world.leak();
        world.look_after(2);
        assert_eq!(world.clamp, None, "{write:?} is under way");
        world.answer();
    }
    world.look();
    world.settle_clamp(Outcome::Done);
    world.wait(30);
    assert_eq!((world.in_force, world.written.len()), (CLAMP, 2));
}

#[test]
fn no_limit_is_written_over_a_clamp_that_is_ordered() {
    let mut world = World::leaking(Some(90), None);
    world.wait(30);
    assert!(world.written.is_empty());
    world.settle_clamp(Outcome::Failed);
    world.wait(30);
    assert_eq!(world.in_force, Limit::Tasks(90));
}

#[test]
fn the_second_of_two_writes_is_not_made_against_a_rule() {
    let mut world = World::new(Some(90), None);
    world.engine = of_old_podman;
    world.look();
    world.answer();
    assert!(matches!(world.waiting[..], [Asked::Write(_, Write::PidsMax { .. })]));
    let refusal = Some(Refusal::HoldsPid1);
    world.step(Input::Standing { guard: GUARD, refusal, asked: true });
    world.answer();
    assert!(world.waiting.is_empty());
    world.step(Input::Standing { guard: GUARD, refusal: None, asked: true });
    world.wait(30);
    assert_eq!(world.in_force, Limit::Tasks(90));
}

/// Returns a world in which an engine that does not answer was asked for 90 a second ago.
fn hanging() -> World {
    let mut world = World::new(Some(90), None);
    world.hangs = true;
    world.wait(1);
    assert!(world.waiting.is_empty() && world.written.is_empty());
    world
}

#[test]
fn a_clamp_does_not_wait_for_an_engine_that_does_not_answer() {
    let mut world = hanging();
    world.leak();
    let began = world.now;
    while world.clamp.is_none() {
        world.look();
        assert!(world.now.since(began) <= Duration::from_secs(4), "a leak does not wait");
    }
    world.settle_clamp(Outcome::Done);
    world.wait(60);
    assert_eq!((world.in_force, world.disowned), (CLAMP, 0));
    // The engine makes the write now.
    world.recovers();
    assert_eq!(world.in_force, Limit::Tasks(90));
    world.look();
    assert!(world.clamp.is_some(), "it is clamped again at once");
    world.settle_clamp(Outcome::Done);
    world.wait(30);
    assert_eq!((world.in_force, world.disowned), (CLAMP, 1));
    world.thaw();
    world.wait(30);
    assert_eq!((world.in_force, world.stored), (Limit::Tasks(90), Some(90)));
    assert_eq!(world.left, [], "no reversion");
}

/// The write has failed long before, and it is made when nothing is clamped.
#[test]
fn a_late_write_of_ours_is_neither_a_brake_nor_a_reversion() {
    for (asked_for, wanted) in [(90, 120), (90, 80)] {
        let mut world = hanging();
        world.wait(40);
        world.step(Input::Policy(policy(Some(wanted))));
        world.hangs = false;
        world.wait(30);
        assert_eq!(world.in_force, Limit::Tasks(wanted));
        for _ in 0..2 {
            world.recovers();
            assert_ne!(world.in_force, Limit::Max);
        }
        assert!(world.written.contains(&Write::Docker { limit: asked_for }));
        world.wait(30);
        assert_eq!((world.in_force, &world.left[..]), (Limit::Tasks(wanted), &[][..]));
    }
}

/// Detector T looks every ten seconds. Here it asks for a clamp a second after a write began.
#[test]
fn a_clamp_for_a_growth_of_tasks_is_made_when_its_wait_ends() {
    let mut world = World::new(Some(9000), None);
    world.wait(12);
    world.tasks = Some(2000);
    world.wait(17);
    world.hangs = true;
    world.write(Limit::Max);
    world.wait(2);
    assert_eq!(world.clamp, None, "it waits for the write");
    world.wait(3);
    assert!(world.clamp.is_some(), "it does not wait for the next look");
}
