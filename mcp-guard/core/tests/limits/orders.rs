//! Two events meet in every order, at every stage of a repair. Whatever the order, in the end the winner
//! of the table is in force, nothing waits for ever, and no limit was written over a clamp.

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
    /// An operator thaws.
    Thaw,
    /// systemd or an engine writes over whatever is there.
    RawWrite,
    /// An operator asks for 60.
    Request,
    /// The policy says 80 from now on.
    PolicyChanges,
    /// An operator tells the engine 120.
    EngineUpdated,
    /// The next that are asked for, or are asked for now.
    FactsUnread,
    /// The next, or the one that is under way.
    WriteFails,
    TasksRise,
    /// A slot may have another guard by the time that an answer comes.
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

/// How far the repair of a limit has come.
#[derive(Clone, Copy, Debug)]
enum Stage {
    InForce,
    FactsAsked,
    WriteUnderWay,
}

/// A leak with a policy of 90, and a repair that has come so far.
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

/// The winner of the table.
fn winner(world: &World) -> Limit {
    if world.is_clamped() {
        return CLAMP;
    }
    // A request of a policy that has changed since is over; one that is not is still there.
    let policy = world.core.guard(GUARD).and_then(|guard| guard.terms.pids_limit);
    let wanted = world.request.map(|request| request.limit).or(policy).expect("a policy");
    Limit::Tasks(wanted)
}

fn meet(stage: Stage, first: Event, second: Event, seconds: u64) {
    let mut world = at(stage);
    happens(&mut world, first);
    // Together, or one look apart.
    if seconds > 0 {
        world.look();
    }
    happens(&mut world, second);
    // A clamp that is made later is another story.
    world.settle_clamp(Outcome::NotOurs);
    for _ in 0..180 {
        world.look();
        while !world.waiting.is_empty() {
            world.answer();
        }
        world.settle_clamp(Outcome::NotOurs);
    }
    let story = format!("{stage:?}: {first:?}, {second:?}, {seconds} s apart");
    // What runs there is not broken: the limit waits above 70 tasks.
    let waits = world.tasks == Some(70) && winner(&world) < Limit::Tasks(75) && !world.is_clamped();
    if waits {
        assert!(world.in_force < Limit::Max && world.in_force >= Limit::Tasks(75), "{story}");
    } else {
        assert_eq!(world.in_force, winner(&world), "{story}");
    }
    // A request is never lost but to a policy that changed after it, or with its container.
    let asked = [first, second].contains(&Event::Request);
    let over = [Event::PolicyChanges, Event::AnotherGuard].contains(&second);
    let is_over = first == Event::Request && over;
    assert_eq!(world.request.is_some(), asked && !is_over, "{story}");
}

#[test]
fn in_every_order_the_winner_is_in_force() {
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
