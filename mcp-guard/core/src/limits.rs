//! Holds the limit of one guard: which number is wanted, who wins where two disagree, when it is
//! written, and in which steps. The agent and `mcp-guard repair` step the same machine.
//!
//! | in force | against | wins |
//! |---|---|---|
//! | our clamp | any limit that we would write | the clamp, until it is given back |
//! | anybody's write over our clamp | our clamp | theirs; it is clamped again after the cool-down if a detector still asks |
//! | an operator's request | the policy | the request, until the policy's number changes |
//! | the policy | what the engine keeps | the policy |
//! | a lower number | the wanted one, but not a `repair` | the lower one: it is somebody's brake |
//! | a third reversion within an hour | the wanted one | nobody: it is left alone, and said |
//!
//! The guard keeps looks from here while a clamp is in force. What takes time (facts, an engine, systemd)
//! is asked for by an effect, and comes back as an input.

mod pacing;
pub mod requests;

use std::{collections::VecDeque, mem, time::Duration};

use self::pacing::{Pacing, Ruling};
use crate::{
    Time,
    diagnose::{
        facts::Facts,
        owner::{Refused, unit_unread},
    },
    effect::{Action, Effect, LimitRequest, Outbox, SeenLimit, Settled},
    id::{GuardId, Ticket},
    incident::Outcome,
    limit::Limit,
    policy::Mode,
    repair::{self, Next, Plan, Wanted, Write},
};

/// What applies to a limit besides what is seen of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    pub mode: Mode,
    /// `pids_limit` of the policy.
    pub policy: Option<u64>,
    /// `clamp_headroom` of the policy.
    pub headroom: u64,
}

/// Whose limit is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aim {
    /// The agent holds whatever is wanted for as long as the guard lasts.
    Hold,
    /// `repair` writes one limit, and ends.
    Once {
        limit: u64,
        force: bool,
        /// The request is stored, so that a later one replaces it.
        stored: bool,
    },
}

/// What the writes of a plan come to.
#[derive(Clone, Debug)]
enum Then {
    Step(u64),
    /// The limit; `kept`: its owner keeps it.
    Reached {
        limit: u64,
        kept: bool,
    },
}

/// How a repair ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    Reached,
    /// Says why.
    Failed(String),
}

#[derive(Clone, Debug)]
pub struct Limits {
    guard: GuardId,
    aim: Aim,
    pacing: Pacing,
    declared: Option<u64>,
    request: Option<LimitRequest>,
    /// When the last request was made that was looked at.
    heard: Option<Duration>,
    /// What the policy said when the request was made, or when it was first seen.
    policy_then: Option<u64>,
    /// The request that a change of the policy has ended, by its time.
    outdated: Option<Duration>,
    reading: Option<Ticket>,
    writing: Option<Ticket>,
    /// What is still to be written after the write that is under way, and what that comes to.
    waiting: VecDeque<Write>,
    then: Option<Then>,
    /// The agent's: the last plan, while it had nothing to write until tasks end. `repair`'s: the last that
    /// could be made.
    plan: Option<Plan>,
    reason: String,
    /// It was said that its facts cannot be read.
    said_unread: bool,
    /// An agent lowers the limit; `repair` only looks on.
    follows: bool,
    ended: Option<Ended>,
}

impl Limits {
    /// The agent's.
    #[must_use]
    pub fn new(guard: GuardId) -> Self {
        Self::aiming(guard, Aim::Hold, Pacing::default())
    }

    /// `repair`'s. `stored`: the request is stored where an agent and a later `repair` find it.
    #[must_use]
    pub fn once(guard: GuardId, limit: u64, force: bool, stored: bool) -> Self {
        Self::aiming(guard, Aim::Once { limit, force, stored }, Pacing::insisting())
    }

    fn aiming(guard: GuardId, aim: Aim, pacing: Pacing) -> Self {
        Self {
            guard,
            aim,
            pacing,
            declared: None,
            request: None,
            heard: None,
            policy_then: None,
            outdated: None,
            reading: None,
            writing: None,
            waiting: VecDeque::new(),
            then: None,
            plan: None,
            reason: String::new(),
            said_unread: false,
            follows: false,
            ended: None,
        }
    }

    /// An operator's word, else the policy's, else the engine's.
    #[must_use]
    pub fn wanted(&self, policy: Option<u64>) -> Option<u64> {
        match self.aim {
            Aim::Hold => self.request.map(|request| request.limit).or(policy).or(self.declared),
            Aim::Once { limit, .. } => Some(limit),
        }
    }

