//! Marks of ownership on cgroups: what we froze or clamped says so itself.
//!
//! An extended attribute on the cgroup's directory, written before the change and removed after it
//! was undone. It goes with the cgroup, survives the agent, and needs `CAP_SYS_ADMIN` to write, so
//! that nobody inside a container can forge it. No mark, no change.

use std::{io, os::fd::AsFd};

use mcp_guard_core::{
    Time,
    id::{Incident, Pid, Ticks},
    incident::Hold,
    limit::Limit,
};
use rustix::{
    fs::{XattrFlags, fgetxattr, fremovexattr, fsetxattr},
    io::Errno,
};
use serde::{Deserialize, Serialize};

/// The attribute that says so.
fn attribute(hold: Hold) -> &'static str {
    match hold {
        Hold::Freeze => "trusted.mcp-guard.lease",
        Hold::Clamp => "trusted.mcp-guard.clamp",
    }
}

/// Who owns the state, why, and until when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    pub incident: Incident,
    pub reason: String,
    /// `CLOCK_BOOTTIME`, of the boot below.
    pub deadline: Time,
    pub boot_id: String,
    /// The process that will undo it.
    pub holder: Pid,
    pub holder_start: Ticks,
    /// Clamp: `pids.max` as it was found, and as we wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wrote: Option<String>,
    /// What we wrote before, while the newest write is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
}

impl Mark {
    /// Whether a limit is one that we wrote.
    #[must_use]
    pub fn wrote_limit(&self, now: Limit) -> bool {
        let now = Some(now.to_string());
        now == self.wrote || now == self.before
    }
}

/// # Errors
/// The attribute cannot be written; nothing may be changed then.
pub fn write(dir: impl AsFd, hold: Hold, mark: &Mark) -> io::Result<()> {
    let value = serde_json::to_vec(mark).map_err(io::Error::other)?;
    Ok(fsetxattr(dir, attribute(hold), &value, XattrFlags::empty())?)
}

/// None where the state is not ours, or the mark is no longer readable as one.
///
/// # Errors
/// The directory is gone.
pub fn read(dir: impl AsFd, hold: Hold) -> io::Result<Option<Mark>> {
    let mut value = vec![0; 4096];
    match fgetxattr(dir, attribute(hold), &mut value[..]) {
        Ok(length) => Ok(serde_json::from_slice(&value[..length]).ok()),
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// # Errors
/// The attribute is there and cannot be removed.
pub fn remove(dir: impl AsFd, hold: Hold) -> io::Result<()> {
    match fremovexattr(dir, attribute(hold)) {
        Ok(()) | Err(Errno::NODATA) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
