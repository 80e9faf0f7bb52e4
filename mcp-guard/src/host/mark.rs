//! Marks of ownership: a cgroup that we froze or clamped carries one.
//!
//! A mark is an extended attribute of the cgroup's directory. It is written before the change, and
//! removed after the change is undone. It disappears with the cgroup, survives the agent, and needs
//! `CAP_SYS_ADMIN` to write, so that no process inside a container can forge it. Without a mark,
//! nothing is changed.

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

/// Returns the name of the attribute for a kind of hold.
fn attribute(hold: Hold) -> &'static str {
    match hold {
        Hold::Freeze => "trusted.mcp-guard.lease",
        Hold::Clamp => "trusted.mcp-guard.clamp",
    }
}

/// The owner of a hold, the reason for it, and its deadline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    pub incident: Incident,
    pub reason: String,
    /// A time of `CLOCK_BOOTTIME`, in the boot that `boot_id` names.
    pub deadline: Time,
    pub boot_id: String,
    /// The process that will release the hold.
    pub holder: Pid,
    pub holder_start: Ticks,
    /// For a clamp: `pids.max` as it was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<String>,
    /// For a clamp: `pids.max` as we wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wrote: Option<String>,
    /// The limit that we wrote before, while a newer write is under way.
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
/// If the attribute cannot be written. Nothing may be changed then.
pub fn write(dir: impl AsFd, hold: Hold, mark: &Mark) -> io::Result<()> {
    let value = serde_json::to_vec(mark).map_err(io::Error::other)?;
    Ok(fsetxattr(dir, attribute(hold), &value, XattrFlags::empty())?)
}

/// Reads a mark. `None` if the state is not ours, or if the mark cannot be parsed.
///
/// # Errors
/// If the directory is gone.
pub fn read(dir: impl AsFd, hold: Hold) -> io::Result<Option<Mark>> {
    let mut value = vec![0; 4096];
    match fgetxattr(dir, attribute(hold), &mut value[..]) {
        Ok(length) => Ok(serde_json::from_slice(&value[..length]).ok()),
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// # Errors
/// If the attribute exists but cannot be removed.
pub fn remove(dir: impl AsFd, hold: Hold) -> io::Result<()> {
    match fremovexattr(dir, attribute(hold)) {
        Ok(()) | Err(Errno::NODATA) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
