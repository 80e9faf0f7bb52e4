//! Audit log lines. Each is one JSON object. A change has an intent line before it and an outcome
//! line after it.

use serde::{Deserialize, Serialize};

use crate::{
    id::{CgroupId, Incident, Pid},
    incident::{Cause, End, Outcome},
    policy::{Mode, Response},
    refusal::Despite,
    repair::Write,
    server_order::{OrderedServer, ResumedBy},
};

/// One line of the audit log.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Line {
    /// Number of the line within one agent run, starting at 1. A lost line shows as a gap.
    pub seq: u64,
    /// RFC 3339, UTC.
    pub at: String,
    /// The time of the line on `CLOCK_BOOTTIME`.
    pub boot_ns: u64,
    /// The agent's run: boot id and start time.
    pub run: String,
    /// How long the line waited for the log, in milliseconds, if that was noticeable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub late_ms: Option<u64>,
    #[serde(flatten)]
    pub record: Record,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Record {
    /// The agent started.
    AgentStart {
        version: String,
        mode: Mode,
    },
    AgentStop {
        reason: String,
    },
    /// A cgroup is guarded from now on.
    GuardStart {
        guard: Subject,
        mode: Mode,
        highest: Response,
        #[serde(skip_serializing_if = "Option::is_none")]
        refused: Option<String>,
    },
    GuardStop {
        guard: Subject,
    },
    /// The policy names a cgroup that cannot be guarded, or an engine names one that is not its own.
    GuardRefused {
        guard: Subject,
        reason: String,
    },
    /// A rule forbids from now on to act on the guard.
    RefusalStart {
        guard: Subject,
        refused: String,
    },
    /// No rule forbids it any more.
    RefusalEnd {
        guard: Subject,
    },
    Warning {
        guard: Subject,
        cause: Cause,
    },
    /// A warning about containers of one engine, which may be guards or not.
    Herd {
        /// The engine's socket.
        engine: String,
        cause: Cause,
        /// Their names, escaped.
        containers: Vec<String>,
    },
    /// A response is about to be carried out. Its outcome has the same incident.
    Intent {
        incident: Incident,
        guard: Subject,
        response: Response,
        mode: Mode,
        cause: Cause,
        #[serde(skip_serializing_if = "Option::is_none")]
        lease_ms: Option<u64>,
        /// For a clamp: the limit found, and the limit to be written.
        #[serde(skip_serializing_if = "Option::is_none")]
        pids_max: Option<LimitChange>,
        /// Processes in the cgroup at that moment, if they were counted.
        #[serde(skip_serializing_if = "Option::is_none")]
        processes: Option<u64>,
        /// The engine's process that the operator gave up for this action.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        despite: Option<Despite>,
    },
    Outcome {
        incident: Incident,
        guard: Subject,
        response: Response,
        outcome: Outcome,
        /// The values read back, or the error.
        detail: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        timing: Option<Timing>,
    },
    /// A hold is about to be released or, with an `outcome`, was released.
    Release {
        incident: Incident,
        guard: Subject,
        response: Response,
        end: End,
        #[serde(skip_serializing_if = "Option::is_none")]
        outcome: Option<Outcome>,
        detail: String,
    },
    /// A limit is about to be written at its owner or, with an `outcome`, was written.
    Limit {
        incident: Incident,
        guard: Subject,
        #[serde(flatten)]
        write: Write,
        reason: String,
        /// `pids.max` before the write.
        found: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        outcome: Option<Outcome>,
        detail: String,
    },
    /// Single servers are about to be ended or, with an `outcome`, were ended.
    Reap {
        incident: Incident,
        guard: Subject,
        mode: Mode,
        cause: Cause,
        servers: Vec<OrderedServer>,
        #[serde(skip_serializing_if = "Option::is_none")]
        outcome: Option<Outcome>,
        detail: String,
    },
    /// Single servers are about to be suspended or, with an `outcome`, were suspended.
    Suspend {
        incident: Incident,
        guard: Subject,
        mode: Mode,
        cause: Cause,
        servers: Vec<OrderedServer>,
        #[serde(skip_serializing_if = "Option::is_none")]
        outcome: Option<Outcome>,
        detail: String,
    },
    /// A suspended server runs again. Its incident is that of the order that has suspended it.
    Resume {
        incident: Incident,
        guard: Subject,
        identity: String,
        pid: Pid,
        by: ResumedBy,
        /// How long it was suspended, in milliseconds.
        slept_ms: u64,
        outcome: Outcome,
        detail: String,
    },
    /// The policy was read again, and applies from now on.
    PolicyReloaded {
        mode: Mode,
        files: Vec<String>,
        changes: Vec<String>,
    },
    /// The policy was read again, and is not applied.
    PolicyRejected {
        reason: String,
    },
    /// Kernel records were lost. Totals are not affected.
    Loss {
        cause: String,
        count: u64,
    },
}

/// The guarded cgroup that a line is about. Path and name are escaped text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    pub name: String,
    pub cgroup: String,
    pub cgroup_id: CgroupId,
}

impl Subject {
    /// Whether both are about one cgroup. Its name may have changed in between.
    #[must_use]
    pub fn is_same_cgroup(&self, other: &Self) -> bool {
        self.cgroup_id == other.cgroup_id
    }
}

/// A limit before and after; "max" is no limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitChange {
    pub found: String,
    pub wanted: String,
}

/// When the kernel record or deadline that led to the decision occurred, and the time from then to
/// the write and to its confirmation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    pub decided_boot_ns: u64,
    pub written_us: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confirmed_us: Option<u64>,
}
