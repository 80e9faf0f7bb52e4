//! Two events meet in every order while `mcp-guard repair` runs, with and without an agent. In each case it
//! ends: either the limit is in force, or the reason is one of the events.

use mcp_guard_core::{effect::LimitRequest, limit::Limit, limits::Ended};

use super::Repair;

const WANTED: Limit = Limit::Tasks(40);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    AgentComes,
    AgentGoes,
    LaterRequest,
    RequestRemoved,
    /// Another program sets a lower limit.
    BrakeIsSet,
    /// systemd or an engine overwrites the limit.
    RawWrite,
    /// The next write is refused.
    WriteFails,
    /// From now on, no facts can be read.
    FactsUnread,
    TasksEnd,
    Clamped,
}

const EVENTS: [Event; 10] = [
    Event::AgentComes,
    Event::AgentGoes,
    Event::LaterRequest,
    Event::RequestRemoved,
    Event::BrakeIsSet,
    Event::RawWrite,
    Event::WriteFails,
    Event::FactsUnread,
    Event::TasksEnd,
    Event::Clamped,
];

#[derive(Clone, Copy, Debug)]
enum Stage {
    /// Nothing was read yet.
    Begins,
    /// Too many tasks run for the next step.
    StepWaits,
    /// An agent lowers the limit.
    Follows,
}

fn at(stage: Stage) -> Repair {
    let mut repair = Repair::to(40, false);
    repair.seen.tasks = Some(300);
    match stage {
        Stage::Begins => {}
        Stage::StepWaits => {
            repair.wait(1);
            assert_eq!(repair.limits.step(), Some(320));
        }
        Stage::Follows => {
            repair.seen.agent_goes_on = true;
            repair.wait(2);
            assert!(repair.limits.follows());
        }
    }
    repair
}

fn happens(repair: &mut Repair, event: Event) {
    let seen = &mut repair.seen;
    match event {
        Event::AgentComes => seen.agent_goes_on = true,
        Event::AgentGoes => seen.agent_goes_on = false,
        Event::LaterRequest => {
            let later = |one: LimitRequest| LimitRequest { limit: 50, at: one.at * 2, ..one };
            seen.request = seen.request.map(later);
        }
        Event::RequestRemoved => seen.request = None,
        Event::BrakeIsSet => seen.in_force = Limit::Tasks(20),
        Event::RawWrite => seen.in_force = Limit::Max,
        Event::WriteFails => repair.refuse_from(0),
        Event::FactsUnread => repair.unread = true,
        Event::TasksEnd => seen.tasks = Some(10),
        Event::Clamped => seen.clamped = true,
    }
}

/// One second passes, in which an agent lowers the limit as far as the tasks allow.
fn second(repair: &mut Repair) {
    let (before, in_force) = (repair.written.len(), repair.seen.in_force);
    repair.wait(1);
    let tasks = repair.seen.tasks.unwrap_or_default();
    if let [.., last] = &repair.written[before..] {
        let raises = Limit::Tasks(last.limit()) > in_force;
        assert!(raises || last.limit() > tasks, "running tasks are not broken");
    }
    if repair.seen.agent_goes_on && !repair.seen.clamped {
        let step = Limit::Tasks(tasks + 20).max(WANTED);
        repair.seen.in_force = repair.seen.in_force.min(step);
    }
}

/// Returns a part of the message of a repair that this event has ended.
fn reason(event: Event) -> Option<&'static str> {
    match event {
        Event::Clamped => Some("clamped"),
        Event::LaterRequest => Some("another repair"),
        Event::RequestRemoved => Some("is gone"),
        Event::FactsUnread => Some("late"),
        Event::WriteFails => Some("refused"),
        Event::AgentComes
        | Event::AgentGoes
        | Event::BrakeIsSet
        | Event::RawWrite
        | Event::TasksEnd => None,
    }
}

fn meet(stage: Stage, events: [Event; 2], seconds: u64) {
    let story = format!("{stage:?}: {events:?}, {seconds} s apart");
    let mut repair = at(stage);
    happens(&mut repair, events[0]);
    (0..seconds).for_each(|_| second(&mut repair));
    let was_over = repair.limits.ended().is_some();
    happens(&mut repair, events[1]);
    (0..60).for_each(|_| second(&mut repair));
    repair.seen.tasks = Some(10);
    (0..60).for_each(|_| second(&mut repair));
    let reasons: Vec<_> = events.into_iter().filter_map(reason).collect();
    match repair.limits.ended() {
        Some(Ended::Reached) if was_over => {}
        Some(Ended::Reached) => {
            assert_eq!(repair.seen.in_force, WANTED, "{story}");
            assert!(!events.contains(&Event::Clamped), "{story}");
        }
        Some(Ended::Failed(why)) => {
            assert!(reasons.iter().any(|reason| why.contains(reason)), "{story}: {why}");
        }
        None => panic!("{story}: it has not ended"),
    }
}

#[test]
fn a_repair_ends_after_every_order_of_events() {
    for stage in [Stage::Begins, Stage::StepWaits, Stage::Follows] {
        for first in EVENTS {
            for second in EVENTS {
                for seconds in [0, 1, 12] {
                    meet(stage, [first, second], seconds);
                }
            }
        }
    }
}
