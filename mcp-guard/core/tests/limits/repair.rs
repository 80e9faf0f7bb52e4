//! Limits as `mcp-guard repair` drives them.

mod orders;

use std::time::Duration;

use mcp_guard_core::{
    Time,
    diagnose::facts::Facts,
    effect::{Action, Effect, LimitRequest, Order, Outbox, PolicyThen, SeenLimit, Settled},
    id::{Ticket, Tickets},
    incident::Outcome,
    limit::Limit,
    limits::{Ended, Limits, Rules, requests::LeftRequest},
    policy::Mode,
    repair::Write,
};

use super::world::{
    GUARD, facts, of_old_docker, of_old_podman, with_five_servers, writes_of_old_podman,
};

struct Repair {
    limits: Limits,
    rules: Rules,
    now: Time,
    tickets: Tickets,
    seen: SeenLimit,
    stored: Option<u64>,
    unread: bool,
    engine: fn(Facts) -> Facts,
    /// The number of writes that succeed before one is refused.
    refused_after: Option<usize>,
    written: Vec<Write>,
    left: Vec<Outcome>,
}

impl Repair {
    fn to(limit: u64, force: bool) -> Self {
        let at = Duration::from_secs(1);
        let request = Some(LimitRequest { limit, at, policy: PolicyThen::Unknown });
        let mut limits = Limits::once(GUARD, limit, force);
        limits.request_stored(at);
        Self {
            limits,
            rules: Rules { mode: Mode::Enforce, policy: None, headroom: 20 },
            now: Time(0),
            tickets: Tickets::default(),
            seen: SeenLimit {
                in_force: Limit::Max,
                tasks: Some(10),
                request,
                agent_goes_on: false,
                clamped: false,
            },
            stored: None,
            unread: false,
            engine: |facts| facts,
            refused_after: None,
            written: Vec::new(),
            left: Vec::new(),
        }
    }

    fn wait(&mut self, seconds: u64) {
        for _ in 0..seconds {
            if self.limits.ended().is_some() {
                return;
            }
            let mut effects = Vec::new();
            let mut out = Outbox { tickets: &mut self.tickets, effects: &mut effects };
            self.limits.look(self.now, &self.rules, &self.seen, &mut out);
            self.carry_out(effects);
            self.now = self.now.after(Duration::from_secs(1));
        }
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::ReadFacts { ticket, .. } => {
                    let facts: Result<Box<Facts>, String> = match self.unread {
                        true => Err("late".to_owned()),
                        false => {
                            Ok(Box::new((self.engine)(facts(self.stored, self.seen.in_force))))
                        }
                    };
                    let mut effects = Vec::new();
                    let mut out = Outbox { tickets: &mut self.tickets, effects: &mut effects };
                    let seen = self.seen;
                    self.limits.facts(
                        self.now,
                        &self.rules,
                        (ticket, facts),
                        Some(&seen),
                        &mut out,
                    );
                    self.carry_out(effects);
                }
                Effect::Act(Order { ticket, action: Action::WriteLimit { write, .. }, .. }) => {
                    assert!(!self.seen.clamped, "no limit is written over a clamp");
                    if self.is_refused() {
                        self.settle(ticket, Outcome::Failed);
                        continue;
                    }
                    if !matches!(write, Write::TasksMax { .. }) {
                        self.seen.in_force = Limit::Tasks(write.limit());
                    }
                    self.written.push(write);
                    self.settle(ticket, Outcome::Done);
                }
                Effect::Act(Order { action: Action::LeaveLimit { outcome, .. }, .. }) => {
                    self.left.push(outcome);
                }
                Effect::Act(_)
                | Effect::Rescan { .. }
                | Effect::WarnOfHerd(_)
                | Effect::ReadStdio { .. }
                | Effect::ReadDenials { .. }
                | Effect::ForgetRequest { .. }
                | Effect::Unguard { .. }
                | Effect::Log { .. } => {}
            }
        }
    }

    /// Lets this number of writes succeed, and refuses the one that follows.
    fn refuse_from(&mut self, writes: usize) {
        self.refused_after = Some(writes);
    }

    fn is_refused(&mut self) -> bool {
        match self.refused_after {
            Some(0) => self.refused_after.take().is_some(),
            Some(left) => {
                self.refused_after = Some(left - 1);
                false
            }
            None => false,
        }
    }

    fn settle(&mut self, ticket: Ticket, outcome: Outcome) {
        let detail = if outcome == Outcome::Done { "" } else { "refused by the owner" }.to_owned();
        let settled = Settled { ticket, guard: GUARD, outcome, detail, remark: None };
        let mut effects = Vec::new();
        let mut out = Outbox { tickets: &mut self.tickets, effects: &mut effects };
        self.limits.settled(self.now, &settled, &mut out);
        self.carry_out(effects);
    }
}

