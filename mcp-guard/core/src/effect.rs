//! The inputs of the core, and the effects that it returns.

use std::time::Duration;

use mcp_guard_common::Totals;

use crate::{
    Time,
    detect::herd::HerdFound,
    diagnose::facts::Facts,
    evidence::{ClientsLook, ServerSeen, StdioAtExec, Unreaped},
    id::{GuardId, Pid, RequestId, Ticket, Tickets, Ticks},
    incident::{Cause, End, Hold, Outcome},
    limit::Limit,
    policy::{Mode, Policy, Response, Terms, Workload},
    refusal::{Despite, Refusal},
    registry::{Observed, TreeId},
    repair::Write,
    server::CommandLine,
    server_order::{ResumedBy, ServersOrder, ServersRequest},
};

/// Something that happened, from the kernel, the engine, the executor or the operator.
#[derive(Clone, Debug)]
pub enum Input {
    /// A cgroup is guarded from now on.
    Guarded {
        guard: GuardId,
        name: String,
        terms: Terms,
        /// Matched against the rules of a later policy; `None` if no policy set the terms.
        workload: Option<Box<Workload>>,
        refusal: Option<Refusal>,
    },
    /// The guard has ended: its cgroup is gone, or the policy no longer names it.
    Released {
        guard: GuardId,
    },
    /// Its engine describes the guard in other words than before.
    Described {
        guard: GuardId,
        name: String,
        workload: Box<Workload>,
    },
    /// A new policy applies from now on.
    Policy(Box<Policy>),
    /// The maximum number of tasks on the host: the lesser of `kernel.pid_max` and `kernel.threads-max`.
    HostTasks {
        most: u64,
    },
    /// The host was suspended until now. Leases went on meanwhile, but no process lived.
    Woke,
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
        command: CommandLine,
    },
    Exit {
        guard: GuardId,
        pid: Pid,
        code: u32,
    },
    /// A process did something since the last look at it. Sent only where each process is looked at.
    Used {
        guard: GuardId,
        pid: Pid,
    },
    /// The answer to [`Effect::ReadStdio`].
    StdioRead {
        guard: GuardId,
        pid: Pid,
        start_ticks: Ticks,
        stdio: StdioAtExec,
    },
    /// Some servers of the guard were looked at, each from this time on.
    Looked {
        guard: GuardId,
        servers: Vec<(TreeId, Time, ServerSeen)>,
    },
    /// The zombies of the guard were counted.
    Unreaped {
        guard: GuardId,
        found: Unreaped,
    },
    /// A process was moved into a cgroup of `guard`. `None` is a cgroup outside every guard. `seen`
    /// is what `/proc` showed soon after.
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
    /// Totals from the BPF maps, at least once a second for every guard.
    Totals {
        guard: GuardId,
        totals: Totals,
    },
    /// Number of forks that a pids limit in this guard has ever refused. Sent only while a clamp is
    /// new.
    Denials {
        guard: GuardId,
        count: u64,
    },
    /// The bystander rules were checked again. `asked`: for an operator who waits for an answer.
    Standing {
        guard: GuardId,
        refusal: Option<Refusal>,
        asked: bool,
    },
    /// The outcome of an order.
    Settled(Settled),
    /// Another process thawed what we had frozen.
    ThawedByOther {
        guard: GuardId,
    },
    /// The limit that we had lowered is no longer in force, but `found`.
    Unclamped {
        guard: GuardId,
        found: Limit,
    },
    /// The cgroup has an expired mark, and the core has no such hold there.
    Overdue {
        guard: GuardId,
        hold: Hold,
    },
    Operator {
        guard: GuardId,
        id: RequestId,
        request: OperatorRequest,
    },
    /// The limit that the engine stores for the container; `None` if it stores none.
    Declared {
        guard: GuardId,
        limit: Option<u64>,
    },
    /// The limit in force, read once a second for every guard.
    LimitSeen {
        guard: GuardId,
        seen: SeenLimit,
    },
    /// The answer to [`Effect::ReadFacts`]: the facts, or why they cannot be read. `seen` is read
    /// after them.
    LimitFacts {
        guard: GuardId,
        ticket: Ticket,
        facts: Result<Box<Facts>, String>,
        seen: Option<SeenLimit>,
    },
    /// The clients of an engine's containers were looked at.
    Clients(ClientsLook),
    /// Time has passed.
    Tick,
}

