//! Two events meet in every order, at every stage of a repair, with a policy that names a limit and with one
//! that leaves it to the engine. In each case the table's winner is in force in the end, and no request waits
//! for ever. [`World`] panics if a limit is ordered over a clamp, a brake or a freeze, or against a rule, and if a
//! brake is overwritten.

use mcp_guard_core::{
    effect::{Input, PolicyThen},
    incident::Outcome,
    limit::Limit,
    refusal::Refusal,
};

use super::world::{BRAKE, CLAMP, GUARD, World, observing_policy, policy};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// A detector asks for a clamp, which is made once no limit is being written.
    ClampDone,
    /// A detector asks for a clamp, which fails.
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
    /// The owner answers no more.
    OwnerHangs,
    /// The owner makes the writes that it was asked for, and answers again.
    OwnerRecovers,
    TasksRise,
    /// The host wakes from a suspend.
    Woke,
    /// The slot has another guard by the time an answer comes.
    AnotherGuard,
}

const EVENTS: [Event; 24] = [
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
    Event::OwnerHangs,
    Event::OwnerRecovers,
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
    /// An owner that does not answer was asked for a write.
    OwnerHangs,
    /// A clamp is in force that did not wait for such an owner.
    ClampedMeanwhile,
    /// Too many tasks run for the next step.
    StepWaits,
    /// It was undone twice, and is in force again.
    UndoneTwice,
    /// It was undone three times.
    LeftAlone,
    /// Our clamp is in force.
    Clamped,
}

const STAGES: [Stage; 9] = [
    Stage::InForce,
    Stage::FactsAsked,
    Stage::WriteUnderWay,
    Stage::OwnerHangs,
    Stage::ClampedMeanwhile,
    Stage::StepWaits,
    Stage::UndoneTwice,
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

    /// Returns a world whose limit of 90 is not in force.
    fn world(self) -> World {
        let mut world = match self {
            Self::Policy => World::new(Some(90), None),
            Self::Engine => World::new(None, Some(90)),
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
            Stage::OwnerHangs | Stage::ClampedMeanwhile => {
                world.hangs = true;
                world.wait(2);
                if matches!(stage, Stage::ClampedMeanwhile) {
                    clamp(&mut world, Outcome::Done);
                    assert!(world.is_clamped());
                }
            }
            Stage::StepWaits => {
                world.tasks = Some(150);
                world.wait(15);
                assert_eq!(world.in_force, Limit::Tasks(170));
            }
            Stage::UndoneTwice | Stage::LeftAlone => {
                world.wait(5);
                let times = if matches!(stage, Stage::LeftAlone) { 3 } else { 2 };
                for _ in 0..times {
                    world.write(Limit::Tasks(500));
                    world.wait(20);
                }
                assert_eq!(is_left(&world), matches!(stage, Stage::LeftAlone));
            }
            Stage::Clamped => {
                world.wait(5);
                world.leak();
                world.settle_clamp(Outcome::Done);
                assert!(world.is_clamped());
            }
        }
        let expected = usize::from(matches!(stage, Stage::FactsAsked | Stage::WriteUnderWay));
        assert_eq!(world.waiting.len(), expected, "{stage:?}");
        world
    }

    fn happens(self, world: &mut World, event: Event) {
        match event {
            Event::ClampDone => clamp(world, Outcome::Done),
            Event::ClampFails => clamp(world, Outcome::Failed),
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
            Event::OwnerHangs => world.hangs = true,
            Event::OwnerRecovers => world.recovers(),
            Event::TasksRise => world.tasks = Some(70),
            Event::Woke => world.step(Input::Woke),
            Event::AnotherGuard => world.begin_again(),
        }
    }
}

/// A detector asks for a clamp. If a limit is being written, the clamp follows when that has ended, and after
/// three seconds at the latest.
fn clamp(world: &mut World, outcome: Outcome) {
    world.leak();
    if world.clamp.is_none() {
        world.wait(4);
    }
    world.settle_clamp(outcome);
}

fn is_left(world: &World) -> bool {
    world.core.guard(GUARD).is_some_and(|guard| guard.limits.is_left())
}

/// Two events, at the same time or with one check of the limit between them.
#[derive(Clone, Copy, Debug)]
struct Meeting {
    source: Source,
    stage: Stage,
    first: Event,
    second: Event,
    seconds: u64,
}

impl Meeting {
    /// Returns the state of the world four minutes later. Later clamps are outside this test, and an owner that
    /// hangs answers again after a while.
    fn end(self, mut world: World) -> World {
        self.source.happens(&mut world, self.first);
        if self.seconds > 0 {
            world.look();
            world.settle_owed_clamp();
        }
        self.source.happens(&mut world, self.second);
        world.settle_later_clamp();
        for round in 0..30 {
            if round == 10 {
                world.recovers();
            }
            world.look_after(8);
            while !world.waiting.is_empty() {
                world.answer();
            }
            world.settle_later_clamp();
        }
        world
    }

    /// Returns what holds at the end if `begins` begins it, and one of `ends` ends it. `at_first`: it holds
    /// before the first event.
    fn lasts(self, at_first: bool, begins: Event, ends: &[Event]) -> bool {
        [self.first, self.second]
            .into_iter()
            .fold(at_first, |holds, event| (holds || event == begins) && !ends.contains(&event))
    }