#[test]
fn the_owner_writes_the_limit_even_if_it_or_a_lower_one_is_in_force() {
    for in_force in [Limit::Max, Limit::Tasks(40), Limit::Tasks(20)] {
        let mut repair = Repair::to(40, false);
        repair.seen.in_force = in_force;
        repair.wait(1);
        assert_eq!(repair.written, [Write::Docker { limit: 40 }], "{in_force}");
        assert_eq!(repair.limits.ended(), Some(&Ended::Reached));
    }
}

#[test]
fn a_limit_is_lowered_in_steps_or_forced_at_once() {
    let mut repair = Repair::to(40, false);
    repair.seen.tasks = Some(300);
    repair.wait(1);
    assert_eq!((repair.limits.step(), repair.limits.ended()), (Some(320), None));
    repair.seen.tasks = Some(30);
    repair.wait(9);
    assert_eq!(repair.written.len(), 1, "ten seconds between steps");
    repair.wait(2);
    assert_eq!(repair.written, [Write::PidsMax { limit: 320 }, Write::Docker { limit: 40 }]);
    let mut repair = Repair::to(40, true);
    repair.seen.tasks = Some(300);
    repair.wait(1);
    assert_eq!(repair.written, [Write::Docker { limit: 40 }]);
}

#[test]
fn a_step_uses_the_earlier_plan_if_the_facts_cannot_be_read() {
    let mut repair = Repair::to(40, false);
    repair.seen.tasks = Some(300);
    repair.wait(1);
    (repair.unread, repair.seen.tasks) = (true, Some(100));
    repair.wait(11);
    assert_eq!(repair.limits.step(), Some(120));
    let mut repair = Repair::to(40, false);
    repair.unread = true;
    repair.wait(1);
    assert!(matches!(repair.limits.ended(), Some(Ended::Failed(_))), "there is no earlier plan");
}

#[test]
fn a_later_request_ends_the_repair() {
    let mut repair = Repair::to(40, false);
    repair.seen.tasks = Some(300);
    repair.wait(1);
    repair.seen.request =
        repair.seen.request.map(|one| LimitRequest { limit: 50, at: one.at * 2, ..one });
    repair.wait(1);
    assert!(matches!(repair.limits.ended(), Some(Ended::Failed(why)) if why.contains("another")));
    // If the request is gone, either its limit was reached or something else removed it.
    let mut repair = Repair::to(40, false);
    repair.seen.request = None;
    repair.wait(1);
    assert!(matches!(repair.limits.ended(), Some(Ended::Failed(why)) if why.contains("is gone")));
    let mut repair = Repair::to(40, false);
    (repair.seen.request, repair.seen.in_force) = (None, Limit::Tasks(40));
    repair.wait(1);
    assert_eq!(repair.limits.ended(), Some(&Ended::Reached));
}

#[test]
fn the_third_reversion_ends_the_repair_and_both_limits_are_named() {
    let mut repair = Repair::to(40, false);
    repair.seen.tasks = Some(300);
    for _ in 0..4 {
        repair.wait(11);
        repair.seen.in_force = Limit::Max;
    }
    let Some(Ended::Failed(why)) = repair.limits.ended() else { panic!("it has not ended") };
    assert!(why.contains("40 is wanted, max is in force"), "{why}");
    assert_eq!((repair.written.len(), repair.left), (3, vec![Outcome::NotOurs]));
}

#[test]
fn repair_lets_an_agent_lower_the_limit() {
    let mut repair = Repair::to(40, false);
    (repair.seen.tasks, repair.seen.agent_goes_on) = (Some(300), true);
    repair.wait(5);
    assert!(repair.limits.follows() && repair.written.is_empty());
    repair.seen.in_force = Limit::Tasks(200);
    repair.wait(1);
    // The agent is gone. No later step is above the agent's last one.
    repair.seen.agent_goes_on = false;
    repair.wait(11);
    assert_eq!((repair.limits.follows(), repair.written.len()), (false, 0), "200 is low enough");
    repair.seen.in_force = Limit::Max;
    repair.wait(11);
    assert_eq!(repair.limits.step(), Some(200));
    let mut repair = Repair::to(40, false);
    (repair.seen.tasks, repair.seen.agent_goes_on) = (Some(300), true);
    repair.wait(2);
    repair.seen.in_force = Limit::Tasks(40);
    repair.wait(1);
    assert_eq!(repair.limits.ended(), Some(&Ended::Reached), "by the agent");
}

#[test]
fn repair_takes_over_with_its_earlier_plan_when_agent_and_engine_are_gone() {
    let mut repair = Repair::to(40, false);
    (repair.seen.tasks, repair.seen.agent_goes_on) = (Some(300), true);
    repair.wait(2);
    (repair.seen.agent_goes_on, repair.unread) = (false, true);
    repair.wait(11);
    assert_eq!((repair.limits.step(), repair.limits.ended()), (Some(320), None));
}

