//! The lines of the audit log: one JSON object each, an intent before a change and its outcome after.

use serde::{Deserialize, Serialize};

use crate::{
    id::{CgroupId, Incident},
    incident::{Cause, End, Outcome},
    policy::{Mode, Response},
    repair::Write,
};

/// One line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Line {
    /// Counts the lines of one agent run from 1, so that a lost line shows as a gap.
    pub seq: u64,
    /// RFC 3339, UTC.
    pub at: String,
    /// The same moment on `CLOCK_BOOTTIME`.
    pub boot_ns: u64,
    /// The agent's run: its boot id and start.
    pub run: String,
    #[serde(flatten)]
    pub record: Record,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Record {
    /// The agent began, with what it can do.
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
    Warning {
        guard: Subject,
        cause: Cause,
    },
    /// Something is about to be done. The outcome has the same incident.
    Intent {
        incident: Incident,
        guard: Subject,
        response: Response,
        mode: Mode,
        cause: Cause,
        #[serde(skip_serializing_if = "Option::is_none")]
        lease_ms: Option<u64>,
        /// What it found and what it wants to write, for a clamp.
        #[serde(skip_serializing_if = "Option::is_none")]
        pids_max: Option<LimitChange>,
        /// Processes in the cgroup at that moment.
        #[serde(skip_serializing_if = "Option::is_none")]
        processes: Option<u64>,
    },
    Outcome {
        incident: Incident,
        guard: Subject,
        response: Response,
        outcome: Outcome,
        /// What was read back, or what went wrong.
        detail: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        timing: Option<Timing>,
    },
    /// A hold is about to be given back, and then was.
    Release {
        incident: Incident,
        guard: Subject,
        response: Response,
        end: End,
        #[serde(skip_serializing_if = "Option::is_none")]
        outcome: Option<Outcome>,
        detail: String,
    },
    /// A limit is about to be written at its owner, and then was.
    Limit {
        incident: Incident,
        guard: Subject,
        #[serde(flatten)]
        write: Write,
        reason: String,
        /// pids.max before it.
        found: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        outcome: Option<Outcome>,
        detail: String,
    },
    /// Records of the kernel side were lost; totals are not affected.
    Loss {
        cause: String,
        count: u64,
    },
}

/// The guarded cgroup a line is about. Path and name are escaped text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    pub name: String,
    pub cgroup: String,
    pub cgroup_id: CgroupId,
}

/// A limit before and after; "max" is no limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitChange {
    pub found: String,
    pub wanted: String,
}

/// From the kernel's record, or the deadline, that decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    pub decided_boot_ns: u64,
    pub written_us: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confirmed_us: Option<u64>,
}