    /// The same with the request that is stored at this moment, which may be newer than the last look.
    #[must_use]
    pub fn wanted_now(&self, policy: Option<u64>, stored: Option<LimitRequest>) -> Option<u64> {
        let is_new = |request: &LimitRequest| Some(request.at) != self.heard;
        match stored.filter(is_new) {
            Some(request) => Some(request.limit),
            None => self.wanted(policy),
        }
    }

    /// It is not in force, and nothing is done about it.
    #[must_use]
    pub fn is_left(&self) -> bool {
        self.pacing.has_stopped()
    }

    /// The last step on the way down.
    #[must_use]
    pub fn step(&self) -> Option<u64> {
        self.pacing.step()
    }

    /// How `repair` ended; None while it goes on.
    #[must_use]
    pub fn ended(&self) -> Option<&Ended> {
        self.ended.as_ref()
    }

    /// The last plan that `repair` made; None before the first.
    #[must_use]
    pub fn plan(&self) -> Option<&Plan> {
        self.plan.as_ref()
    }

    /// Whether `repair` leaves the work to an agent.
    #[must_use]
    pub fn follows(&self) -> bool {
        self.follows
    }

    /// Another policy holds. Its headroom makes another plan. In another mode, what was left alone is
    /// looked into again, and what was to be written next is decided again.
    pub fn policy_changed(&mut self, other_mode: bool) {
        self.plan = None;
        if other_mode {
            self.pacing.asked_again();
            self.waiting.clear();
            self.then = None;
        }
    }

    /// Whether the owner of the limit is asked to write it.
    #[must_use]
    pub fn is_writing(&self) -> bool {
        self.writing.is_some()
    }

    /// What the engine keeps.
    pub fn declare(&mut self, limit: Option<u64>) {
        self.declared = limit;
    }

    pub fn look(&mut self, now: Time, rules: &Rules, seen: &SeenLimit, out: &mut Outbox<'_>) {
        match self.aim {
            Aim::Hold => self.hear(rules, seen, out),
            Aim::Once { limit, stored, .. } => {
                if self.is_replaced(limit, stored, seen) || self.leaves_it_to_an_agent(limit, seen)
                {
                    return;
                }
            }
        }
        let wanted = self.wanted(rules.policy);
        if !self.pacing.look(now, wanted, seen.in_force) {
            return;
        }
        if self.has_nothing_to_write(wanted, seen) {
            return self.pacing.waits(now);
        }
        if self.aim == Aim::Hold {
            self.plan = None;
        }
        let ticket = out.tickets.draw();
        self.reading = Some(ticket);
        out.push(Effect::ReadFacts { guard: self.guard, ticket });
    }