impl Input {
    /// Returns the guard that it is about. A process that is moved names the guard into which it is moved.
    #[must_use]
    pub fn guard(&self) -> Option<GuardId> {
        match self {
            Self::Guarded { guard, .. }
            | Self::Released { guard }
            | Self::Described { guard, .. }
            | Self::Fork { guard, .. }
            | Self::Exec { guard, .. }
            | Self::Exit { guard, .. }
            | Self::Used { guard, .. }
            | Self::StdioRead { guard, .. }
            | Self::Looked { guard, .. }
            | Self::Unreaped { guard, .. }
            | Self::Baseline { guard, .. }
            | Self::Totals { guard, .. }
            | Self::Denials { guard, .. }
            | Self::Standing { guard, .. }
            | Self::Settled(Settled { guard, .. })
            | Self::ThawedByOther { guard }
            | Self::Unclamped { guard, .. }
            | Self::Overdue { guard, .. }
            | Self::Operator { guard, .. }
            | Self::Declared { guard, .. }
            | Self::LimitSeen { guard, .. }
            | Self::LimitFacts { guard, .. } => Some(*guard),
            Self::Attach { guard, .. } => *guard,
            Self::Policy(_)
            | Self::HostTasks { .. }
            | Self::Woke
            | Self::Clients(_)
            | Self::Tick => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OperatorRequest {
    Freeze { lease: Duration, dry_run: bool, despite: Option<Despite> },
    Thaw,
    Kill { dry_run: bool, despite: Option<Despite> },
    Suspend(ServersRequest),
    Resume(ServersRequest),
    Reap(ServersRequest),
}

/// The limit of one cgroup, and what else is cheap to read with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenLimit {
    /// `pids.max`.
    pub in_force: Limit,
    /// `pids.current`; `None` if it cannot be read.
    pub tasks: Option<u64>,
    /// The stored request of a `repair` whose limit no owner stores yet.
    pub request: Option<LimitRequest>,
    /// An agent is lowering this limit. Set only for `repair`, which then leaves the work to the
    /// agent.
    pub agent_goes_on: bool,
    /// A clamp of ours is in force. Set only for `repair`; the agent knows its clamps.
    pub clamped: bool,
}

/// A limit that an operator requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitRequest {
    pub limit: u64,
    /// When it was made, since the Unix epoch. A different time means a different request, even for
    /// the same limit.
    pub at: Duration,
    /// The policy's limit at that time.
    pub policy: PolicyThen,
}

/// The policy's limit for a guard when a request was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyThen {
    /// No agent was running to report it.
    Unknown,
    /// The policy's `pids_limit`; `None` if it named none.
    Said(Option<u64>),
}

/// The result of an input, as plain data.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// An order for the executor.
    Act(Order),
    /// Records were lost: read the processes of the guard again. Answered by [`Input::Baseline`].
    Rescan { guard: GuardId },
    /// A process has just begun a server: read its stdin and stdout, before it moves them. Answered by
    /// [`Input::StdioRead`], if the process still lives.
    ReadStdio { guard: GuardId, pid: Pid },
    /// Read the guard's [`Input::Denials`] now.
    ReadDenials { guard: GuardId },
    /// Read the facts of the guard for a repair. Answered by [`Input::LimitFacts`].
    ReadFacts { guard: GuardId, ticket: Ticket },
    /// Remove the stored request of the guard's container, because it has ended. A request made at
    /// a time other than `at` (since the Unix epoch) must stay.
    ForgetRequest { guard: GuardId, at: Duration },
    /// Stop guarding: the policy no longer names the guard, and no hold is left.
    Unguard { guard: GuardId },
    /// Write a warning that concerns no single guard.
    WarnOfHerd(HerdFound),
    /// A message for the agent's log, not for the audit log.
    Log { guard: GuardId, message: String },
}

