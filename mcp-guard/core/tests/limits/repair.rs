//! The same machine as `mcp-guard repair` steps it.

use std::time::Duration;

use mcp_guard_core::{
    Time,
    diagnose::facts::Facts,
    effect::{Action, Effect, LimitRequest, Order, Outbox, PolicyThen, SeenLimit, Settled},
    id::{Ticket, Tickets},
    incident::Outcome,
    limit::Limit,
    limits::{Ended, Limits, Rules},
    policy::Mode,
    repair::Write,
};

use super::world::{GUARD, facts};

struct Repair {
    limits: Limits,
    rules: Rules,
    now: Time,
    tickets: Tickets,
    seen: SeenLimit,
    stored: Option<u64>,
    unread: bool,
    written: Vec<Write>,
    left: Vec<Outcome>,
}

impl Repair {
    fn to(limit: u64, force: bool) -> Self {
        let at = Duration::from_secs(1);
        let request = Some(LimitRequest { limit, at, policy: PolicyThen::Unknown });
        Self {
            limits: Limits::once(GUARD, limit, force, true),
            rules: Rules { mode: Mode::Enforce, policy: None, headroom: 20 },
            now: Time(0),
            tickets: Tickets::default(),
            seen: SeenLimit {
                in_force: Limit::Max,
                tasks: Some(10),
                request,
                agent_goes_on: false,
            },
            stored: None,
            unread: false,
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
                        false => Ok(Box::new(facts(self.stored, self.seen.in_force))),
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
                    let (Write::Docker { limit } | Write::PidsMax { limit }) = write else {
                        panic!("it is Docker's: {write:?}")
                    };
                    self.seen.in_force = Limit::Tasks(limit);
                    self.written.push(write);
                    self.settle(ticket);
                }
                Effect::Act(Order { action: Action::LeaveLimit { outcome, .. }, .. }) => {
                    self.left.push(outcome);
                }
                Effect::Act(_)
                | Effect::Rescan { .. }
                | Effect::ReadDenials { .. }
                | Effect::ForgetRequest { .. }
                | Effect::Unguard { .. }
                | Effect::Log { .. } => {}
            }
        }
    }

    fn settle(&mut self, ticket: Ticket) {
        let (outcome, detail) = (Outcome::Done, String::new());
        let settled = Settled { ticket, guard: GUARD, outcome, detail };
        let mut effects = Vec::new();
        let mut out = Outbox { tickets: &mut self.tickets, effects: &mut effects };
        self.limits.settled(self.now, &settled, &mut out);
        self.carry_out(effects);
    }
}

#[test]
fn the_owner_writes_it_also_where_it_is_in_force_and_where_a_lower_one_is() {
    for in_force in [Limit::Max, Limit::Tasks(40), Limit::Tasks(20)] {
        let mut repair = Repair::to(40, false);
        repair.seen.in_force = in_force;
        repair.wait(1);
        assert_eq!(repair.written, [Write::Docker { limit: 40 }], "{in_force}");
        assert_eq!(repair.limits.ended(), Some(&Ended::Reached));
    }
}

#[test]
fn it_is_lowered_in_steps_or_forced() {
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
fn a_step_is_planned_as_before_where_the_facts_cannot_be_read() {
    let mut repair = Repair::to(40, false);
    repair.seen.tasks = Some(300);
    repair.wait(1);
    (repair.unread, repair.seen.tasks) = (true, Some(100));
    repair.wait(11);
    assert_eq!(repair.limits.step(), Some(120));
    let mut repair = Repair::to(40, false);
    repair.unread = true;
    repair.wait(1);
    assert!(matches!(repair.limits.ended(), Some(Ended::Failed(_))), "there is no plan yet");
}

#[test]
fn the_later_of_two_requests_counts() {
    let mut repair = Repair::to(40, false);
    repair.seen.tasks = Some(300);
    repair.wait(1);
    repair.seen.request = repair.seen.request.map(|one| LimitRequest { limit: 50, ..one });
    repair.wait(1);
    assert!(matches!(repair.limits.ended(), Some(Ended::Failed(why)) if why.contains("another")));
    // One that is gone was reached, or somebody ended it.
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
fn the_third_reversion_ends_it_and_says_who_has_what() {
    let mut repair = Repair::to(40, false);
    repair.seen.tasks = Some(300);
    for _ in 0..4 {
        repair.wait(11);
        repair.seen.in_force = Limit::Max;
    }
    let Some(Ended::Failed(why)) = repair.limits.ended() else { panic!("it goes on") };
    assert!(why.contains("40 is wanted, max is in force"), "{why}");
    assert_eq!((repair.written.len(), repair.left), (3, vec![Outcome::NotOurs]));
}

#[test]
fn an_agent_that_lowers_it_is_left_to_do_so() {
    let mut repair = Repair::to(40, false);
    (repair.seen.tasks, repair.seen.agent_goes_on) = (Some(300), true);
    repair.wait(5);
    assert!(repair.limits.follows() && repair.written.is_empty());
    repair.seen.in_force = Limit::Tasks(200);
    repair.wait(1);
    // It is gone: no later step is above its last one.
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
fn an_agent_that_goes_away_with_its_engine_is_taken_over_from_by_the_former_plan() {
    let mut repair = Repair::to(40, false);
    (repair.seen.tasks, repair.seen.agent_goes_on) = (Some(300), true);
    repair.wait(2);
    (repair.seen.agent_goes_on, repair.unread) = (false, true);
    repair.wait(11);
    assert_eq!((repair.limits.step(), repair.limits.ended()), (Some(320), None));
}

#[test]
fn a_dry_run_leaves_the_last_step_out_also_beside_an_agent() {
    let mut repair = Repair::to(40, false);
    (repair.rules.mode, repair.seen.agent_goes_on) = (Mode::Observe, true);
    repair.seen.tasks = Some(300);
    repair.wait(5);
    assert_eq!((repair.left, repair.written.len()), (vec![Outcome::WouldDo], 0));
}