#[test]
fn a_dry_run_writes_nothing_even_beside_an_agent() {
    let mut repair = Repair::to(40, false);
    (repair.rules.mode, repair.seen.agent_goes_on) = (Mode::Observe, true);
    repair.seen.tasks = Some(300);
    repair.wait(5);
    assert_eq!((repair.left, repair.written.len()), (vec![Outcome::WouldDo], 0));
}

#[test]
fn repair_replaces_a_lower_limit_itself_even_beside_an_agent() {
    let mut repair = Repair::to(40, false);
    (repair.seen.tasks, repair.seen.agent_goes_on) = (Some(300), true);
    repair.wait(2);
    // An agent leaves a lower limit alone, because it is another tool's brake.
    repair.seen.in_force = Limit::Tasks(30);
    repair.wait(11);
    assert_eq!(repair.written, [Write::Docker { limit: 40 }]);
    assert_eq!(repair.limits.ended(), Some(&Ended::Reached));
}

#[test]
fn a_limit_in_two_places_is_written_to_both_until_a_write_fails() {
    let mut repair = Repair::to(40, false);
    repair.engine = of_old_podman;
    repair.wait(1);
    assert_eq!(repair.written, writes_of_old_podman(40));
    let mut repair = Repair::to(40, false);
    repair.engine = of_old_podman;
    repair.refuse_from(0);
    repair.wait(5);
    assert!(repair.written.is_empty() && matches!(repair.limits.ended(), Some(Ended::Failed(_))));
}

#[test]
fn a_repair_without_a_container_needs_no_request() {
    let mut repair = Repair::to(40, false);
    repair.limits = Limits::once(GUARD, 40, false);
    (repair.seen.request, repair.seen.tasks) = (None, Some(300));
    repair.wait(1);
    assert_eq!((repair.limits.step(), repair.limits.ended()), (Some(320), None));
    repair.seen.tasks = Some(10);
    repair.wait(11);
    assert_eq!(repair.limits.ended(), Some(&Ended::Reached));
    let left = repair.limits.left_request(true, None, (None, repair.seen.request), None);
    assert_eq!(left, LeftRequest::Other);
}

#[test]
fn a_repair_ends_if_tasks_cannot_be_counted() {
    let mut repair = Repair::to(40, false);
    repair.seen.tasks = None;
    repair.wait(1);
    assert!(matches!(repair.limits.ended(), Some(Ended::Failed(why)) if why.contains("counted")));
}

#[test]
fn a_request_stays_until_its_limit_is_read_back_and_its_owner_keeps_it() {
    let reached = |engine| {
        let mut repair = Repair::to(40, false);
        repair.engine = engine;
        repair.wait(1);
        assert_eq!(repair.limits.ended(), Some(&Ended::Reached));
        repair
    };
    let docker = reached(|facts| facts);
    let ours = docker.seen.request;
    let left = |proved, policy| docker.limits.left_request(proved, policy, (None, ours), None);
    assert_eq!(left(true, None), LeftRequest::Nothing);
    assert_eq!(left(true, Some(40)), LeftRequest::Nothing);
    assert_eq!(left(true, Some(90)), LeftRequest::Ours, "it overrides that policy");
    assert_eq!(left(false, None), LeftRequest::Ours);
    let later = ours.map(|one| LimitRequest { at: one.at * 2, ..one });
    assert_eq!(docker.limits.left_request(true, None, (None, later), None), LeftRequest::Other);
    let podman = reached(of_old_podman);
    assert_eq!(podman.limits.left_request(true, None, (None, ours), None), LeftRequest::Ours);
}

#[test]
fn a_repair_that_cannot_begin_restores_the_earlier_request() {
    let mut repair = Repair::to(40, false);
    repair.engine = of_old_docker;
    repair.wait(1);
    assert!(matches!(repair.limits.ended(), Some(Ended::Failed(_))));
    let ours = repair.seen.request;
    let former = ours.map(|one| LimitRequest { limit: 70, at: one.at / 2, ..one });
    let left = |former, now| repair.limits.left_request(false, None, (former, now), Some(200));
    assert_eq!(left(None, ours), LeftRequest::Nothing);
    assert_eq!(left(former, ours), LeftRequest::Former(former.unwrap()));
    assert_eq!(left(None, former), LeftRequest::Other);
    // A repair that has begun can be continued later.
    let mut repair = Repair::to(40, false);
    repair.seen.tasks = Some(300);
    repair.wait(1);
    assert_eq!(repair.limits.left_request(false, None, (former, ours), None), LeftRequest::Ours);
    repair.seen.tasks = Some(100);
    repair.refuse_from(0);
    repair.wait(12);
    assert!(matches!(repair.limits.ended(), Some(Ended::Failed(_))));
    assert_eq!(repair.limits.left_request(false, None, (former, ours), None), LeftRequest::Ours);
}

