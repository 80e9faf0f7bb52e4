//! Enforces the limit of one guard: which limit is wanted, which side wins a conflict, when the
//! limit is written, and in which steps. The agent and `mcp-guard repair` run the same state
//! machine.
//!
//! | in force | against | wins |
//! |---|---|---|
//! | our clamp | any limit that we would write | the clamp, until it is released; it waits for a write under way, but not for long |
//! | a late write of ours over our clamp | our clamp | the clamp: it is repeated at once |
//! | another write over our clamp | our clamp | the write; a detector may clamp again after the cool-down |
//! | an operator's request | the policy | the request, until the policy's number changes |
//! | the policy | the limit that the engine stores | the policy |
//! | a lower limit | the wanted limit, except one from `repair` | the lower one: it is another tool's brake |
//! | a third reversion within an hour | the wanted limit | the reversion: it is recorded and left alone |
//!
//! While a clamp or a freeze is in force, the guard passes no observed limits to this module. Slow work
//! (reading facts, asking an engine or systemd) is requested with an effect and answered with an
//! input.

mod forbidden;
mod late;
mod pacing;
pub mod requests;

use std::{collections::VecDeque, mem, time::Duration};

pub use self::forbidden::{Forbidden, forbidden, forbidden_there, overtaken};
use self::{
    late::Late,
    pacing::{Pacing, Ruling},
};
use crate::{
    Time,
    diagnose::{
        facts::Facts,
        owner::{Refused, unit_unread},
    },
    effect::{Action, Effect, LimitRequest, Outbox, Remark, SeenLimit, Settled},
    id::{GuardId, Ticket},
    incident::Outcome,
    limit::Limit,
    policy::Mode,
    repair::{self, Next, Plan, Wanted, Write},
};

/// How long a plan that has nothing to write is used before the facts are read again: servers may have
/// ended, and left room that the plan still keeps for them.
const PLAN_USED: Duration = Duration::from_secs(60);
/// How long a clamp waits at most for an owner that was asked to write a limit. An engine that hangs answers
/// after half a minute at best, and a leak does not wait.
const CLAMP_WAITS: Duration = Duration::from_secs(3);

/// The mode and the policy settings that apply to a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    pub mode: Mode,
    /// `pids_limit` of the policy.
    pub policy: Option<u64>,
    /// `clamp_headroom` of the policy.
    pub headroom: u64,
}

/// Whether a limit is kept in force, or written once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aim {
    /// The agent keeps the wanted limit in force for as long as the guard exists.
    Hold,
    /// `repair` writes one limit and ends.
    Once {
        limit: u64,
        force: bool,
        /// When its request was stored, since the Unix epoch, so that a later request replaces it.
        stored: Option<Duration>,
    },
}

/// The state that a plan's writes lead to.
#[derive(Clone, Debug)]
enum Then {
    Step(u64),
    /// The wanted limit. `kept`: its owner stores it.
    Reached {
        limit: u64,
        kept: bool,
    },
}

/// A write that an owner was asked for.
#[derive(Clone, Copy, Debug)]
struct Writing {
    ticket: Ticket,
    limit: u64,
    since: Time,
}

/// How a repair ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    Reached,
    /// The reason.
    Failed(String),
}

#[derive(Clone, Debug)]
pub struct Limits {
    guard: GuardId,
    aim: Aim,
    pacing: Pacing,
    declared: Option<u64>,
    request: Option<LimitRequest>,
    /// When the last request seen was made.
    noted_request: Option<Duration>,
    /// The policy's limit when the request was made, or when the request was first seen.
    policy_then: Option<u64>,
    /// Time of the request that a policy change has ended.
    outdated: Option<Duration>,
    reading: Option<Ticket>,
    writing: Option<Writing>,
    /// Writes that an owner may still make, although nobody waits for them.
    late: Late,
    /// One of these was the last limit seen in force.
    arrived: Option<u64>,
    /// Writes that follow the one in progress, and the state that they lead to.
    waiting: VecDeque<Write>,
    then: Option<Then>,
    /// The limit in force when they were decided on.
    over: Limit,
    /// In the agent: the last plan, kept while it can write nothing until tasks end. In `repair`:
    /// the last plan that could be made.
    plan: Option<Plan>,
    /// Until when the plan is used without new facts.
    plan_until: Time,
    reason: String,
    /// The log already reports that the facts cannot be read.
    logged_unread: bool,
    /// An agent lowers the limit, and `repair` only watches.
    follows: bool,
    /// The limit that was in force when `repair` began to watch an agent.
    followed_from: Option<Limit>,
    /// Something of a `repair` was written, by itself or by the agent that it watches.
    begun: bool,
    ended: Option<Ended>,
}

