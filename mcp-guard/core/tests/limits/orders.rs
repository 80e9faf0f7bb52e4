//! Two events meet in every order, at every stage of a repair, with a policy that names a limit and with one
//! that leaves it to the engine. In each case the table's winner is in force in the end, and no request waits
//! for ever. [`World`] panics if a limit is written over a clamp, a brake or a freeze, or against a rule.

use mcp_guard_core::{
    effect::{Input, PolicyThen},
    incident::Outcome,
    limit::Limit,
    policy::Mode,
    refusal::Refusal,
};

use super::world::{BRAKE, CLAMP, GUARD, World, observing_policy, policy};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    ClampDone,
    ClampFails,
    /// The detector asks no longer, so that a clamp ends with its lease.
    LeakEnds,
    /// An operator ends every hold.
    Thaw,
    /// An operator freezes for a minute.
    FreezeBegins,
    /// Another program ends the freeze.
    ThawedByOther,
    RefusalBegins,
    RefusalEnds,
    /// systemd or an engine overwrites the limit.
    RawWrite,
    /// Another program sets a lower limit than any that is wanted.
    BrakeIsSet,
    /// An operator asks for 60.
    Request,
    /// An operator removes the file of the request.
    RequestRemoved,
    /// The policy's limit becomes 80.
    PolicyChanges,
    /// The policy names no limit any more.
    PolicyHasNoLimit,
    /// The policy of the start, in observe mode.
    Observe,
    /// The policy of the start.
    Enforce,
    /// An operator updates the limit to 120 through the engine.
    EngineUpdated,
    /// The next read of facts fails, or the one under way.
    FactsUnread,
    /// The next write fails, or the one under way.
    WriteFails,
    TasksRise,
    /// The host wakes from a suspend.
    Woke,
    /// The slot has another guard by the time an answer comes.
    AnotherGuard,
}

const EVENTS: [Event; 22] = [
    Event::ClampDone,
    Event::ClampFails,
    Event::LeakEnds,
    Event::Thaw,
    Event::FreezeBegins,
    Event::ThawedByOther,
    Event::RefusalBegins,
    Event::RefusalEnds,
    Event::RawWrite,
    Event::BrakeIsSet,
    Event::Request,
    Event::RequestRemoved,
    Event::PolicyChanges,
    Event::PolicyHasNoLimit,
    Event::Observe,
    Event::Enforce,
    Event::EngineUpdated,
    Event::FactsUnread,
    Event::WriteFails,
    Event::TasksRise,
    Event::Woke,
    Event::AnotherGuard,
];

/// The stages of a repair.
#[derive(Clone, Copy, Debug)]
enum Stage {
    InForce,
    FactsAsked,
    WriteUnderWay,
    /// Too many tasks run for the next step.
    StepWaits,
    /// It was undone three times.
    LeftAlone,
    /// Our clamp is in force.
    Clamped,
}

const STAGES: [Stage; 6] = [
    Stage::InForce,
    Stage::FactsAsked,
    Stage::WriteUnderWay,
    Stage::StepWaits,
    Stage::LeftAlone,
    Stage::Clamped,
];

/// The source of the limit of 90 at the start.
#[derive(Clone, Copy, Debug)]
enum Source {
    Policy,
    Engine,
}

impl Source {
    fn policy(self) -> Option<u64> {
        match self {
            Self::Policy => Some(90),
            Self::Engine => None,
        }
    }

    /// Returns a leak whose limit of 90 is not in force.
    fn world(self) -> World {
        let mut world = match self {
            Self::Policy => World::leaking(Some(90), None),
            Self::Engine => World::leaking(None, Some(90)),
        };
        world.write(Limit::Max);
        world
    }

    /// Returns the world with a repair at this stage.
    fn at(self, stage: Stage) -> World {
        let mut world = self.world();
        match stage {
            Stage::InForce => world.wait(5),
            Stage::FactsAsked => world.look(),
            Stage::WriteUnderWay => {
                world.look();
                world.answer();
            }
            Stage::StepWaits => {
                world.tasks = Some(150);
                world.wait(15);
                assert_eq!(world.in_force, Limit::Tasks(170));
            }
            Stage::LeftAlone => {
                world.wait(5);
                for _ in 0..3 {
                    world.write(Limit::Tasks(500));
                    world.wait(20);
                }
                assert!(is_left(&world));
            }
            Stage::Clamped => {
                world.wait(5);
                world.settle_clamp(Outcome::Done);
            }
        }
        let expected = usize::from(matches!(stage, Stage::FactsAsked | Stage::WriteUnderWay));
        assert_eq!(world.waiting.len(), expected, "{stage:?}");
        world
    }

