//! What goes into the core and what comes out of it.

use std::{collections::BTreeMap, time::Duration};

use mcp_guard_common::Totals;
use serde::{Deserialize, Serialize};

use crate::{
    Time,
    policy::{Mode, Response, Terms},
    refusal::Refusal,
    registry::Observed,
};

/// A guard's slot in the kernel's maps; reused only long after the guard is gone.
pub type GuardId = u32;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Detector {
    /// Live duplicates of one identity.
    #[serde(rename = "D")]
    Duplicates,
    /// Start burst of one identity.
    #[serde(rename = "B")]
    Burst,
    /// Emergency growth, whatever the processes are.
    #[serde(rename = "E")]
    Emergency,
    /// Raw fork rate.
    #[serde(rename = "R")]
    Raw,
}

/// Something that happened, from the kernel, the engine, the executor or the operator.
#[derive(Clone, Debug)]
pub enum Input {
    /// A cgroup is guarded from now on.
    Guarded {
        guard: GuardId,
        name: String,
        terms: Terms,
        refusal: Option<Refusal>,
    },
    /// Its cgroup is gone, or the policy no longer names it.
    Released {
        guard: GuardId,
    },
    Fork {
        guard: GuardId,
        born: Time,
        child: u32,
        parent: u32,
    },
    Exec {
        guard: GuardId,
        born: Time,
        pid: u32,
        argv: Vec<u8>,
    },
    Exit {
        guard: GuardId,
        pid: u32,
        code: u32,
    },
    /// A process entered a cgroup of `guard`, None where that is outside every guard.
    /// `seen` is what `/proc` said of it soon after.
    Attach {
        guard: Option<GuardId>,
        born: Time,
        pid: u32,
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
    /// What became of an effect.
    Settled {
        guard: GuardId,
        response: Response,
        outcome: Outcome,
        lease: Duration,
    },
    /// Somebody else thawed what we had frozen.
    ThawedByOther {
        guard: GuardId,
    },
    /// Somebody else wrote the limit that we had lowered.
    UnclampedByOther {
        guard: GuardId,
    },
    Operator {
        guard: GuardId,
        request: Request,
    },
    /// Time has passed.
    Tick,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    Freeze { lease: Duration, dry_run: bool },
    Thaw,
    Kill { dry_run: bool },
}

/// How an action ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Done and read back.
    Done,
    /// Observe mode or a dry run: all checks passed, the last step was left out.
    WouldDo,
    /// A bystander rule forbids it.
    Refused,
    /// The state is somebody else's: frozen or paused by another.
    NotOurs,
    /// It did not work and was undone.
    Failed,
}

/// Why something is done, with the numbers that decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// None for an operator's request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detector: Option<Detector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub numbers: BTreeMap<String, u64>,
}

/// Why a hold ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    LeaseOver,
    Operator,
    /// The agent stops in order.
    Shutdown,
    /// Left by an agent that did not stop in order.
    Reconcile,
    /// Somebody else undid it.
    ThawedByOther,
    UnclampedByOther,
}

/// What the executor is to do. Data only.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    Warn {
        guard: GuardId,
        cause: Cause,
    },
    Contain(Containment),
    /// A decision that a bystander rule forbids.
    Refuse {
        guard: GuardId,
        response: Response,
        mode: Mode,
        cause: Cause,
        refusal: Refusal,
    },
    /// The clamp's reason still holds when its lease ends.
    Renew {
        guard: GuardId,
        lease: Duration,
    },
    /// Raise a new clamp once: it harmed somebody inside.
    Loosen {
        guard: GuardId,
        by: u64,
        aborts: u64,
        denials: u64,
    },
    Release {
        guard: GuardId,
        response: Response,
        end: End,
    },
    /// Drop the mark of a hold that is no longer ours, without touching the state.
    Disown {
        guard: GuardId,
        response: Response,
        end: End,
    },
    /// Records were lost: look at `/proc` again.
    Rescan {
        guard: GuardId,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub struct Containment {
    pub guard: GuardId,
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