impl Limits {
    /// Creates the state machine for the agent.
    #[must_use]
    pub fn new(guard: GuardId) -> Self {
        Self::aiming(guard, Aim::Hold, Pacing::default())
    }

    /// Creates the state machine for `repair`.
    #[must_use]
    pub fn once(guard: GuardId, limit: u64, force: bool) -> Self {
        Self::aiming(guard, Aim::Once { limit, force, stored: None }, Pacing::insisting())
    }

    /// Records that the request of a `repair` is stored where an agent and a later `repair` find it.
    /// `at`: its time, since the Unix epoch.
    pub fn request_stored(&mut self, at: Duration) {
        if let Aim::Once { stored, .. } = &mut self.aim {
            *stored = Some(at);
        }
    }

    /// Ends a `repair`: its target may not be written, or can no longer be read.
    pub fn abandon(&mut self, why: String) {
        self.fail(why);
    }

    fn aiming(guard: GuardId, aim: Aim, pacing: Pacing) -> Self {
        Self {
            guard,
            aim,
            pacing,
            declared: None,
            request: None,
            noted_request: None,
            policy_then: None,
            outdated: None,
            reading: None,
            writing: None,
            late: Late::default(),
            arrived: None,
            waiting: VecDeque::new(),
            then: None,
            over: Limit::Max,
            plan: None,
            plan_until: Time::default(),
            reason: String::new(),
            logged_unread: false,
            follows: false,
            followed_from: None,
            begun: false,
            ended: None,
        }
    }

    /// Returns the wanted limit. In the agent: the operator's request, else the policy's limit,
    /// else the limit that the engine stores.
    #[must_use]
    pub fn wanted(&self, policy: Option<u64>) -> Option<u64> {
        match self.aim {
            Aim::Hold => self.request.map(|request| request.limit).or(policy).or(self.declared),
            Aim::Once { limit, .. } => Some(limit),
        }
    }

    /// Returns the wanted limit, given the request that is stored now. It may be newer than the
    /// last one seen.
    #[must_use]
    pub fn wanted_now(&self, policy: Option<u64>, stored: Option<LimitRequest>) -> Option<u64> {
        let is_new = |request: &LimitRequest| Some(request.at) != self.noted_request;
        match stored.filter(is_new) {
            Some(request) => Some(request.limit),
            None => self.wanted(policy),
        }
    }

    /// Returns whether the limit is not in force and mcp-guard no longer tries to restore it.
    #[must_use]
    pub fn is_left(&self) -> bool {
        self.pacing.has_stopped()
    }

    /// Returns the last step on the way down.
    #[must_use]
    pub fn step(&self) -> Option<u64> {
        self.pacing.step()
    }

    /// Returns how `repair` ended, or `None` while it runs.
    #[must_use]
    pub fn ended(&self) -> Option<&Ended> {
        self.ended.as_ref()
    }

    /// Returns the last plan that `repair` made, or `None` before the first.
    #[must_use]
    pub fn plan(&self) -> Option<&Plan> {
        self.plan.as_ref()
    }