#[test]
fn a_repair_has_its_plan_from_its_first_facts_to_its_end() {
    let mut repair = Repair::to(40, false);
    assert_eq!(repair.limits.plan(), None);
    repair.seen.tasks = Some(300);
    repair.wait(1);
    assert_eq!(repair.limits.plan().map(|plan| plan.limit), Some(40));
    repair.seen.tasks = Some(10);
    repair.wait(11);
    assert_eq!(repair.limits.ended(), Some(&Ended::Reached));
    assert_eq!(repair.limits.plan().map(|plan| plan.limit), Some(40));
}

#[test]
fn a_former_request_that_was_carried_out_in_the_meantime_is_not_restored() {
    let mut repair = Repair::to(40, false);
    repair.engine = of_old_docker;
    repair.wait(1);
    let ours = repair.seen.request;
    let former = ours.map(|one| LimitRequest { limit: 70, at: one.at / 2, ..one });
    let left = repair.limits.left_request(false, None, (former, ours), Some(70));
    assert_eq!(left, LeftRequest::Nothing);
}

#[test]
fn a_repair_has_begun_with_its_first_write_or_the_first_step_of_the_agent_it_watches() {
    let former = |repair: &Repair| {
        let former = repair.seen.request.map(|one| LimitRequest { at: one.at / 2, ..one });
        repair.limits.left_request(false, None, (former, repair.seen.request), None)
    };
    // The kernel has the limit, and its second place has not.
    let mut repair = Repair::to(40, false);
    repair.engine = of_old_podman;
    repair.refuse_from(1);
    repair.wait(1);
    assert_eq!(repair.written.len(), 1);
    assert_eq!(former(&repair), LeftRequest::Ours);
    // Another tool's brake hides the step that was written.
    let mut repair = Repair::to(40, false);
    repair.seen.tasks = Some(300);
    repair.wait(1);
    repair.seen.in_force = Limit::Tasks(30);
    repair.refuse_from(0);
    repair.wait(12);
    assert!(matches!(repair.limits.ended(), Some(Ended::Failed(_))));
    assert_eq!(former(&repair), LeftRequest::Ours);
    for (agents_step, expected) in [(Some(320), true), (None, false)] {
        let mut repair = Repair::to(40, false);
        (repair.seen.tasks, repair.seen.agent_goes_on) = (Some(300), true);
        repair.wait(2);
        if let Some(step) = agents_step {
            repair.seen.in_force = Limit::Tasks(step);
            repair.wait(1);
        }
        (repair.seen.agent_goes_on, repair.seen.tasks) = (false, Some(10));
        repair.refuse_from(0);
        repair.wait(12);
        assert!(matches!(repair.limits.ended(), Some(Ended::Failed(_))), "{agents_step:?}");
        assert_eq!(former(&repair) == LeftRequest::Ours, expected, "{agents_step:?}");
    }
}

#[test]
fn a_waiting_plan_is_renewed_after_a_minute() {
    let mut repair = Repair::to(40, false);
    repair.engine = with_five_servers;
    (repair.seen.in_force, repair.seen.tasks) = (Limit::Tasks(50), Some(30));
    repair.wait(5);
    assert!(repair.limits.waits() && repair.written.is_empty(), "the servers may grow");
    // They have ended, and other processes run.
    repair.engine = |facts| facts;
    repair.wait(75);
    assert_eq!(repair.written, [Write::Docker { limit: 40 }]);
}

#[test]
fn our_clamp_ends_a_repair() {
    for first in [true, false] {
        let mut repair = Repair::to(40, false);
        repair.seen.tasks = Some(300);
        if !first {
            repair.wait(1);
        }
        let written = repair.written.len();
        (repair.seen.clamped, repair.seen.tasks) = (true, Some(10));
        repair.wait(60);
        let Some(Ended::Failed(why)) = repair.limits.ended() else { panic!("it goes on") };
        assert!(why.contains("mcp-guard has clamped it"), "{why}");
        assert_eq!(repair.written.len(), written, "from the start: {first}");
    }
}

#[test]
fn a_clamp_that_comes_while_facts_are_read_ends_a_repair() {
    let mut repair = Repair::to(40, false);
    let mut effects = Vec::new();
    let mut out = Outbox { tickets: &mut repair.tickets, effects: &mut effects };
    repair.limits.look(repair.now, &repair.rules, &repair.seen, &mut out);
    repair.seen.clamped = true;
    repair.carry_out(effects);
    assert!(matches!(repair.limits.ended(), Some(Ended::Failed(_))) && repair.written.is_empty());
}