    fn is_clamped(self) -> bool {
        let was_clamped = matches!(self.stage, Stage::Clamped | Stage::ClampedMeanwhile);
        let overwrites = [Event::RawWrite, Event::BrakeIsSet, Event::EngineUpdated];
        match (self.first, self.second) {
            // The clamp that is asked for second is forbidden, is there already, or waits for the cool-down.
            (Event::RefusalBegins | Event::Observe | Event::ClampFails, Event::ClampDone) => {
                was_clamped
            }
            (Event::Thaw, Event::ClampDone) => false,
            // The repeated clamp fails.
            (Event::OwnerRecovers, Event::ClampFails)
                if matches!(self.stage, Stage::ClampedMeanwhile) && self.seconds == 0 =>
            {
                false
            }
            // Only the late write is seen.
            (first, Event::OwnerRecovers)
                if matches!(self.stage, Stage::ClampedMeanwhile)
                    && overwrites.contains(&first)
                    && self.seconds == 0 =>
            {
                true
            }
            (first, Event::ClampDone) if was_clamped && overwrites.contains(&first) => false,
            // A leak that is back before the lease is over keeps the clamp.
            (Event::LeakEnds, Event::ClampFails) => was_clamped,
            _ => {
                let ends = [Event::LeakEnds, Event::Thaw, Event::AnotherGuard];
                self.lasts(was_clamped, Event::ClampDone, &[&ends[..], &overwrites].concat())
            }
        }
    }

    /// Returns the policy's limit in the end.
    fn policy(self) -> Option<u64> {
        [self.first, self.second].into_iter().fold(self.source.policy(), |limit, event| match event
        {
            Event::PolicyChanges => Some(80),
            Event::PolicyHasNoLimit => None,
            Event::Observe | Event::Enforce => self.source.policy(),
            Event::ClampDone
            | Event::ClampFails
            | Event::LeakEnds
            | Event::Thaw
            | Event::FreezeBegins
            | Event::ThawedByOther
            | Event::RefusalBegins
            | Event::RefusalEnds
            | Event::RawWrite
            | Event::BrakeIsSet
            | Event::Request
            | Event::RequestRemoved
            | Event::EngineUpdated
            | Event::FactsUnread
            | Event::WriteFails
            | Event::OwnerHangs
            | Event::OwnerRecovers
            | Event::TasksRise
            | Event::Woke
            | Event::AnotherGuard => limit,
        })
    }

    /// Whether the operator's request is not ended by anything but the engine that stores its number.
    fn is_requested(self) -> bool {
        let is_other_number = match (self.first, self.source) {
            (Event::Request, Source::Policy) => self.policy() != Some(90),
            (Event::Request, Source::Engine) => self.policy().is_some(),
            _ => false,
        };
        let ends = [Event::RequestRemoved, Event::AnotherGuard];
        self.lasts(false, Event::Request, &ends) && !is_other_number
    }

    /// Checks what is in force in the end, as the table says.
    fn check(self, world: &World) {
        let in_force = world.in_force;
        let forbids = [Event::RefusalBegins, Event::Observe];
        let is_forbidden = [self.first, self.second].iter().any(|event| forbids.contains(event));
        assert!(!world.lost_clamp || is_forbidden, "{self:?}: a late write ended the clamp");
        if self.is_clamped() && !world.lost_clamp {
            return assert_eq!(in_force, CLAMP, "{self:?}: the clamp");
        }
        assert!(!world.is_clamped(), "{self:?}");
        let is_refused =
            self.lasts(false, Event::RefusalBegins, &[Event::RefusalEnds, Event::AnotherGuard]);
        let observes = self.lasts(
            false,
            Event::Observe,
            &[Event::Enforce, Event::PolicyChanges, Event::PolicyHasNoLimit],
        );
        if is_refused || observes {
            return;
        }
        let may_be_left = matches!(self.stage, Stage::UndoneTwice | Stage::LeftAlone);
        assert!(may_be_left || !is_left(world), "{self:?}: left alone");
        let is_asked = self.is_requested();
        let asked = is_asked.then_some(60);
        let Some(wanted) = asked.or(self.policy()).or(world.stored) else { return };
        if world.braked {
            assert_eq!(in_force, BRAKE, "{self:?}: the brake");
        } else if is_left(world) {
            assert_eq!(in_force, world.others, "{self:?}: left alone");
        } else if world.tasks.is_some_and(|tasks| wanted < tasks + 5) {
            // We do not break running tasks, so the limit stays above them, or where another program set it.
            let least = Limit::Tasks(world.tasks.unwrap_or_default() + 5).min(world.others);
            assert!((least..Limit::Max).contains(&in_force), "{self:?}: {in_force:?}");
        } else {
            assert_eq!(in_force, Limit::Tasks(wanted), "{self:?}: the wanted limit");
        }
        // Without a limit of the policy, a request ends when the engine stores the number.
        if self.policy().is_some() {
            assert_eq!(world.request.is_some(), is_asked, "{self:?}: the request");
        }
    }
}

fn all_meet(source: Source) {
    for stage in STAGES {
        let world = source.at(stage);
        for first in EVENTS {
            for second in EVENTS {
                for seconds in [0, 1] {
                    let meeting = Meeting { source, stage, first, second, seconds };
                    meeting.check(&meeting.end(world.clone()));
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