/// One task for the executor. It answers each order once with [`Settled`], except those that only
/// write a record: [`Action::Warn`], [`Action::RefusalBegins`] and [`Action::RefusalEnds`].
/// [`Action::GiveUpLimit`] settles the write instead, which is settled again if its owner answers late, and
/// [`Action::GiveUpServers`] has the order of that ticket end sooner.
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    pub ticket: Ticket,
    pub guard: GuardId,
    /// The operator's request that caused it.
    pub asked_by: Option<RequestId>,
    pub action: Action,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    Warn {
        cause: Cause,
    },
    /// From now on, a bystander rule forbids every response.
    RefusalBegins {
        refusal: Refusal,
    },
    RefusalEnds,
    Contain(Containment),
    /// A decision that a bystander rule forbids.
    Refuse {
        response: Response,
        mode: Mode,
        cause: Cause,
        refusal: Refusal,
    },
    /// Extend the clamp: its lease ends and its cause still applies.
    Renew {
        lease: Duration,
    },
    /// Raise a new clamp once, because it harmed a process inside.
    Loosen {
        by: u64,
        aborts: u64,
        denials: u64,
    },
    /// Release a hold.
    Release {
        hold: Hold,
        end: End,
    },
    /// Remove the mark of a hold that is no longer ours, and leave the state unchanged.
    Disown {
        hold: Hold,
        end: End,
    },
    /// Write a limit at its owner. `over`: the limit in force when this was decided.
    WriteLimit {
        write: Write,
        over: Limit,
        reason: String,
    },
    /// Wait no longer for the owner that was asked for the write with this ticket.
    GiveUpLimit {
        write: Ticket,
    },
    /// Suspend single servers. Settled with [`Remark::Suspended`], and once more with [`Remark::Resumed`] for each
    /// server that runs again without an order.
    Suspend(ServersOrder),
    /// Let suspended servers run again. Settled with [`Remark::Resumed`].
    Resume {
        servers: Vec<TreeId>,
        by: ResumedBy,
    },
    /// End single servers.
    Reap(ServersOrder),
    /// Go on with no more servers of the order with this ticket.
    GiveUpServers {
        order: Ticket,
    },
    /// Run all checks of a write and make both its audit records, but write nothing.
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
    /// Used by a clamp and a freeze.
    pub lease: Duration,
    /// Tasks that a clamp leaves free.
    pub headroom: u64,
    pub cause: Cause,
    /// The engine's process that the operator gave up.
    pub despite: Option<Despite>,
    /// Do not freeze where a process serves a FUSE file system: see [`Remark::ServesFuse`].
    pub spares_fuse: bool,
    /// Kernel time of the record that led to the decision, or the time of the deadline that did.
    pub decided: Time,
}

/// How an order ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    pub ticket: Ticket,
    pub guard: GuardId,
    pub outcome: Outcome,
    /// The values read back, or the error.
    pub detail: String,
    pub remark: Option<Remark>,
}

/// A fact that the core needs beside an outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remark {
    /// The owner of a limit did not answer, and may still write it.
    MayArrive,
    /// It was not frozen, because a process there serves a FUSE file system. All who read there would wait
    /// for the thaw, also outside.
    ServesFuse,
    /// These servers are suspended.
    Suspended(Vec<TreeId>),
    /// These servers, which were suspended, run again.
    Resumed(Vec<TreeId>),
}

/// Collects the effects of one step. Each order gets its own ticket.
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