    /// While an agent lowers the limit, `repair` waits for it to be reached. A lower one is not the agent's
    /// doing for this request, so that it is written from here.
    fn leaves_it_to_an_agent(&mut self, limit: u64, seen: &SeenLimit) -> bool {
        if !self.follows {
            return false;
        }
        self.pacing.lowered(seen.in_force);
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

    /// The answer to [`Effect::ReadFacts`]. `seen` is None where nothing may be written now, or where
    /// the limit in force cannot be read.
    pub fn facts(
        &mut self,
        now: Time,
        rules: &Rules,
        (ticket, facts): (Ticket, Result<Box<Facts>, String>),
        seen: Option<&SeenLimit>,
        out: &mut Outbox<'_>,
    ) {
        // A slot may have another guard by the time that its facts are there.
        if self.reading != Some(ticket) {
            return;
        }
        self.reading = None;
        if let (Aim::Hold, Some(seen)) = (self.aim, seen) {
            // A request that was made meanwhile is the one to plan for.
            self.hear(rules, seen, out);
        }
        match (facts, seen) {
            (Ok(facts), Some(seen)) => self.repair(now, rules, &facts, seen, out),
            (Ok(_), None) => self.failed(now, "its limit cannot be read or written now"),
            (Err(why), seen) => self.unread(now, rules, &why, seen, out),
        }
    }

    /// The agent tries again later. `repair` goes on as planned before.
    fn unread(
        &mut self,
        now: Time,
        rules: &Rules,
        why: &str,
        seen: Option<&SeenLimit>,
        out: &mut Outbox<'_>,
    ) {
        if !mem::replace(&mut self.said_unread, true) {
            self.log(format!("what holds its limit cannot be read: {why}"), out);
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
        self.said_unread = false;
        let wanted = self.wanted(rules.policy);
        let ruling = self.pacing.judge(now, wanted, seen.in_force);
        let (Some(limit), Ruling::Repair | Ruling::GiveUp) = (wanted, ruling) else { return };
        self.reason = match (self.aim, ruling) {
            (Aim::Once { .. }, Ruling::Repair | Ruling::Rest) => "operator".to_owned(),
            (Aim::Hold, _) | (_, Ruling::GiveUp) => repair::undone_by(facts, limit, seen.in_force),
        };
        let force = matches!(self.aim, Aim::Once { force: true, .. });
        let wanted = Wanted { limit: Some(limit), force, headroom: rules.headroom };
        let unread = unit_unread(facts).map(ToString::to_string);
        match (repair::plan(facts, wanted), self.plan.clone(), unread) {
            // The record names what cannot be written.
            (Err(_), _, _) if ruling == Ruling::GiveUp => {
                self.leave(Outcome::NotOurs, vec![Write::PidsMax { limit }], out);
            }
            // Only `repair` has a former plan here. Its owner answered then.
            (Err(Refused(why)), Some(plan), _) | (Ok(_), Some(plan), Some(why)) => {
                self.log(format!("no new plan can be made: {why}; the former one holds"), out);
                self.carry_out(now, rules.mode, ruling, plan, seen, out);
            }
            (Ok(plan), _, _) => self.carry_out(now, rules.mode, ruling, plan, seen, out),
            (Err(Refused(why)), None, _) => {
                self.log(format!("its limit is not in force and not repaired: {why}"), out);
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
            return self.failed(now, "its tasks cannot be counted");
        };
        if matches!(self.aim, Aim::Once { .. }) {
            // For the case that no facts can be read later.
            self.plan = Some(plan.clone());
        }
        let next = plan.next(tasks, seen.in_force, self.pacing.step());
        match (ruling, next) {
            (Ruling::Rest, _) => {}
            (Ruling::GiveUp, Next::Wait) => self.leave(Outcome::NotOurs, plan.last(), out),
            (Ruling::GiveUp, next) => self.leave(Outcome::NotOurs, next.into_writes(), out),
            (Ruling::Repair, next) => {
                let is_last = matches!(next, Next::Last(_));
                let is_repair = matches!(self.aim, Aim::Once { .. }) && mode == Mode::Enforce;
                if is_repair && seen.agent_goes_on && !is_last {
                    self.follows = true;
                    return self.pacing.waits(now);
                }
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

    /// All checks and both records of writes that are not made.
    fn leave(&mut self, outcome: Outcome, writes: Vec<Write>, out: &mut Outbox<'_>) {
        let reason = mem::take(&mut self.reason);
        let detail = match outcome {
            Outcome::WouldDo => "observe mode or a dry run: nothing is written".to_owned(),
            Outcome::Done | Outcome::Refused | Outcome::NotOurs | Outcome::Failed => {
                format!("undone three times within an hour: {reason}; left as it is")
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
        let reason = self.reason.clone();
        self.writing = Some(out.act(self.guard, Action::WriteLimit { write, reason }));
    }

    pub fn settled(&mut self, now: Time, settled: &Settled, out: &mut Outbox<'_>) {
        if self.writing != Some(settled.ticket) {
            return;
        }
        self.writing = None;
        match settled.outcome {
            Outcome::Done => self.write_next(now, out),
            Outcome::WouldDo | Outcome::Refused | Outcome::NotOurs | Outcome::Failed => {
                self.failed(now, &settled.detail);
            }
        }
    }

    fn all_written(&mut self, now: Time) {
        match self.then.take() {
            Some(Then::Step(step)) => self.pacing.stepped(now, step),
            Some(Then::Reached { limit, kept }) => {
                self.pacing.reached();
                if kept {
                    self.declared = Some(limit);
                }
                if matches!(self.aim, Aim::Once { .. }) {
                    self.ended = Some(Ended::Reached);
                }
            }
            // The policy changed while it was written.
            None => self.failed(now, "it is decided again"),
        }
    }

    /// The agent tries again later; `repair` ends.
    fn failed(&mut self, now: Time, why: &str) {
        self.waiting.clear();
        self.then = None;
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