    /// Returns whether `repair` waits for tasks to end.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.pacing.is_waiting() && !self.follows && self.ended.is_none()
    }

    /// Returns whether `repair` leaves the work to an agent.
    #[must_use]
    pub fn follows(&self) -> bool {
        self.follows
    }

    /// Reacts to a new policy. The plan is dropped because the headroom may differ. If the mode
    /// changed, a limit that was left alone is checked again, and pending writes are dropped and
    /// decided again.
    pub fn policy_changed(&mut self, other_mode: bool) {
        self.plan = None;
        if other_mode {
            self.pacing.asked_again();
            self.drop_waiting();
        }
    }

    /// Drops the writes that follow the one in progress. They are decided again later.
    pub fn drop_waiting(&mut self) {
        self.waiting.clear();
        self.then = None;
    }

    /// Returns whether a write of the limit is in progress.
    #[must_use]
    pub fn is_writing(&self) -> bool {
        self.writing.is_some()
    }

    /// Returns until when a clamp waits for a write in progress. Its owner would overwrite the clamp.
    #[must_use]
    pub fn clamp_waits_until(&self) -> Option<Time> {
        self.writing.map(|writing| writing.since.after(CLAMP_WAITS))
    }

    /// Gives up the write in progress, because a clamp waits for it no longer.
    pub fn give_up(&mut self, now: Time, out: &mut Outbox<'_>) {
        let Some(Writing { ticket, limit, .. }) = self.writing.take() else { return };
        self.late.expect(now, ticket, limit);
        out.act(self.guard, Action::GiveUpLimit { write: ticket });
        self.failed(now, "the owner did not answer in time");
    }

    /// Returns whether `limit` was put in force by a write of ours that was not waited for.
    pub fn has_arrived(&mut self, now: Time, limit: Limit) -> bool {
        limit.tasks().is_some_and(|limit| self.late.arrives(now, limit))
    }

    /// Takes note of a late write of ours in force. It is no limit of another program.
    fn note_arrival(&mut self, now: Time, wanted: Option<u64>, in_force: Limit) {
        let tasks = in_force.tasks();
        if tasks != wanted && self.has_arrived(now, in_force) {
            self.pacing.arrived(tasks);
            self.arrived = tasks;
        }
        self.arrived = self.arrived.filter(|arrived| Some(*arrived) == tasks);
    }

    /// Takes the limit that the engine stores.
    pub fn declare(&mut self, limit: Option<u64>) {
        self.declared = limit;
    }

    pub fn look(&mut self, now: Time, rules: &Rules, seen: &SeenLimit, out: &mut Outbox<'_>) {
        if self.ends_at_a_clamp(seen) {
            return;
        }
        match self.aim {
            Aim::Hold => self.note_request(rules, seen, out),
            Aim::Once { limit, stored, .. } => {
                if self.is_replaced(limit, stored, seen) || self.leaves_it_to_an_agent(limit, seen)
                {
                    return;
                }
            }
        }
        let wanted = self.wanted(rules.policy);
        self.note_arrival(now, wanted, seen.in_force);
        if !self.pacing.look(now, wanted, seen.in_force) {
            return;
        }
        if now < self.plan_until && self.has_nothing_to_write(wanted, seen) {
            return self.pacing.waits(now);
        }
        if self.aim == Aim::Hold {
            self.plan = None;
        }
        let ticket = out.tickets.draw();
        self.reading = Some(ticket);
        out.push(Effect::ReadFacts { guard: self.guard, ticket });
    }

    /// A clamp of ours ends a `repair`.
    fn ends_at_a_clamp(&mut self, seen: &SeenLimit) -> bool {
        if seen.clamped {
            self.fail(Forbidden::Clamped.to_string());
        }
        seen.clamped
    }

    /// While an agent lowers the limit, `repair` waits until it is reached. A limit below the
    /// requested one does not come from the agent's work on this request, so `repair` writes the
    /// limit itself.
    fn leaves_it_to_an_agent(&mut self, limit: u64, seen: &SeenLimit) -> bool {
        if !self.follows {
            return false;
        }
        self.pacing.lowered(seen.in_force);
        self.begun |= self.followed_from.is_some_and(|from| seen.in_force < from);
        let limit = Limit::Tasks(limit);
        if seen.in_force == limit {
            self.ended = Some(Ended::Reached);
        }
        self.follows = seen.agent_goes_on && seen.in_force > limit;
        self.follows || self.ended.is_some()
    }

    fn has_nothing_to_write(&self, wanted: Option<u64>, seen: &SeenLimit) -> bool {
        let (Some(plan), Some(tasks)) = (&self.plan, seen.tasks) else { return false };
        Some(plan.limit) == wanted
            && plan.next(tasks, seen.in_force, self.pacing.step()) == Next::Wait
    }

    /// Takes the answer to [`Effect::ReadFacts`]. `seen` is `None` if nothing may be written now,
    /// or if the limit in force cannot be read.
    pub fn facts(
        &mut self,
        now: Time,
        rules: &Rules,
        (ticket, facts): (Ticket, Result<Box<Facts>, String>),
        seen: Option<&SeenLimit>,
        out: &mut Outbox<'_>,
    ) {
        // By the time facts arrive, the slot may belong to another guard.
        if self.reading != Some(ticket) {
            return;
        }
        self.reading = None;
        if seen.is_some_and(|seen| self.ends_at_a_clamp(seen)) {
            return;
        }
        if let (Aim::Hold, Some(seen)) = (self.aim, seen) {
            // Plan for a request that was made in the meantime.
            self.note_request(rules, seen, out);
        }
        match (facts, seen) {
            (Ok(facts), Some(seen)) => self.repair(now, rules, &facts, seen, out),
            (Ok(_), None) => self.failed(now, "the limit cannot be read or written now"),
            (Err(why), seen) => self.unread(now, rules, &why, seen, out),
        }
    }

    /// Handles facts that cannot be read. The agent tries again later; `repair` continues with its
    /// last plan.
    fn unread(
        &mut self,
        now: Time,
        rules: &Rules,
        why: &str,
        seen: Option<&SeenLimit>,
        out: &mut Outbox<'_>,
    ) {
        if !mem::replace(&mut self.logged_unread, true) {
            self.log(format!("cannot read the facts about the limit: {why}"), out);
        }
        match (self.aim, self.plan.clone(), seen) {
            (Aim::Once { .. }, Some(plan), Some(seen)) => {
                let ruling = self.pacing.judge(now, Some(plan.limit), seen.in_force);
                self.carry_out(now, rules.mode, ruling, plan, seen, out);
            }
            _ => self.failed(now, why),
        }
    }

    fn repair(
        &mut self,
        now: Time,
        rules: &Rules,
        facts: &Facts,
        seen: &SeenLimit,
        out: &mut Outbox<'_>,
    ) {
        if let Some(container) = &facts.container {
            let declared = container.pids_limit.and_then(|limit| u64::try_from(limit).ok());
            self.declare(declared.filter(|limit| *limit > 0));
        }
        self.logged_unread = false;
        let wanted = self.wanted(rules.policy);
        self.note_arrival(now, wanted, seen.in_force);
        let ruling = self.pacing.judge(now, wanted, seen.in_force);
        let (Some(limit), Ruling::Repair | Ruling::GiveUp) = (wanted, ruling) else { return };
        self.reason = match (self.aim, ruling) {
            (Aim::Once { .. }, Ruling::Repair | Ruling::Rest) => "operator".to_owned(),
            (Aim::Hold, _) if self.arrived.is_some() => format!(
                "{limit} is wanted, {} is in force: its owner made an earlier write of mcp-guard late",
                seen.in_force
            ),
            (Aim::Hold, _) | (_, Ruling::GiveUp) => repair::undone_by(facts, limit, seen.in_force),
        };
        let force = matches!(self.aim, Aim::Once { force: true, .. });
        let wanted = Wanted { limit: Some(limit), force, headroom: rules.headroom };
        let unread = unit_unread(facts).map(ToString::to_string);
        match (repair::plan(facts, wanted), self.plan.clone(), unread) {
            // Without a plan, the audit record names a plain `pids.max` write as the one that is
            // not made.
            (Err(_), _, _) if ruling == Ruling::GiveUp => {
                self.leave(Outcome::NotOurs, vec![Write::PidsMax { limit }], out);
            }
            // Only `repair` has an earlier plan here. The owner could be read when that plan was
            // made.
            (Err(Refused(why)), Some(plan), _) | (Ok(_), Some(plan), Some(why)) => {
                self.log(format!("cannot make a new plan: {why}; keeping the last one"), out);
                self.carry_out(now, rules.mode, ruling, plan, seen, out);
            }
            (Ok(plan), _, _) => self.carry_out(now, rules.mode, ruling, plan, seen, out),
            (Err(Refused(why)), None, _) => {
                self.log(format!("the limit is not in force and cannot be repaired: {why}"), out);
                self.failed(now, &why);
            }
        }
    }

    fn carry_out(
        &mut self,
        now: Time,
        mode: Mode,
        ruling: Ruling,
        plan: Plan,
        seen: &SeenLimit,
        out: &mut Outbox<'_>,
    ) {
        let Some(tasks) = seen.tasks else {
            return self.failed(now, "the tasks of the cgroup cannot be counted");
        };
        if matches!(self.aim, Aim::Once { .. }) {
            // Used if the facts cannot be read later.
            self.plan = Some(plan.clone());
        }
        self.plan_until = now.after(PLAN_USED);
        let next = plan.next(tasks, seen.in_force, self.pacing.step());
        match (ruling, next) {
            (Ruling::Rest, _) => {}
            (Ruling::GiveUp, Next::Wait) => self.leave(Outcome::NotOurs, plan.last(), out),
            (Ruling::GiveUp, next) => self.leave(Outcome::NotOurs, next.into_writes(), out),
            (Ruling::Repair, next) => {
                let is_last = matches!(next, Next::Last(_));
                let is_repair = matches!(self.aim, Aim::Once { .. }) && mode == Mode::Enforce;
                if is_repair && seen.agent_goes_on && !is_last {
                    (self.follows, self.followed_from) = (true, Some(seen.in_force));
                    return self.pacing.waits(now);
                }
                self.over = seen.in_force;
                self.begin(now, mode, plan, next, out);
            }
        }
    }

    fn begin(&mut self, now: Time, mode: Mode, plan: Plan, next: Next, out: &mut Outbox<'_>) {
        match (next, mode) {
            (Next::Wait, _) => {
                self.plan = Some(plan);
                self.pacing.waits(now);
            }
            (next, Mode::Observe) => self.leave(Outcome::WouldDo, next.into_writes(), out),
            (Next::Last(writes), Mode::Enforce) => {
                self.waiting = writes.into();
                let kept = plan.is_kept_by_its_owner();
                self.then = Some(Then::Reached { limit: plan.limit, kept });
                self.write_next(now, out);
            }
            (Next::Lower(writes, step), Mode::Enforce) => {
                self.waiting = writes.into();
                self.then = Some(Then::Step(step));
                self.write_next(now, out);
            }
        }
    }

    /// Orders the checks and the audit records of `writes`, but not the writes themselves.
    fn leave(&mut self, outcome: Outcome, writes: Vec<Write>, out: &mut Outbox<'_>) {
        let reason = mem::take(&mut self.reason);
        let detail = match outcome {
            Outcome::WouldDo => "observe mode or dry run: nothing is written".to_owned(),
            Outcome::Done
            | Outcome::Requested
            | Outcome::NotNeeded
            | Outcome::Refused
            | Outcome::NotOurs
            | Outcome::Failed => {
                format!("undone three times within an hour: {reason}; not restored again")
            }
        };
        for write in writes {
            let (reason, detail) = (reason.clone(), detail.clone());
            out.act(self.guard, Action::LeaveLimit { write, reason, outcome, detail });
        }
        self.pacing.leave();
        if outcome != Outcome::WouldDo && matches!(self.aim, Aim::Once { .. }) {
            self.fail(detail);
        }
    }

    fn write_next(&mut self, now: Time, out: &mut Outbox<'_>) {
        let Some(write) = self.waiting.pop_front() else { return self.all_written(now) };
        let (reason, over, limit) = (self.reason.clone(), self.over, write.limit());
        let ticket = out.act(self.guard, Action::WriteLimit { write, over, reason });
        self.writing = Some(Writing { ticket, limit, since: now });
    }

    pub fn settled(&mut self, now: Time, settled: &Settled, out: &mut Outbox<'_>) {
        let Some(writing) = self.writing.take_if(|one| one.ticket == settled.ticket) else {
            if settled.remark != Some(Remark::MayArrive) {
                self.late.answered(now, settled.ticket, settled.outcome == Outcome::Done);
            }
            return;
        };
        if settled.remark == Some(Remark::MayArrive) {
            self.late.expect(now, writing.ticket, writing.limit);
        }
        match settled.outcome {
            Outcome::Done => {
                self.begun = true;
                self.write_next(now, out);
            }
            Outcome::WouldDo
            | Outcome::Requested
            | Outcome::NotNeeded
            | Outcome::Refused
            | Outcome::NotOurs
            | Outcome::Failed => self.failed(now, &settled.detail),
        }
    }

    fn all_written(&mut self, now: Time) {
        match self.then.take() {
            Some(Then::Step(step)) => self.pacing.stepped(now, step),
            Some(Then::Reached { limit, kept }) => {
                self.pacing.reached(limit);
                if kept {
                    self.declared = Some(limit);
                }
                if matches!(self.aim, Aim::Once { .. }) {
                    self.ended = Some(Ended::Reached);
                }
            }
            None => self.failed(now, "the writes that follow are no longer wanted or allowed"),
        }
    }

    /// The agent tries again later; `repair` ends.
    fn failed(&mut self, now: Time, why: &str) {
        self.drop_waiting();
        self.pacing.failed(now);
        if matches!(self.aim, Aim::Once { .. }) {
            self.fail(why.to_owned());
        }
    }

    fn log(&self, message: String, out: &mut Outbox<'_>) {
        out.push(Effect::Log { guard: self.guard, message });
    }

    fn fail(&mut self, why: String) {
        self.ended = Some(Ended::Failed(why));
    }
}
