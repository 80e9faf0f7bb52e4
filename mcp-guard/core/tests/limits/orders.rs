//! Two events meet in every order, at every stage of a repair. In each case the table's winner is in force in
//! the end, no request waits for ever, and no limit is written over a clamp.

use mcp_guard_core::{
    effect::{Input, PolicyThen},
    incident::Outcome,
    limit::Limit,
};

use super::world::{CLAMP, GUARD, World, policy};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    ClampDone,
    ClampFails,
    /// An operator removes the clamp with a thaw.
    Thaw,
    /// systemd or an engine overwrites the limit.
    RawWrite,
    /// An operator asks for 60.
    Request,
    /// The policy's limit becomes 80.
    PolicyChanges,
    /// An operator updates the limit to 120 through the engine.
    EngineUpdated,
    /// The next read of facts fails, or the one under way.
    FactsUnread,
    /// The next write fails, or the one under way.
    WriteFails,
    TasksRise,
    /// The slot has another guard by the time an answer comes.
    AnotherGuard,
}

const EVENTS: [Event; 11] = [
    Event::ClampDone,
    Event::ClampFails,
    Event::Thaw,
    Event::RawWrite,
    Event::Request,
    Event::PolicyChanges,
    Event::EngineUpdated,
    Event::FactsUnread,
    Event::WriteFails,
    Event::TasksRise,
    Event::AnotherGuard,
];

/// The stages of a repair.
#[derive(Clone, Copy, Debug)]
enum Stage {
    InForce,
    FactsAsked,
    WriteUnderWay,
}

/// Returns a leak under a policy with a limit of 90, and with a repair at this stage.
fn at(stage: Stage) -> World {
    let mut world = World::leaking(Some(90), None);
    match stage {
        Stage::InForce => world.wait(5),
        Stage::FactsAsked => world.look(),
        Stage::WriteUnderWay => {
            world.look();
            world.answer();
        }
    }
    let expected = usize::from(!matches!(stage, Stage::InForce));
    assert_eq!(world.waiting.len(), expected, "{stage:?}");
    world
}

fn happens(world: &mut World, event: Event) {
    match event {
        Event::ClampDone => world.settle_clamp(Outcome::Done),
        Event::ClampFails => world.settle_clamp(Outcome::Failed),
        Event::Thaw => world.thaw(),
        Event::RawWrite => world.in_force = Limit::Max,
        Event::Request => {
            let policy = world.core.guard(GUARD).and_then(|guard| guard.terms.pids_limit);
            world.ask(60, PolicyThen::Said(policy));
        }
        Event::PolicyChanges => world.step(Input::Policy(policy(Some(80)))),
        Event::EngineUpdated => {
            (world.stored, world.in_force) = (Some(120), Limit::Tasks(120));
            world.step(Input::Declared { guard: GUARD, limit: Some(120) });
        }
        Event::FactsUnread => world.next_unread = true,
        Event::WriteFails => world.next_refused = true,
        Event::TasksRise => world.tasks = Some(70),
        Event::AnotherGuard => world.begin_again(),
    }
}

/// Returns the limit that wins according to the table.
fn winner(world: &World) -> Limit {
    if world.is_clamped() {
        return CLAMP;
    }
    // A request ends when the policy changes, so one that still exists wins.
    let policy = world.core.guard(GUARD).and_then(|guard| guard.terms.pids_limit);
    let wanted = world.request.map(|request| request.limit).or(policy).expect("a policy");
    Limit::Tasks(wanted)
}

fn meet(stage: Stage, first: Event, second: Event, seconds: u64) {
    let mut world = at(stage);
    happens(&mut world, first);
    // At the same time, or with one check of the limit between them.
    if seconds > 0 {
        world.look();
    }
    happens(&mut world, second);
    // Later clamps are outside this test, so none takes effect.
    world.settle_clamp(Outcome::NotOurs);
    for _ in 0..180 {
        world.look();
        while !world.waiting.is_empty() {
            world.answer();
        }
        world.settle_clamp(Outcome::NotOurs);
    }
    let story = format!("{stage:?}: {first:?}, {second:?}, {seconds} s apart");
    // Running tasks are not broken, so the limit stays above 70 tasks.
    let waits = world.tasks == Some(70) && winner(&world) < Limit::Tasks(75) && !world.is_clamped();
    if waits {
        assert!(world.in_force < Limit::Max && world.in_force >= Limit::Tasks(75), "{story}");
    } else {
        assert_eq!(world.in_force, winner(&world), "{story}");
    }
    // A request is lost only if the policy changed after it, or with its container.
    let asked = [first, second].contains(&Event::Request);
    let over = [Event::PolicyChanges, Event::AnotherGuard].contains(&second);
    let is_over = first == Event::Request && over;
    assert_eq!(world.request.is_some(), asked && !is_over, "{story}");
}

#[test]
fn the_winner_is_in_force_after_every_order_of_events() {
    for stage in [Stage::InForce, Stage::FactsAsked, Stage::WriteUnderWay] {
        for first in EVENTS {
            for second in EVENTS.into_iter().filter(|second| *second != first) {
                for seconds in [0, 1] {
                    meet(stage, first, second, seconds);
                }
            }
        }
    }
}