    fn happens(self, world: &mut World, event: Event) {
        match event {
            Event::ClampDone => world.settle_clamp(Outcome::Done),
            Event::ClampFails => world.settle_clamp(Outcome::Failed),
            Event::LeakEnds => world.leak_ends(),
            Event::Thaw => world.thaw(),
            Event::FreezeBegins => world.freeze_slowly(),
            Event::ThawedByOther => world.step(Input::ThawedByOther { guard: GUARD }),
            Event::RefusalBegins => {
                let refusal = Some(Refusal::HoldsPid1);
                world.step(Input::Standing { guard: GUARD, refusal, asked: true });
            }
            Event::RefusalEnds => {
                world.step(Input::Standing { guard: GUARD, refusal: None, asked: true })
            }
            Event::RawWrite => world.write(Limit::Max),
            Event::BrakeIsSet => world.write(BRAKE),
            Event::Request => {
                let policy = world.core.guard(GUARD).and_then(|guard| guard.terms.pids_limit);
                world.ask(60, PolicyThen::Said(policy));
            }
            Event::RequestRemoved => world.request = None,
            Event::PolicyChanges => world.step(Input::Policy(policy(Some(80)))),
            Event::PolicyHasNoLimit => world.step(Input::Policy(policy(None))),
            Event::Observe => world.step(Input::Policy(observing_policy(self.policy()))),
            Event::Enforce => world.step(Input::Policy(policy(self.policy()))),
            Event::EngineUpdated => {
                world.stored = Some(120);
                world.write(Limit::Tasks(120));
                world.step(Input::Declared { guard: GUARD, limit: Some(120) });
            }
            Event::FactsUnread => world.next_unread = true,
            Event::WriteFails => world.next_refused = true,
            Event::TasksRise => world.tasks = Some(70),
            Event::Woke => world.step(Input::Woke),
            Event::AnotherGuard => world.begin_again(),
        }
    }
}

fn is_left(world: &World) -> bool {
    world.core.guard(GUARD).is_some_and(|guard| guard.limits.is_left())
}

/// Returns the limit that is wanted according to the table.
fn wanted(world: &World) -> Option<u64> {
    // A request ends when the policy changes, so one that still exists wins.
    let policy = world.core.guard(GUARD).and_then(|guard| guard.terms.pids_limit);
    world.request.map(|request| request.limit).or(policy).or(world.stored)
}

/// Checks what is in force in the end.
fn check(world: &World, story: &str) {
    let guard = world.core.guard(GUARD).expect("guarded");
    if world.is_clamped() {
        return assert_eq!(world.in_force, CLAMP, "{story}: the clamp");
    }
    let is_enforced = guard.terms.mode == Mode::Enforce && guard.refusal.is_none();
    let Some(wanted) = wanted(world).filter(|_| is_enforced) else { return };
    if world.braked {
        assert_eq!(world.in_force, BRAKE, "{story}: the brake");
    } else if is_left(world) {
        assert_eq!(world.in_force, world.others, "{story}: left alone");
    } else if world.tasks.is_some_and(|tasks| wanted < tasks + 5) {
        // We do not break running tasks, so the limit stays above them, or where another program set it.
        let least = Limit::Tasks(world.tasks.unwrap_or_default() + 5).min(world.others);
        assert!((least..Limit::Max).contains(&world.in_force), "{story}: {:?}", world.in_force);
    } else {
        assert_eq!(world.in_force, Limit::Tasks(wanted), "{story}: the wanted limit");
    }
}

fn meet(
    mut world: World,
    (source, stage): (Source, Stage),
    (first, second): (Event, Event),
    seconds: u64,
) {
    source.happens(&mut world, first);
    // At the same time, or with one check of the limit between them.
    if seconds > 0 {
        world.look();
    }
    source.happens(&mut world, second);
    // Later clamps are outside this test, so none takes effect.
    world.settle_clamp(Outcome::NotOurs);
    for _ in 0..30 {
        world.look_after(8);
        while !world.waiting.is_empty() {
            world.answer();
        }
        world.settle_clamp(Outcome::NotOurs);
    }
    let story = format!("{source:?}, {stage:?}: {first:?}, {second:?}, {seconds} s apart");
    check(&world, &story);
    // Without a limit of the policy, a request ends when the engine stores the number. During a clamp, no
    // request is looked at.
    let policy = world.core.guard(GUARD).and_then(|guard| guard.terms.pids_limit);
    if matches!(source, Source::Policy) && policy.is_some() && !world.is_clamped() {
        let ends = [Event::RequestRemoved, Event::PolicyChanges, Event::AnotherGuard];
        let is_asked =
            second == Event::Request || (first == Event::Request && !ends.contains(&second));
        assert_eq!(world.request.is_some(), is_asked, "{story}: the request");
    }
}

fn all_meet(source: Source) {
    for stage in STAGES {
        let world = source.at(stage);
        for first in EVENTS {
            for second in EVENTS {
                for seconds in [0, 1] {
                    meet(world.clone(), (source, stage), (first, second), seconds);
                }
            }
        }
    }
}

#[test]
fn the_winner_is_in_force_after_every_order_of_events_if_the_policy_names_a_limit() {
    all_meet(Source::Policy);
}

#[test]
fn the_winner_is_in_force_after_every_order_of_events_if_only_the_engine_names_a_limit() {
    all_meet(Source::Engine);
}
