//! What goes into the core and what comes out of it.

use std::time::Duration;

use mcp_guard_common::Totals;

use crate::{
    Time,
    diagnose::facts::Facts,
    id::{GuardId, Pid, RequestId, Ticket, Tickets},
    incident::{Cause, End, Hold, Outcome},
    limit::Limit,
    policy::{Mode, Policy, Response, Terms, Workload},
    refusal::Refusal,
    registry::Observed,
    repair::Write,
};

/// Something that happened, from the kernel, the engine, the executor or the operator.
#[derive(Clone, Debug)]
pub enum Input {
    /// A cgroup is guarded from now on.
    Guarded {
        guard: GuardId,
        name: String,
        terms: Terms,
        /// What the rules of a later policy are matched against; None where no policy set the terms.
        workload: Option<Box<Workload>>,
        refusal: Option<Refusal>,
    },
    /// Its cgroup is gone, or the policy no longer names it.
    Released {
        guard: GuardId,
    },
    /// Another policy holds from now on.
    Policy(Box<Policy>),
    Fork {
        guard: GuardId,
        born: Time,
        child: Pid,
        parent: Pid,
    },
    Exec {
        guard: GuardId,
        born: Time,
        pid: Pid,
        argv: Vec<u8>,
    },
    Exit {
        guard: GuardId,
        pid: Pid,
        code: u32,
    },
    /// A process entered a cgroup of `guard`, None where that is outside every guard.
    /// `seen` is what `/proc` said of it soon after.
    Attach {
        guard: Option<GuardId>,
        born: Time,
        pid: Pid,
        seen: Option<Observed>,
    },
    /// All live processes of the guard as `/proc` shows them.
    Baseline {
        guard: GuardId,
        processes: Vec<Observed>,
    },
    /// Totals from the kernel's maps; at least once a second for every guard.
    Totals {
        guard: GuardId,
        totals: Totals,
    },
    /// Forks refused by a pids limit in this guard, ever. Only while a clamp is new.
    Denials {
        guard: GuardId,
        count: u64,
    },
    /// The bystander rules were asked again.
    Standing {
        guard: GuardId,
        refusal: Option<Refusal>,
    },
    /// What became of an order.
    Settled(Settled),
    /// Somebody else thawed what we had frozen.
    ThawedByOther {
        guard: GuardId,
    },
    /// Somebody else wrote the limit that we had lowered.
    UnclampedByOther {
        guard: GuardId,
    },
    /// The cgroup carries a mark whose time is over, and the core holds nothing there.
    Overdue {
        guard: GuardId,
        hold: Hold,
    },
    Operator {
        guard: GuardId,
        id: RequestId,
        request: OperatorRequest,
    },
    /// What the engine keeps of the container's limit; None where it keeps none.
    Declared {
        guard: GuardId,
        limit: Option<u64>,
    },
    /// A look at the limit in force; once a second for every guard.
    LimitSeen {
        guard: GuardId,
        seen: SeenLimit,
    },
    /// The facts that [`Effect::ReadFacts`] asked for, or why they cannot be read; `seen` is read after
    /// them.
    LimitFacts {
        guard: GuardId,
        ticket: Ticket,
        facts: Result<Box<Facts>, String>,
        seen: Option<SeenLimit>,
    },
    /// Time has passed.
    Tick,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperatorRequest {
    Freeze { lease: Duration, dry_run: bool },
    Thaw,
    Kill { dry_run: bool },
}

/// A cheap look at the limit of one cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenLimit {
    /// `pids.max`.
    pub in_force: Limit,
    /// `pids.current`; None where it cannot be read.
    pub tasks: Option<u64>,
    /// What `repair` was asked for and no owner keeps yet.
    pub request: Option<LimitRequest>,
    /// An agent lowers this limit by itself. Only `repair` is told so: it lets the agent do it.
    pub agent_goes_on: bool,
}

/// A limit that an operator asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitRequest {
    pub limit: u64,
    /// When, since 1970. Another time is another request, also for the same limit.
    pub at: Duration,
    /// What the policy said then.
    pub policy: PolicyThen,
}

/// What the policy said of a guard's limit when a request was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyThen {
    /// No agent was there to tell.
    Unknown,
    /// Its `pids_limit`; None where it named none.
    Said(Option<u64>),
}

/// What follows from an input. Data only.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// For the executor.
    Act(Order),
    /// Records were lost: read the processes of the guard again, see [`Input::Baseline`].
    Rescan { guard: GuardId },
    /// Read [`Input::Denials`] of the guard now.
    ReadDenials { guard: GuardId },
    /// Read the facts of the guard for a repair, see [`Input::LimitFacts`].
    ReadFacts { guard: GuardId, ticket: Ticket },
    /// Remove the stored request of the guard's container, which is over; not one that was made at
    /// another time than `at`, since 1970.
    ForgetRequest { guard: GuardId, at: Duration },
    /// The policy no longer names the guard, and nothing is held there.
    Unguard { guard: GuardId },
    /// For the log of the agent, not for the audit log.
    Log { guard: GuardId, message: String },
}

/// One thing to do, by the executor. It answers each of them once, by [`Settled`], but for
/// [`Action::Warn`].
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    pub ticket: Ticket,
    pub guard: GuardId,
    /// The operator's request it follows from.
    pub asked_by: Option<RequestId>,
    pub action: Action,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    Warn {
        cause: Cause,
    },
    Contain(Containment),
    /// A decision that a bystander rule forbids.
    Refuse {
        response: Response,
        mode: Mode,
        cause: Cause,
        refusal: Refusal,
    },
    /// The clamp's reason still holds when its lease ends.
    Renew {
        lease: Duration,
    },
    /// Raise a new clamp once: it harmed somebody inside.
    Loosen {
        by: u64,
        aborts: u64,
        denials: u64,
    },
    /// Give a hold back.
    Release {
        hold: Hold,
        end: End,
    },
    /// Drop the mark of a hold that is no longer ours, without touching the state.
    Disown {
        hold: Hold,
        end: End,
    },
    /// Write a limit where it is kept.
    WriteLimit {
        write: Write,
        reason: String,
    },
    /// All checks and both records of a write, and no write.
    LeaveLimit {
        write: Write,
        reason: String,
        outcome: Outcome,
        detail: String,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub struct Containment {
    pub response: Response,
    pub mode: Mode,
    /// For clamp and freeze.
    pub lease: Duration,
    /// Tasks a clamp leaves free.
    pub headroom: u64,
    pub cause: Cause,
    /// Kernel time of the record, or the deadline, that decided.
    pub decided: Time,
}

/// How an order ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    pub ticket: Ticket,
    pub guard: GuardId,
    pub outcome: Outcome,
    /// What was read back, or what went wrong.
    pub detail: String,
}

/// Where the effects of one step are put, each order with a ticket of its own.
pub struct Outbox<'a> {
    pub tickets: &'a mut Tickets,
    pub effects: &'a mut Vec<Effect>,
}

impl Outbox<'_> {
    pub fn act(&mut self, guard: GuardId, action: Action) -> Ticket {
        self.act_for(guard, None, action)
    }

    pub fn act_for(
        &mut self,
        guard: GuardId,
        asked_by: Option<RequestId>,
        action: Action,
    ) -> Ticket {
        let ticket = self.tickets.draw();
        self.effects.push(Effect::Act(Order { ticket, guard, asked_by, action }));
        ticket
    }

    pub fn push(&mut self, effect: Effect) {
        self.effects.push(effect);
    }
}
